"""Checks the values of a configuration: their kinds, which the YAML files show, and rules that concern several parts.

The constructor that takes an option checks all other rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rlcls._errors import UserError, nearest
from rlcls.runs.identity import leaves, plain
from rlcls.runs.resume import CHOICES as RESUMES

from .arguments import DEVICES
from .help import GROUPS

# The kinds of options that are null in the YAML files.
_KIND_BESIDES_NULL: dict[str, type] = {
    "agent.optimizer.momentum": float,
    "backbone.vocabulary": int,
    "agent.schedule._target_": str,
    "data._target_": str,
    "device": str,
    "run_dir": str,
    "mesh.data": int,
    "mesh.rules": list,
    "distributed.coordinator": str,
    "distributed.num_processes": int,
    "distributed.process_id": int,
    "resume": str,
    "eval.epsilon": float,
    "training.vmap": bool,
    "logging.wandb": str,
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
# A constructor takes the options of such a section, and has a default for an option that is left out.
_SECTIONS = (*(group for group in GROUPS if "/" not in group), "training", "replay", "exploration")

# Options of optax's optimisers: the weight of the past in a running mean, and other numbers that are not negative.
_SHARES = ("b1", "b2", "b3", "decay", "momentum")
_AMOUNTS = ("eps", "eps_root", "weight_decay")

_KINDS_OF_LINES = ("train", "eval", "episode", "diagnostics", "refill")

# An option, a function that says whether a value is possible, and the possible values in words.
_Rule = tuple[str, Callable[[Any], bool], str]


def _at_least(least: float, *options: str) -> list[_Rule]:
    return [(option, lambda value: value >= least, f"at least {least:g}") for option in options]


_RULES: list[_Rule] = [
    # Counters inside compiled programs have 32 bits.
    ("steps", lambda value: 1 <= value < 2**31, f"between 1 and {2**31 - 1}"),
    *_at_least(1, "checkpoint.every", "checkpoint.keep", "logging.every", "diagnostics.batch_size"),
    *_at_least(1, "seeds"),
    *_at_least(0, "diagnostics.every", "eval.every", "checkpoint.keep_every"),
    # jax.random.key uses 32 bits, so a larger seed would equal a smaller one.
    ("seed", lambda value: 0 <= value < 2**32, f"between 0 and {2**32 - 1}"),
    ("game", lambda name: name != "", "a name"),
    *((option, lambda name: name != "", "a name") for option in ("env.id", "env.task")),
    ("run_dir", lambda path: path != "", "a path"),
]


def check(config: dict[str, Any], known: dict[str, Any], *, trains: bool = True) -> None:
    """Raises a UserError at the first impossible value, and converts values to their kinds, such as 1e6 to an int.

    Args:
      config: nested dictionaries of plain values, changed in place.
      known: the same without the user's own values. It shows which options exist, and their kinds.
      trains: whether the rules that concern only training are checked, too.
    """
    for option, sample in leaves(known):
        section, _, name = option.rpartition(".")
        place = _section(config, section)
        if place is None or name not in place:
            if section.partition(".")[0] in _SECTIONS:
                continue
            raise UserError(f"{option}: cannot be left out")
        place[name] = _of_kind(option, place[name], sample)
    values = dict(leaves(config))
    for option, value in values.items():
        if isinstance(value, str) and value == "???":
            raise UserError(f"{option}: give a value, recipe={config['choices']['recipe']} has none here")
    for option, holds, words in [*_RULES, *_optimizer_rules(values)]:
        value = values.get(option)
        if value is not None and not holds(value):
            raise UserError(f"{option}: expected {words}, not {_show(value)}")
    if trains:
        _check_environments(values)
    if values["device"] not in (None, *DEVICES):
        raise UserError(f"unknown device {values['device']!r}" + nearest(values["device"], DEVICES))
    if values["resume"] not in (None, *RESUMES):
        raise UserError(f"unknown resume {values['resume']!r}" + nearest(values["resume"], RESUMES))
    for name, evaluator in config["evals"].items():
        if not isinstance(evaluator, Mapping) or not {"_target_", "every"} <= evaluator.keys():
            raise UserError(f"evals.{name}: an evaluator needs evals.{name}._target_ and evals.{name}.every")
        every = evaluator["every"]
        if type(every) is not int or every < 0:
            raise UserError(f"evals.{name}.every: expected a whole number of at least 0, not {_show(every)}")
        if name in _KINDS_OF_LINES:
            raise UserError(f"evals.{name}: the metrics already have lines of that kind; choose another name")


def _optimizer_rules(values: Mapping[str, Any]) -> list[_Rule]:
    """The ranges of the numbers that optax's optimisers take and do not check."""
    if not str(values.get("agent.optimizer._target_")).startswith("optax."):
        return []
    is_number = {
        name for name in (*_SHARES, *_AMOUNTS) if type(values.get(f"agent.optimizer.{name}")) in (int, float)
    }
    shares = [f"agent.optimizer.{name}" for name in _SHARES if name in is_number]
    amounts = [f"agent.optimizer.{name}" for name in _AMOUNTS if name in is_number]
    return [
        *((option, lambda value: 0 <= value < 1, "at least 0 and below 1") for option in shares),
        *_at_least(0, *amounts),
    ]


def _check_environments(values: Mapping[str, Any]) -> None:
    """Raises a UserError if there are more environments than the loop accepts.

    The loop's constructor checks the same, but only once the environments are made. 3,000 games take minutes to start.
    """
    num_envs, min_size, n_step, lag = (
        values.get(name) for name in ("env.num_envs", "replay.min_size", "replay.n_step", "training.lag")
    )
    if not (type(num_envs) is type(min_size) is type(n_step) is type(lag) is int):
        return
    rows = n_step + lag
    if n_step >= 1 and lag >= 0 and num_envs * rows > min_size:
        fits = f"; at most {min_size // rows} environments would do" if min_size >= rows else ""
        raise UserError(
            f"training: replay.min_size ({min_size}) must be at least {num_envs * rows}: {n_step}-step returns of "
            f"{num_envs} environments at a lag of {lag} are not complete before{fits}"
        )


def _of_kind(option: str, value: Any, sample: Any) -> Any:
    """The value, converted to the kind of the option; `sample` is the option's value in the YAML files.

    Raises:
      UserError: the value is of another kind.
    """
    kind = _KIND_BESIDES_NULL.get(option)
    if kind is None:
        if sample is None or sample == "???" or (isinstance(sample, str) and sample.startswith("${")):
            return value
        kind = type(sample)
    elif value is None:
        return None
    if kind is str and isinstance(value, (int, float)):
        return str(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{option}: expected {_KINDS.get(kind, kind.__name__)}, not {_show(value)}")
    return value


def _section(config: dict[str, Any], dotted: str) -> dict[str, Any] | None:
    """The section with this dotted name; None if there is none."""
    place: Any = config
    for part in dotted.split(".") if dotted else []:
        place = place.get(part) if isinstance(place, dict) else None
    return place if isinstance(place, dict) else None


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else plain(value)
