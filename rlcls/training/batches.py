"""Checks the batches of a data set: the structure of one before a run begins, and the values of each."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rlcls._errors import UserError, class_name
from rlcls.transition import Transition

from .loop import Dataset, Where


def check_structure(data: Dataset, size: int = 2) -> Transition:
    """Samples a batch, and checks the shapes and dtypes of its arrays against the spec of the data set.

    Args:
      data: the data set.
      size: transitions in the batch.

    Raises:
      UserError: they differ, or `sample` does not return a batch and its origin.
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

    It takes about 10 microseconds. It does not read next observations and next actions, because they are the
    observations and actions of other transitions.
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
    """A phrase that names the origin of an item of a batch."""
    origin = ", ".join(str(axis[item]) for axis in where if np.ndim(axis) and len(axis) > item)
    return f"at row {origin}" if origin else f"in transition {item} of a batch"


def _shapes(tree: Any, size: int | None = None) -> dict[str, tuple[str, list[int]]]:
    """The kind and shape of each leaf, by its name. If `size` is given, it is added to each shape as the batch axis."""
    kinds = {"f": "float", "i": "integer", "u": "integer", "b": "bool"}
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        shape = [*array.shape] if size is None else [size, *array.shape]
        # "uint8" is a kind of its own, because networks scale images of bytes and no other integers.
        kind = "uint8" if array.dtype == np.uint8 else kinds.get(np.dtype(array.dtype).kind, str(array.dtype))
        shapes[jax.tree_util.keystr(path)] = (kind, shape)
    return shapes


def _show(shapes: dict[str, tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name} {kind} {shape}".strip() for name, (kind, shape) in shapes.items()) or "no array"
