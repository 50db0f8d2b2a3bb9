"""Checks of the batches of a data set: of their structure before a run begins, and of their values each time."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rlcls._errors import UserError, class_name
from rlcls.transition import Transition

from .loop import Dataset, Where


def check_structure(data: Dataset, size: int = 2) -> Transition:
    """A batch of a data set, whose arrays have the shapes of the data set's spec, and its kinds of numbers.

    Args:
      data: the data set.
      size: transitions in the batch.

    Raises:
      UserError: `sample` returns something else.
    """
    sampled: Any = data.sample(size, 0, 0)
    is_pair = isinstance(sampled, tuple) and len(sampled) == 2
    if not (is_pair and isinstance(sampled[0], Transition) and isinstance(sampled[1], tuple)):
        shown = (
            f"({', '.join(type(each).__name__ for each in sampled)})" if is_pair else type(sampled).__name__
        )
        raise UserError(
            f"data: {class_name(data)}.sample must return (Transition, tuple of arrays: where it is from), not {shown}"
        )
    batch, where = sampled
    spec, number = data.spec, jax.ShapeDtypeStruct((), np.float32)
    expected = {
        **dict.fromkeys(("observation", "next_observation"), spec.observation),
        **dict.fromkeys(("action", "next_action"), spec.action),
        **dict.fromkeys(("reward", "discount", "weight", "return_to_go"), number),
    }
    for field, values in batch._asdict().items():
        if values is None and field in Transition._field_defaults:
            continue
        actual, wanted = _shapes(values), _shapes(expected[field], size)
        if actual != wanted:
            raise UserError(
                f"data: {class_name(data)}.sample gives {field} {_show(actual)} in a batch of {size}, and its spec "
                f"says {_show(wanted)}"
            )
    check_values(data, batch, where)
    return batch


def check_values(data: Dataset, batch: Transition, where: Where) -> None:
    """Raises a UserError, which names the row, if a reward or observation is not finite or an action does not exist.

    It costs about 10 microseconds, so it looks at each part of the data once: the next observations and actions of one
    batch are the observations and actions of others.
    """
    for field, tree in (("reward", batch.reward), ("observation", batch.observation)):
        for leaf in [tree] if isinstance(tree, np.ndarray) else jax.tree.leaves(tree):
            if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                item = int(np.argwhere(~np.isfinite(leaf))[0, 0])
                raise UserError(f"data: {class_name(data)}: the {field} is not finite {_place(item, where)}")
    actions, num_actions = batch.action, data.spec.num_actions
    if num_actions is None or not isinstance(actions, np.ndarray):
        return
    if actions.min(initial=0) < 0 or actions.max(initial=0) >= num_actions:
        outside = (actions < 0) | (actions >= num_actions)
        item = int(np.argwhere(outside)[0, 0])
        raise UserError(
            f"data: {class_name(data)}: the action is {actions[outside][0]} {_place(item, where)}, and its spec has "
            f"{num_actions} actions, 0 to {num_actions - 1}"
        )


def _place(item: int, where: Where) -> str:
    """The origin of a batch's item in words."""
    origin = ", ".join(str(axis[item]) for axis in where if np.ndim(axis) and len(axis) > item)
    return f"at row {origin}" if origin else f"in transition {item} of a batch"


def _shapes(tree: Any, size: int | None = None) -> dict[str, tuple[str, list[int]]]:
    """Kind and shape of each leaf by its name; of leaves without a batch axis if `size` is given."""
    kinds = {"f": "float", "i": "integer", "u": "integer", "b": "bool"}
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        shape = [*array.shape] if size is None else [size, *array.shape]
        # Pictures of bytes are scaled by the networks, other integers are not.
        kind = "uint8" if array.dtype == np.uint8 else kinds.get(np.dtype(array.dtype).kind, str(array.dtype))
        shapes[jax.tree_util.keystr(path)] = (kind, shape)
    return shapes


def _show(shapes: dict[str, tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name} {kind} {shape}".strip() for name, (kind, shape) in shapes.items()) or "no array"
