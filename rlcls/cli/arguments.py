"""Reads the arguments of the commands that take no configuration: options name=value, flags and file names."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from rlcls._errors import UserError, nearest

DEVICES = ("cpu", "gpu", "tpu")
"""The values of the option device=."""


class Arguments(NamedTuple):
    """The arguments of a command.

    Attributes:
      options: values by name.
      names: arguments that are not options.
      help: whether --help was given.
    """

    options: dict[str, str]
    names: list[str]
    help: bool


def parse(argv: list[str], options: Collection[str], *, names: bool = False) -> Arguments:
    """Reads a command line.

    Args:
      argv: the arguments.
      options: the names of the options.
      names: whether arguments without a known option are names, of run folders for example.

    Raises:
      UserError: an option is unknown, has no value, or is given twice.

    >>> parse(["run=runs/a", "eval.episodes=3"], ["run", "eval.episodes"]).options
    {'run': 'runs/a', 'eval.episodes': '3'}
    """
    values: dict[str, str] = {}
    rest: list[str] = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        if argument in ("--help", "-h"):
            return Arguments({}, [], True)
        if name in options and equals:
            if not value:
                raise UserError(f"{name} needs a value: {name}=...")
            if name in values:
                raise UserError(f"{name} is given twice: {values[name]} and {value}")
            values[name] = value
        elif names and not argument.startswith("-") and (not equals or Path(argument).exists()):
            rest.append(argument)
        else:
            raise UserError(f"unknown option {name!r}{nearest(name.lstrip('-'), options)}")
    return Arguments(values, rest, False)


def folders(names: list[str]) -> list[str]:
    """Several names without those of files, because a pattern such as runs/* also matches pictures beside the runs."""
    return [name for name in names if not Path(name).is_file()] or names


def whole_number(options: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    """The value of an option that is a whole number between `least` and `most`; None if it is not given.

    Raises:
      UserError: the value is no such number.
    """
    text = options.get(name)
    if text is None:
        return None
    if not (text.isdecimal() and least <= int(text) <= most):
        raise UserError(f"{name}={text} must be a whole number between {least} and {most}")
    return int(text)


def probability(options: Mapping[str, str], name: str) -> float | None:
    """The value of an option that is a number between 0 and 1; None if it is not given.

    Raises:
      UserError: the value is no such number.
    """
    text = options.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{name}={text} must be a number between 0 and 1")
    return value
