"""Estimates the memory that a run needs, and compares it with the memory that this process may use."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree
from omegaconf import DictConfig

from rlcls._errors import UserError
from rlcls.agents.base import Agent
from rlcls.datasets import Transitions
from rlcls.spec import Spec
from rlcls.training import Placement
from rlcls.training.loop import Dataset

_SHARE = 0.9  # the share of the available memory that a run may need
_PROGRAM = 1 << 29  # bytes of libraries and compiled programs
_EPISODE = 100  # bytes of one evaluation episode: its return and length, as numbers and as a line of metrics
# Bytes of one transition besides its frame: columns, priority, and copies while a checkpoint is written.
_TRANSITION = 37
_ROW = 9  # bytes of a row of a recording besides its columns, in a compiled loop: return to go, place, a flag
_FILES = 256  # files that a run may have open at once, most of them while it writes a checkpoint


class Need(NamedTuple):
    """Memory that one part of a run needs.

    Attributes:
      words: the option that decides the memory, with its value, or a phrase that names the part.
      bytes: the memory in bytes.
      value: the value to which the bytes are proportional; None if there is none.
    """

    words: str
    bytes: int
    value: int | None


def check(
    config: DictConfig,
    agent: Agent[Any],
    spec: Spec,
    frame_stack: int,
    placement: Placement,
    data: Dataset | None = None,
) -> None:
    """Compares an estimate of the arrays that a process of a run holds with the memory that it may use.

    The estimate contains the replay, the parameters and the optimiser's state, the largest activations of the batches,
    the recorded data of a compiled loop, and the episodes of an evaluation. It is too low rather than too high, so that
    no run that fits is refused. A compiled loop holds its arrays in the memory of its devices.

    Raises:
      UserError: the run needs more. The line names the largest part that can be reduced to fit, and a value that fits.
        It names the network if that alone is too large, and the largest part if nothing else helps.
    """
    lanes, memory = config.get("seeds", 1) * len(config.get("settings", [1])), available()
    if "seeds" in config and jax.default_backend() != "cpu":
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        lanes = -(-lanes // placement.data)
    if memory is None:
        return
    needs = [*_replay(config, spec, frame_stack), *_learning(config, agent, spec, placement)]
    if lanes > 1:
        needs = [
            need._replace(bytes=lanes * need.bytes, words=f"{lanes} times {need.words}") for need in needs
        ]
    if "seeds" in config and isinstance(data, Transitions):
        needs.append(_recording(config, data, lanes))
    if episodes := config.eval.get("episodes"):
        needs.append(Need(f"eval.episodes={episodes}", episodes * _EPISODE, episodes))
    room, total = max(0, int(memory * _SHARE) - _PROGRAM), sum(need.bytes for need in needs)
    if total <= room:
        return
    needs.sort(key=lambda need: need.bytes, reverse=True)
    for need in needs:
        rest = total - need.bytes
        fits = _rounded_down((need.value or 0) * max(0, room - rest) // max(1, need.bytes))
        if fits or (need.value is None and (need is needs[0] or need.bytes > room)):
            break
    else:  # two options are each too large, and no value of one of them fits beside the other
        need = needs[0]
    raise UserError(
        f"{need.words} needs {_gib(need.bytes)} GiB of memory, the whole run {_gib(total)}, and this process has room "
        f"for {_gib(room)} (of {_gib(memory)})" + (f"; {fits:,} would fit" if fits else "")
    )


def available(system: Path = Path("/")) -> int | None:
    """The bytes of memory that this process may use: the machine's, or less under a control group or `ulimit -v`.

    Args:
      system: the folder that holds `proc` and `sys`.

    Returns:
      None if the system does not tell.
    """
    limits = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    with contextlib.suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                limits += _group_limits(system / "sys/fs/cgroup", path, "memory.max")
            elif "memory" in controllers.split(","):
                limits += _group_limits(system / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def allow_open_files() -> None:
    """Raises this process's limit of open files to the number that a checkpoint needs.

    Raises:
      UserError: the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FILES:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, hard))
        except (OSError, ValueError):
            raise UserError(
                f"this process may open {hard} files and a checkpoint needs up to {_FILES}: ulimit -n {_FILES}"
            ) from None


def _group_limits(root: Path, path: str, name: str) -> list[int]:
    """The limits of a control group and of the groups that contain it, up to `root`."""
    group = root / path.lstrip("/")
    limits = []
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # the file is missing, or contains "max"
            limits.append(int((folder / name).read_text()))
        if folder == root:
            break
    return limits


def _replay(config: DictConfig, spec: Spec, frame_stack: int) -> list[Need]:
    """The replay's ring; empty if the run has no replay, or a replay of the user's own without `capacity`."""
    observation = spec.observation
    if "capacity" not in config.get("replay", {}) or not isinstance(observation, jax.ShapeDtypeStruct):
        return []
    shape = observation.shape[1:] if frame_stack else observation.shape
    frame_bytes = math.prod(shape) * observation.dtype.itemsize
    capacity = int(config.replay.capacity)
    return [Need(f"replay.capacity={capacity}", capacity * (frame_bytes + _TRANSITION), capacity)]


def _recording(config: DictConfig, data: Transitions, lanes: int) -> Need:
    """The recording on the device, and the columns that differ between lanes."""
    rows, columns = data.recording.columns.num_rows, data.recording.manifest.layout.columns.values()
    row = _ROW + sum(dtype.itemsize * math.prod(shape) for dtype, shape in columns)
    of_lane = 8 * bool(config.data.get("reward_noise")) + 4 * bool(config.data.get("held_out"))
    return Need(f"a recording of {rows:,} rows", rows * (row + lanes * of_lane), rows)


def _learning(config: DictConfig, agent: Agent[Any], spec: Spec, placement: Placement) -> list[Need]:
    """The parameters with the optimiser's state and copies, and the batches with their activations.

    Empty on an accelerator, whose own memory holds them. JAX reports by itself that this memory is too small.
    """
    if jax.default_backend() != "cpu":
        return []
    state = jax.eval_shape(agent.init, jax.eval_shape(jax.random.key, 0))
    acting = jax.eval_shape(agent.acting, state)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(acting))
    # The devices of a CPU share its memory, and each row of a mesh has a network. `check` multiplies by the lanes.
    rows = 1 if "seeds" in config else max(1, placement.devices_here // placement.model)
    words = f"a network of {parameters:,} parameters" + (f" on each of {rows} devices" if rows > 1 else "")
    # Besides the state there are the gradient and two copies of the acting part.
    needs = [Need(words, rows * (_bytes(state) + 3 * _bytes(acting)), None)]
    sizes = {"training.batch_size": config.training.get("batch_size")}
    # A compiled loop computes no diagnostics.
    if "replay" in config and config.diagnostics.every and "seeds" not in config:
        sizes["diagnostics.batch_size"] = config.diagnostics.batch_size
    for option, size in sizes.items():
        if size:
            own = int(size) // placement.hosts
            needs.append(Need(f"{option}={size}", _batch_bytes(agent, acting, spec, own), int(size)))
    return needs


def _batch_bytes(agent: Agent[Any], acting: PyTree, spec: Spec, size: int) -> int:
    """The observations of a batch and of its next states, and the largest activations with their gradient."""
    observations = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype), spec.observation
    )
    jaxpr = jax.make_jaxpr(agent.act)(acting, observations, jax.eval_shape(jax.random.key, 0), 0.0)
    outputs = (variable.aval for equation in jaxpr.eqns for variable in equation.outvars)
    return 2 * _bytes(observations) + 2 * max((_bytes(aval) for aval in outputs), default=0)


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f}"


def _rounded_down(value: int) -> int:
    """The value, rounded down to two significant digits."""
    unit = 10 ** max(0, len(str(value)) - 2)
    return value // unit * unit
