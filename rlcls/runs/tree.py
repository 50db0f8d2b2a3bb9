"""Writes a pytree of arrays with Orbax, and checks that it reads back with the same bits."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from rlcls._errors import UserError, one_line
from rlcls.files import NotAsWritten

FOLDER = "tree"


def reserve(path: Path, tree: PyTree) -> None:
    """Raises an OSError if the tree does not fit on the disk, which Orbax would report in pages of tracebacks."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + 1
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            file.write(bytes(size))
    path.unlink()


def write(folder: Path, tree: PyTree) -> None:
    """Writes a tree, reads it back, and compares all bits.

    The processes of a run write it together. Each writes and compares the parts on its own devices.

    Raises:
      OSError: the files cannot be written.
      NotAsWritten: Orbax cannot write the tree, or it reads back with other values.
    """
    import orbax.checkpoint as ocp

    with _orbax(folder) as (checkpointer, path):
        try:
            checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
        except OSError:
            raise
        except Exception as error:  # Orbax and TensorStore raise exceptions of many types
            raise NotAsWritten(f"Orbax cannot write the tree: {one_line(error)}") from error
    data = jax.tree.map(_key_data, tree)
    with _orbax(folder) as (checkpointer, path):
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        on_the_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        try:
            options = ocp.args.PyTreeRestore(wanted, restore_args=on_the_host)
            same = jax.tree.map(_holds, checkpointer.restore(path, args=options), data)
        except Exception as error:
            raise NotAsWritten(f"the tree cannot be read back: {one_line(error)}") from error
    for name, is_same in jax.tree_util.tree_leaves_with_path(same):
        if not is_same:
            raise NotAsWritten(f"the tree reads back with other values of {jax.tree_util.keystr(name)}")


def read(folder: Path, like: PyTree) -> PyTree:
    """The part of the tree in `folder` that is in `like`, with the shapes, dtypes and shardings of `like`.

    Args:
      folder: the argument of `write`.
      like: a pytree of arrays or `jax.ShapeDtypeStruct`s. Entries of dicts may be left out.

    Raises:
      UserError: the tree lacks a part, or its shapes differ.
    """
    import orbax.checkpoint as ocp

    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, jax.tree.map(_key_data, like))
    with _orbax(folder) as (checkpointer, path):
        _check_shapes(checkpointer.metadata(path).item_metadata.tree, wanted, folder)
        options = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        return checkpointer.restore(path, args=options)


def reason(error: Exception) -> str:
    """The operating system's message for an error, in a few words."""
    # TensorStore's messages contain that of the operating system.
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
        return "no space left"
    return (isinstance(error, OSError) and error.strerror) or one_line(error)


@contextlib.contextmanager
def _orbax(folder: Path) -> Iterator[tuple[Any, Path]]:
    """Yields Orbax's checkpointer, and a path to the tree in `folder`.

    The path contains a symbolic link with a plain name, because Orbax and TensorStore treat characters such as [ and *
    as patterns, and write trees that cannot be read. With several processes there is no link, because all of them must
    pass the same path.

    Raises:
      UserError: the link cannot be made, or several processes would need one.
    """
    import orbax.checkpoint as ocp

    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_tracebacks())
        checkpointer = stack.enter_context(ocp.Checkpointer(ocp.PyTreeCheckpointHandler()))
        if jax.process_count() > 1:
            if set(str(folder)) & set("[]*?{}"):
                raise UserError(
                    f"{folder}: several processes need a run folder without any of []*?{{}} in its name"
                )
            yield checkpointer, folder.resolve() / FOLDER
            return
        try:
            place = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="rlcls-", ignore_cleanup_errors=True)
            )
            link = Path(place, "checkpoint")
            link.symlink_to(folder.resolve(), target_is_directory=True)
        except OSError as error:
            raise UserError(
                f"cannot make a temporary folder ({reason(error)}); set TMPDIR to another place"
            ) from error
        yield checkpointer, link / FOLDER


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Silences absl's errors, because Orbax's threads log tracebacks of exceptions that the caller gets anyway."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _key_data(leaf: Any) -> Any:
    """The integers of a typed random key, which Orbax stores; other leaves are unchanged."""
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, leaf)
        # Orbax restores the dtype of these integers only if they have a sharding.
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
    return jax.random.key_data(leaf)


def _holds(restored: np.ndarray, leaf: Any) -> bool:
    """Whether an array on the host equals, bit for bit, the parts of a leaf on this process's devices."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return _same_bits(restored, jax.device_get(leaf))
    return all(
        _same_bits(restored[shard.index], jax.device_get(shard.data)) for shard in leaf.addressable_shards
    )


def _same_bits(a: Any, b: Any) -> bool:
    first, second = (np.ascontiguousarray(each).reshape(-1) for each in (a, b))
    return first.dtype == second.dtype and np.array_equal(first.view(np.uint8), second.view(np.uint8))


def _check_shapes(saved: Mapping[str, Any], wanted: PyTree, folder: Path) -> None:
    """Raises a UserError if the saved tree does not have the leaves of `wanted` in their shapes."""
    import orbax.checkpoint as ocp

    present, expected = (ocp.tree.to_flat_dict(tree, sep=".") for tree in (saved, wanted))
    for name, leaf in expected.items():
        if name not in present:
            raise UserError(f"{folder} does not fit the run's configuration: it has no {name}")
        shape = tuple(present[name].shape)
        if shape != leaf.shape:
            raise UserError(
                f"{folder} does not fit the run's configuration: {name} has shape {list(shape)} there, but "
                f"{list(leaf.shape)} in the configuration"
            )
