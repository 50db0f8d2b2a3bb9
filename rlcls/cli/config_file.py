"""Options from a YAML file, which the command line overrides: `python -m rlcls.train --config-file mine.yaml`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlcls._errors import UserError
from rlcls.runs.identity import leaves, plain

from .compose import FIXED
from .help import GROUPS, choices

FLAG = "--config-file"


def split(argv: list[str]) -> tuple[Path | None, list[str]]:
    """The file that `--config-file` names, if any, and the other arguments.

    Raises:
      UserError: the flag names no file, or is given twice.

    >>> split(["seed=1", "--config-file", "mine.yaml"])
    (PosixPath('mine.yaml'), ['seed=1'])
    """
    path, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name != FLAG:
            rest.append(argument)
            continue
        value = value or next(arguments, "")
        if not value:
            raise UserError(f"{FLAG} needs a file: {FLAG} mine.yaml")
        if path:
            raise UserError(f"{FLAG} is given twice: {path} and {value}")
        path = Path(value)
    return path, rest


def overrides(path: Path, argv: list[str]) -> list[str]:
    """The options of a file as arguments, followed by `argv`. An option in `argv` replaces that of the file.

    If `argv` chooses from a group, all options of the group in the file are dropped: `loss=mse` drops
    `loss.sigma_ratio`.

    Keys are the names of the command line, nested or dotted: `loss: mse`, `agent: {learning_rate: 1e-4}`,
    `agent.learning_rate: 1e-4`, `+env.name: value`. The file may be config.yaml of a run folder. Its `choices` then
    choose from the groups, and its `settings` become the settings of the run.

    Raises:
      UserError: the file cannot be read, or does not consist of options. Or it is the config.yaml of a run and `argv`
        chooses a recipe, whose values would have no effect.
    """
    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: expected options, written name: value")
    tree: Any = OmegaConf.to_container(config)
    chosen = tree.pop("choices", None) or {}
    if not isinstance(chosen, dict):
        raise UserError(f"{path}: choices: expected groups and their names, not {plain(chosen)!r}")
    # Other choices are names of the user's own classes. The options `_target_` choose these.
    options = {group: name for group, name in chosen.items() if group in GROUPS and name in choices(group)}
    # An evaluator of the user's own is an added option, written with +.
    leaves_of_file = {
        f"+{name}" if str(name).startswith("evals.") else str(name): value for name, value in leaves(tree)
    }
    options |= {name: value for name, value in leaves_of_file.items() if not (chosen and name in FIXED)}
    given = {argument.partition("=")[0].lstrip("+~") for argument in argv}
    settings = options.pop("settings", None)
    if chosen and "recipe" in given:
        raise UserError(
            f"{path} is the configuration of a run, and its values would replace those of another recipe; leave "
            "recipe= or --config-file out"
        )
    replaced = tuple(f"{section}." for group in given.intersection(GROUPS) for section in _sections(group))

    def is_replaced(name: str) -> bool:
        key = name.lstrip("+~")
        return key in given or key.replace("/", ".").startswith(replaced)

    if isinstance(settings, list) and all(isinstance(each, dict) for each in settings):
        left = [{name: value for name, value in each.items() if not is_replaced(name)} for each in settings]
        # `argv` may replace the options in which settings differed, so equal ones are kept once.
        settings = [each for number, each in enumerate(left) if each and each not in left[:number]]
        options = {
            name: value for name, value in options.items() if not any(name in each for each in settings)
        }
    if settings:
        options["settings"] = settings
    return [
        *(f"{name}={_written(name, value)}" for name, value in options.items() if not is_replaced(name)),
        *argv,
    ]


@contextlib.contextmanager
def named(path: Path | None, arguments: list[str], argv: list[str]) -> Iterator[None]:
    """Names the file in a UserError about one of its options.

    Args:
      path: the file; None if there is none.
      arguments: the arguments that `overrides` returned.
      argv: the arguments of the command line.
    """
    try:
        yield
    except UserError as error:
        keys = [
            argument.partition("=")[0].lstrip("+~") for argument in arguments[: len(arguments) - len(argv)]
        ]
        mistake = re.split("; | \\(", str(error))[0]  # the rest of a message lists what would be right
        if any(re.search(rf"(?<![\w./]){re.escape(key)}(?![\w./])", mistake) for key in keys):
            raise UserError(f"{path}: {error}") from error
        raise


def _sections(group: str) -> tuple[str, ...]:
    """The sections of the configuration that a choice from the group sets."""
    return ("training", "replay", "exploration") if group == "loop" else (group.replace("/", "."),)


def _written(name: str, value: Any) -> str:
    """A value in the grammar of the command line."""
    if isinstance(value, list):
        return f"[{','.join(_written('', item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written('', item)}" for key, item in value.items()) + "}"
    if isinstance(value, str) and name not in GROUPS:
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return plain(value)
