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

_SHARE = 0.9  # of the memory that this process may use
_PROGRAM = 1 << 29  # bytes of libraries and compiled programs, which no array holds
_EPISODE = 100  # bytes of one evaluation episode: its return and length, as numbers and as a line of metrics
_TRANSITION = (
    37  # bytes of one transition besides its frame: columns, priority, and copies while a checkpoint is made
)
_ROW = 9  # bytes of a row of a recording besides its columns, in a compiled loop: return to go, place, a flag
_FILES = 256  # files that a run may have open at once; most of them are of a checkpoint that is being written


class Need(NamedTuple):
    """Memory that an option decides.

    Attributes:
      words: the option and its value, or what needs the memory.
      bytes: how many.
      value: the value of an option to which the bytes are proportional; None where they are not.
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

    The estimate is of the replay, the parameters and the optimiser's state, the largest activations of the batches, the
    recorded data of a compiled loop, and the episodes of an evaluation. It is rather too low, so that no run is refused
    that would have fitted. A compiled loop holds its arrays in the memory of its devices.

    Raises:
      UserError: the run needs more; the line names the option that needs most, and a value that fits.
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
    for need in sorted(needs, key=lambda need: need.bytes, reverse=True):
        rest = total - need.bytes
        fits = _rounded_down((need.value or 0) * max(0, room - rest) // max(1, need.bytes))
        # No batch fits if the network is what is too large.
        if need.value is None or fits:
            break
    raise UserError(
        f"{need.words} needs {_gib(need.bytes)} GiB of memory, the whole run {_gib(total)}, and this process has room "
        f"for {_gib(room)} (of {_gib(memory)})" + (f"; {fits:,} would fit" if fits else "")
    )


def available(system: Path = Path("/")) -> int | None:
    """The bytes of memory that this process may use: the machine's, or less under a control group or `ulimit -v`.

    Args:
      system: the folder that holds `proc` and `sys`.

    Returns:
      None where the system does not say it.
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
    """Raises this process's limit of open files to what a checkpoint needs.

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
    """The limits of a control group and of those around it; inside a container the outermost is at the root."""
    group = root / path.lstrip("/")
    limits = []
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # no such file; the word "max"
            limits.append(int((folder / name).read_text()))
        if folder == root:
            break
    return limits


def _replay(config: DictConfig, spec: Spec, frame_stack: int) -> list[Need]:
    """The ring; none where the run has none, or one whose options are its own."""
    observation = spec.observation
    if "capacity" not in config.get("replay", {}) or not isinstance(observation, jax.ShapeDtypeStruct):
        return []
    shape = observation.shape[1:] if frame_stack else observation.shape
    frame_bytes = math.prod(shape) * observation.dtype.itemsize
    capacity = int(config.replay.capacity)
    return [Need(f"replay.capacity={capacity}", capacity * (frame_bytes + _TRANSITION), capacity)]


def _recording(config: DictConfig, data: Transitions, lanes: int) -> Need:
    """The recording on the device, and the columns that each lane has of its own."""
    rows, columns = data.recording.columns.num_rows, data.recording.manifest.layout.columns.values()
    row = _ROW + sum(dtype.itemsize * math.prod(shape) for dtype, shape in columns)
    of_lane = 8 * bool(config.data.get("reward_noise")) + 4 * bool(config.data.get("held_out"))
    return Need(f"a recording of {rows:,} rows", rows * (row + lanes * of_lane), rows)


def _learning(config: DictConfig, agent: Agent[Any], spec: Spec, placement: Placement) -> list[Need]:
    """Parameters with what learning keeps beside them, and the batches with their activations.

    An accelerator has its own memory, of which JAX reports a lack by itself.
    """
    if jax.default_backend() != "cpu":
        return []
    state = jax.eval_shape(agent.init, jax.eval_shape(jax.random.key, 0))
    acting = jax.eval_shape(agent.acting, state)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(acting))
    # The devices of a CPU share its memory, and each row of a mesh has a network. Lanes are counted elsewhere.
    rows = 1 if "seeds" in config else max(1, placement.devices_here // placement.model)
    words = f"a network of {parameters:,} parameters" + (f" on each of {rows} devices" if rows > 1 else "")
    # The state, the gradient, and two copies that act.
    needs = [Need(words, rows * (_bytes(state) + 3 * _bytes(acting)), None)]
    sizes = {"training.batch_size": config.training.get("batch_size")}
    # A compiled loop diagnoses nothing.
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
    """The value with two digits that count."""
    unit = 10 ** max(0, len(str(value)) - 2)
    return value // unit * unit
