"""What a configuration's values may be: the kind that the YAML shows, and sizes that are possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rlcls._errors import UserError, nearest

_DEVICES = ("cpu", "gpu", "tpu")
# The kind of a value cannot be seen where the YAML says null.
_KIND_BESIDES_NULL: dict[str, type] = {
    "backbone.vocabulary": int,
    "device": str,
    "run_dir": str,
    "eval.epsilon": float,
    "logging.wandb": str,
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}

# Option, what holds for a possible value, and the words for it.
_Rule = tuple[str, Callable[[Any], bool], str]


def _at_least(least: float, *options: str) -> list[_Rule]:
    return [(option, lambda value: value >= least, f"at least {least:g}") for option in options]


def _above_zero(*options: str) -> list[_Rule]:
    return [(option, lambda value: value > 0, "above 0") for option in options]


def _share(*options: str) -> list[_Rule]:
    return [(option, lambda value: 0 <= value <= 1, "between 0 and 1") for option in options]


def _are_sizes(value: Any) -> bool:
    """Of layers one after another, or of the one that there is."""
    return all(type(n) is int and n > 0 for n in (value if isinstance(value, list) else [value]))


def _is_span(value: list[Any]) -> bool:
    return len(value) == 2 and all(type(n) is int for n in value) and 0 <= value[0] < value[1]


_RULES: list[_Rule] = [
    *_at_least(1, "steps", "env.num_envs", "agent.target_period", "replay.capacity", "replay.min_size"),
    *_at_least(1, "replay.n_step", "training.batch_size", "training.update_period", "training.reseed_every"),
    *_at_least(1, "eval.every", "eval.episodes", "checkpoint.every", "checkpoint.keep", "logging.every"),
    *_at_least(0, "diagnostics.every"),
    *_at_least(1, "diagnostics.batch_size"),
    # jax.random.key takes 32 bits, and would make two seeds one.
    ("seed", lambda value: 0 <= value < 2**32, f"between 0 and {2**32 - 1}"),
    *_at_least(0, "env.num_threads", "training.lag", "exploration.epsilon_decay"),
    *_at_least(
        0,
        "agent.max_gradient_norm",
        "replay.priority_exponent",
        "replay.importance_exponent",
        "replay.reward_clip",
    ),
    *_above_zero("agent.learning_rate", "agent.adam_eps", "loss.sigma_ratio", "loss.delta", "loss.kappa"),
    ("agent.learning_rate_fall", _is_span, "two updates, the first before the last, such as [60000,80000]"),
    *_share("replay.gamma", "exploration.epsilon_start", "exploration.epsilon_end", "eval.epsilon"),
    *_share("agent.learning_rate_floor"),
    ("agent.target_tau", lambda value: 0 < value <= 1, "above 0 and at most 1"),
    *_at_least(2, "loss.num_bins"),
    *_at_least(1, "loss.num_quantiles"),
    ("backbone.hidden", _are_sizes, "sizes, such as [64,64]"),
    ("backbone.width", lambda value: value >= 1, "at least 1"),
    ("game", lambda name: name != "", "a name"),
    ("run_dir", lambda path: path != "", "a path"),
]

# Two options, of which the first must be so to the second.
_PAIRS = [
    ("replay.capacity", ">=", "replay.min_size", "at least"),
    ("replay.min_size", ">=", "training.batch_size", "at least"),
    ("replay.capacity", ">", "env.num_envs", "above"),
    ("loss.vmin", "<", "loss.vmax", "below"),
]
_HOLDS = {">=": lambda a, b: a >= b, ">": lambda a, b: a > b, "<": lambda a, b: a < b}


def check(config: dict[str, Any], known: dict[str, Any]) -> None:
    """Raises a UserError at the first impossible value, and makes 1e6 the whole number where one is meant.

    Args:
      config: nested dictionaries of plain values, changed in place.
      known: the same without the user's own values: it shows which options there are and of which kind.
    """
    for option, sample in leaves(known):
        section, _, name = option.rpartition(".")
        place = _section(config, section)
        if place is None or name not in place:
            if section in ("agent", "loss", "backbone", "env"):  # the object's own default, or it has none
                continue
            raise UserError(f"{option}: cannot be left out")
        place[name] = _of_kind(option, place[name], sample)
    for option, value in leaves(config):
        if isinstance(value, str) and value == "???":
            raise UserError(f"{option}: give a value, recipe={config['choices']['recipe']} has none here")
    _check_sizes(config)


def _of_kind(option: str, value: Any, sample: Any) -> Any:
    kind = _KIND_BESIDES_NULL.get(option)
    if kind is None:
        if sample is None or sample == "???":
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


def _check_sizes(config: dict[str, Any]) -> None:
    values = dict(leaves(config))
    for option, holds, words in _RULES:
        value = values.get(option)
        if value is not None and not holds(value):
            raise UserError(f"{option}: expected {words}, not {_show(value)}")
    if values["device"] not in (None, *_DEVICES):
        raise UserError(f"unknown device {values['device']!r}" + nearest(values["device"], _DEVICES))
    for first, relation, second, words in _PAIRS:
        a, b = values.get(first), values.get(second)
        if a is not None and b is not None and not _HOLDS[relation](a, b):
            raise UserError(f"{first} ({a}) must be {words} {second} ({b})")


def _section(config: dict[str, Any], dotted: str) -> dict[str, Any] | None:
    place: Any = config
    for part in dotted.split(".") if dotted else []:
        place = place.get(part) if isinstance(place, dict) else None
    return place if isinstance(place, dict) else None


def leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The values of a nested dictionary by their dotted names."""
    found = []
    for key, value in tree.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


def plain(value: Any) -> str:
    """A value as the command line writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else plain(value)
