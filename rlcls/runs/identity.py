"""Decides whether one configuration can continue the run of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Options about the place, length and reports of a run. A run can continue if they change.
_OUTSIDE = (
    "choices",
    "steps",
    "run_dir",
    "device",
    "logging",
    "diagnostics",
    "checkpoint",
    "resume",
    "mesh",
    "distributed",
)


def identity(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits, which are equal if two configurations can continue each other's run."""
    text = json.dumps({key: _number(value) for key, value in leaves(_inside(config))}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each option that prevents `now` from continuing the run of `before`.

    >>> difference({"seed": 1, "steps": 5}, {"seed": 0, "steps": 9})
    ['seed is 1 there and 0 here']
    """
    old, new = dict(leaves(_inside(before))), dict(leaves(_inside(now)))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if key not in old:
            lines.append(f"{key} is absent there and {plain(new[key])} here")
        elif key not in new:
            lines.append(f"{key} is {plain(old[key])} there and absent here")
        elif _number(old[key]) != _number(new[key]):
            lines.append(f"{key} is {plain(old[key])} there and {plain(new[key])} here")
    return lines


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The values of a nested dictionary by their dotted names."""
    rows = []
    for key, value in tree.items():
        rows += (
            leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
        )
    return rows


def plain(value: Any) -> str:
    """A value in the syntax of the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _inside(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _OUTSIDE}


def _number(value: Any) -> Any:
    """The value with integral floats as ints, because 10 and 10.0 are equal in a configuration."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_number(item) for item in value] if isinstance(value, list) else value
