"""Trains many seeds with one compiled program of environments, replay and updates, or of updates from a recording."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from rlcls._errors import UserError

from .learner import Diverged
from .lifting import Lifted, lift
from .loop import Saved, Tick, check_same_data
from .offline_program import OfflineLane, OfflineProgram
from .placement import Placement
from .program import Episodes, Lane, Program

_AnyProgram: TypeAlias = Program | OfflineProgram
_REHEARSAL = 0.5  # seconds; `warm_up` measures the loop for at least this long


class Compiled:
    """A `Loop` of many lanes. One `advance` takes all of them from one line of metrics to the next.

    A lane trains one seed of one setting. It plays (`Program`), or it learns from a recording that all lanes share on
    the device (`OfflineProgram`). Settings that differ only in numbers, such as the learning rate, share one compiled
    program. Other settings, such as those with different networks, have programs of their own, which run one after
    another. With `vmap` one call of a program advances all of its lanes; without, each lane has a call of its own.
    Agent steps and updates are counted for one lane.

    Without vmap, a lane's results do not depend on the other lanes: seed 7 of ten seeds has the same bits as seed 7
    alone. With vmap, XLA may round differently for another number of lanes. A number that differs between settings is
    an argument of the program, not a constant in it. A setting among others can therefore differ in the last bits from
    the same setting alone.

    On a mesh with vmap, the lanes of a program are divided over the devices. On a mesh without vmap, lane i runs on
    device i modulo the number of devices. No device waits for another.

    Args:
      settings: the program of each setting. All make their updates after the same agent steps.
      seeds: different numbers.
      log_every: agent steps, or updates without environments, between two "train" lines.
      placement: the devices of the lanes; None takes one.

    Attributes:
      settings: the program of each setting.
      unit: "agent_steps", or "updates" without environments.
      lanes: (setting, seed) of each lane, the order of all lists of metrics; settings vary slowest.

    Raises:
      ValueError: there is no setting or no seed, seeds are equal, settings advance at different paces, or the lanes
        cannot be divided over the mesh.
    """

    def __init__(
        self,
        settings: Sequence[Program | OfflineProgram],
        seeds: Sequence[int],
        *,
        log_every: int,
        placement: Placement | None = None,
    ):
        if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
            raise ValueError(f"seeds must be different numbers below 2**32, at least one, not {list(seeds)}")
        paces = {(each.units, each.updates, each.warm_iterations, each.vmap) for each in settings}
        if len(paces) != 1:
            raise ValueError(
                "settings that train together must have equal env.num_envs, training.update_period, training.vmap and "
                "replay.min_size"
            )
        self._placement = placement = placement or Placement()
        if placement.model > 1:
            raise ValueError(f"a lane is trained on one device: give mesh.model=1, not {placement.model}")
        self._first, self.unit = settings[0], settings[0].unit
        self.lanes = [(setting, seed) for setting in range(len(settings)) for seed in seeds]
        self._log_every = max(1, log_every // self._first.units)  # iterations
        self._until: int | None = None
        self.number = 0  # iterations so far
        self._cleared_at = 0  # the iteration at which the sums were last cleared
        self._halfway = False  # whether an exception left the groups at different iterations
        self._recent_return: list[float | None] = [None] * len(self.lanes)
        self.settings = settings
        self._groups = []
        data = _Data([settings[setting].columns(seed) for setting, seed in self.lanes], placement)
        for shared in _grouped(settings, data, placement):
            places = [place for place, (setting, _) in enumerate(self.lanes) if setting in shared.numbers]
            together = [places] if self._first.vmap else [[place] for place in places]
            if self._first.vmap and len(places) % placement.data:
                raise ValueError(
                    f"mesh.data ({placement.data}) must divide the {len(places)} lanes that are one program"
                )
            self._groups += [_Group(shared, self.lanes, each, data, placement) for each in together]
        for group in self._groups:
            group.begin()

    @property
    def counts(self) -> dict[str, int]:
        units, updates = self.number * self._first.units, {"updates": self._updates(self.number)}
        return updates if self.unit == "updates" else {"agent_steps": units, "frames": units} | updates

    def acting(self) -> PyTree:
        """A dict from the number of each lane, as text, to the part of its agent that acts."""
        acting = {}
        for group in self._groups:
            stacked = group.acting()
            for place, lane in enumerate(group.lanes):
                acting[str(lane)] = jax.tree.map(lambda leaf, place=place: leaf[place], stacked)
        return acting

    def advance(self) -> list[tuple[str, dict[str, Any]]]:
        """The iterations up to the next line of metrics, or to the end of the run if that comes first."""
        last = (self.number // self._log_every + 1) * self._log_every
        if self._until is not None and self.number < self._until:
            last = min(last, self._until)
        self._halfway = True
        # All calls are dispatched before the first result is read.
        results = [group.run(self.number, last) for group in self._groups]
        for group, (finite, sound) in zip(self._groups, jax.device_get(results), strict=True):
            if not sound.all():
                steps = (number * self._first.units for number in (self.number, last))
                raise UserError(
                    f"{self._first.name}: a reward or an observation of {self._name(group, sound)} is not finite "
                    f"between agent steps {' and '.join(f'{each:,}' for each in steps)}"
                )
            if not finite.all():
                raise Diverged(
                    f"{self._name(group, finite)}: a loss or parameter is not finite after update "
                    f"{self._updates(last)}, and was finite after update {self._updates(self.number)}"
                )
        self.number, self._halfway = last, False
        if last % self._log_every:
            return []
        values, self._recent_return = self._values()
        line = ("train", of_lanes(values))
        for group in self._groups:
            group.clear()
        self._cleared_at = self.number
        return [line]

    def summary(self) -> dict[str, Any]:
        """Means over the updates, and over the episodes finished, since the last "train" line; see `of_lanes`."""
        return of_lanes(self._values()[0])

    def _values(self) -> tuple[dict[str, list[Any]], list[float | None]]:
        """The values of each lane by name, and the mean return of the last episodes of each."""
        values: dict[str, list[Any]] = {}
        recent = list(self._recent_return)
        updates = self._updates(self.number) - self._updates(self._cleared_at)
        for group in self._groups:
            sums, episodes = jax.device_get((group.state.sums, _counted(group.state.episodes)))
            for place, lane in enumerate(group.lanes):
                one = {name: float(sums[name][place]) / updates if updates else None for name in sums}
                setting = self.settings[self.lanes[lane][0]]
                if isinstance(setting, Program):
                    (counts, returns, lengths), finished = episodes
                    count = int(counts[place])
                    if count:
                        recent[lane] = float(returns[place] / count)
                    one |= {
                        "epsilon": float(setting.epsilon(self.counts["agent_steps"])),
                        "episode_return": recent[lane],
                        "episode_length": float(lengths[place] / count) if count else None,
                        "episodes": int(finished[place]),
                    }
                for name, value in one.items():
                    values.setdefault(name, [None] * len(self.lanes))[lane] = value
        return values, recent

    def _name(self, group: _Group, good: np.ndarray) -> str:
        """The name of the first lane whose entry in `good` is False."""
        setting, seed = self.lanes[group.lanes[int(np.argmin(good))]]
        return f"seed {seed}" + (f" of setting {setting}" if len(self.settings) > 1 else "")

    def warm_up(self, until: int) -> float:
        """Compiles what a run to `until` agent steps (or updates) needs, and measures half a second of learning.

        Call it before the first `advance` or `restore`, because it then resets all lanes.

        Returns:
          Seconds for one agent step (or update) of every lane.
        """
        self._until = -(-until // self._first.units)
        first, seconds = self._first.warm_iterations, 0.0
        jax.block_until_ready([group.run(0, first) for group in self._groups])
        count = 1
        while seconds < _REHEARSAL:
            count *= 2
            begun = time.perf_counter()
            jax.block_until_ready([group.run(first, first + count) for group in self._groups])
            seconds = time.perf_counter() - begun
        for group in self._groups:
            group.begin()
        return seconds / (count * self._first.units)

    def save(self) -> Saved:
        """The state of all lanes. It contains replays, but no recorded data.

        Raises:
          RuntimeError: an `advance` failed halfway.
        """
        if self._halfway:
            raise RuntimeError("the last step ended halfway")
        counters = {
            "number": self.number,
            "cleared_at": self._cleared_at,
            "recent_return": self._recent_return,
            "data": self._first.identity,
            "mesh": self._placement.sizes,
        }
        lanes = {str(number): group.state for number, group in enumerate(self._groups)}
        return Saved({"acting": self.acting(), "lanes": lanes}, {}, counters)

    def restore(self, saved: Saved, tick: Tick = lambda done, total: None) -> None:
        """Continues from a saved state.

        Raises:
          UserError: the identity of the data has changed since then.
        """
        del tick
        check_same_data(saved.counters.get("data"), self._first.identity)
        for number, group in enumerate(self._groups):
            group.state = saved.tree["lanes"][str(number)]
        self.number = saved.counters["number"]
        self._cleared_at = saved.counters["cleared_at"]
        self._recent_return = list(saved.counters["recent_return"])

    def close(self) -> None:
        """Does nothing: a compiled loop holds no thread and no file."""

    def _updates(self, iterations: int) -> int:
        """Updates of one lane in its first `iterations`."""
        return max(0, iterations - self._first.warm_iterations) * self._first.updates


def of_lanes(values: dict[str, list[Any]]) -> dict[str, Any]:
    """Combines the values of each lane into one line of metrics.

    With one lane the line has its values. With several, NAME is the mean of the lanes that have one, NAME_std their
    standard deviation, and NAME_each the value of each lane. Lists have no mean.
    """
    if all(len(each) == 1 for each in values.values()):
        return {name: each[0] for name, each in values.items()}
    line: dict[str, Any] = {}
    for name, each in values.items():
        known = [value for value in each if value is not None]
        if not any(isinstance(value, (list, tuple, np.ndarray)) for value in known):
            line[name] = float(np.mean(known)) if known else None
            line[f"{name}_std"] = float(np.std(known)) if known else None
        line[f"{name}_each"] = each
    return line


class _Data:
    """The recorded columns that lanes read. A device holds a column once if it is equal for all lanes.

    Args:
      columns: the host's arrays of each lane, by name.
      placement: the devices.

    Attributes:
      shapes: the shapes and dtypes of one lane's columns.
    """

    def __init__(self, columns: Sequence[dict[str, np.ndarray]], placement: Placement):
        self._columns, self._placement = columns, placement
        first = columns[0]
        self._is_own = {
            name: not all(_same(first[name], each[name]) for each in columns[1:]) for name in first
        }
        self._common: dict[jax.Device | None, dict[str, Array]] = {}
        # Lanes that hold out episodes can have different numbers of first rows. `_padded` makes the columns equally
        # long, and no lane reads its padding.
        self._lengths = {
            name: max(len(each[name]) for each in columns) if first[name].ndim else 0 for name in first
        }
        self.shapes = {
            name: jax.ShapeDtypeStruct(
                (self._lengths[name], *column.shape[1:]) if column.ndim else (), column.dtype
            )
            for name, column in first.items()
        }

    def own(self, places: list[int]) -> dict[str, np.ndarray]:
        """The columns that differ between lanes, stacked over the lanes in `places`."""
        return {
            name: np.stack([self._padded(name, self._columns[place][name]) for place in places])
            for name, is_own in self._is_own.items()
            if is_own
        }

    def common(self, device: jax.Device | None) -> dict[str, Array]:
        """The columns that are equal for all lanes, on a device; None means on every device of the placement."""
        if device not in self._common:
            columns = {name: self._columns[0][name] for name, is_own in self._is_own.items() if not is_own}
            self._common[device] = (
                self._placement.everywhere(columns) if device is None else jax.device_put(columns, device)
            )
        return self._common[device]

    def _padded(self, name: str, column: np.ndarray) -> np.ndarray:
        if not column.ndim:
            return column
        return np.pad(column, [(0, self._lengths[name] - len(column)), *[(0, 0)] * (column.ndim - 1)])


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal. Arrays that share their memory are not read."""
    if one.shape != other.shape:
        return False
    return one.ctypes.data == other.ctypes.data or np.array_equal(one, other)


class _Shared:
    """The compiled functions that settings share because their programs differ only in numbers.

    Attributes:
      numbers: the places of the settings among all settings.
      vmap: whether lanes advance together.
      init: (values, seeds) -> lanes before their first iteration.
      run: (lanes, values, seeds, own, common, first, last) -> lanes after the iterations first, ..., last - 1, and
        `Program.is_sound` of each. It donates the lanes. `own` and `common` are columns from `_Data`.
      init_values: the `values` of each setting for `init`.
      run_values: the `values` of each setting for `run`.
    """

    def __init__(
        self, numbers: list[int], settings: Sequence[_AnyProgram], data: _Data, placement: Placement
    ):
        program, parts = settings[numbers[0]], _lifted([settings[number] for number in numbers], data)
        assert parts is not None
        init, iterate = (parts[name].function for name in ("init", "iterate"))
        self.numbers, self.vmap = numbers, program.vmap
        self.init_values, self.run_values = (parts[name].values for name in ("init", "iterate"))

        def run(
            lane: Any, values: Any, seed: Any, own: Any, common: Any, first: Any, last: Any
        ) -> tuple[Any, Any]:
            keys, columns = program.keys(seed), own | common

            def body(number: Any, lane: Any) -> Any:
                return iterate(values, lane, keys, number, columns)

            lane = lax.fori_loop(first, last, body, lane)
            return lane, program.is_sound(lane)

        # `first` and `last` are not batched, so rows are written in place and conditions stay branches. The options
        # of `xla.jit` would make matrix products of this size slower.
        batch, compiled = (jax.vmap, placement.lanes) if program.vmap else (_alone, _on_its_device)
        axes = (0, 0, 0, 0, None, None, None)
        self.init = compiled(batch(init, in_axes=(0, 0)), (0, 0))
        self.run = compiled(batch(run, in_axes=axes), axes, donate=(0,))
        self.clear = compiled(jax.vmap(program.clear), (0,), donate=(0,))
        acting = jax.vmap(program.acting)
        self.acting = placement.jit(acting) if program.vmap else jax.jit(acting)


def _on_its_device(
    function: Any, in_axes: tuple[int | None, ...], donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """The compiled function, which runs on the device of its arguments; see `Placement.lanes`."""
    del in_axes
    return jax.jit(function, donate_argnums=donate)


def _alone(function: Any, in_axes: tuple[int | None, ...]) -> Any:
    """Like `jax.vmap` over an axis of size 1, but without batched convolutions, which are half as fast."""

    def squeezed(*arguments: Any) -> Any:
        pairs = zip(arguments, in_axes, strict=True)
        one = [each if axis is None else jax.tree.map(lambda leaf: leaf[0], each) for each, axis in pairs]
        return jax.tree.map(lambda leaf: leaf[None], function(*one))

    return squeezed


def _grouped(settings: Sequence[_AnyProgram], data: _Data, placement: Placement) -> list[_Shared]:
    """Groups the settings so that those of a group can share one program."""
    groups: list[list[int]] = []
    for number, setting in enumerate(settings):
        for group in groups:
            if _lifted([settings[group[0]], setting], data) is not None:
                group.append(number)
                break
        else:
            groups.append([number])
    return [_Shared(group, settings, data, placement) for group in groups]


def _lifted(settings: Sequence[_AnyProgram], data: _Data) -> dict[str, Lifted] | None:
    """`init` and `iterate`, each as one function that all settings share; None if they differ in more than numbers."""
    if len(settings) == 1:
        return {
            name: Lifted(_without_values(getattr(settings[0], name)), [[]]) for name in ("init", "iterate")
        }
    seed, number = (jax.ShapeDtypeStruct((), dtype) for dtype in (np.uint32, np.int32))
    shapes = [jax.eval_shape(each.init, seed) for each in settings]
    if any(_shapes(shape) != _shapes(shapes[0]) for shape in shapes[1:]):
        return None
    keys = jax.eval_shape(settings[0].keys, seed)
    arguments = {"init": (seed,), "iterate": (shapes[0], keys, number, data.shapes)}
    parts = {
        name: lift([getattr(each, name) for each in settings], *given) for name, given in arguments.items()
    }
    return None if None in parts.values() else parts  # type: ignore[return-value]


def _counted(episodes: Episodes | None) -> Any:
    """The parts of `Episodes` that a line of metrics reports; None if lanes play no episodes."""
    return None if episodes is None else (episodes.recent, episodes.finished)


def _shapes(tree: PyTree) -> Any:
    """The structure of the tree, and the shape and dtype of each leaf."""
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def _without_values(function: Any) -> Any:
    """The function with a first argument `values`, which it ignores."""
    return lambda values, *arguments: function(*arguments)


class _Group:
    """Lanes that one call advances.

    Attributes:
      lanes: the numbers of these lanes in `Compiled.lanes`.
      state: their `Lane`s, stacked.
    """

    state: Lane | OfflineLane

    def __init__(
        self,
        shared: _Shared,
        lanes: Sequence[tuple[int, int]],
        places: list[int],
        data: _Data,
        placement: Placement,
    ):
        self._shared, self.lanes, self._placement = shared, places, placement
        # None if there is no mesh, or if the lanes are divided over the mesh.
        self._device = None
        if not shared.vmap and len(placement.devices) > 1:
            self._device = placement.devices[places[0] % len(placement.devices)]
        rows = [shared.numbers.index(lanes[place][0]) for place in places]
        seeds = np.array([lanes[place][1] for place in places], np.uint32)
        values = (
            [np.stack(each)[rows] for each in zip(*of_settings, strict=True)]
            for of_settings in (shared.init_values, shared.run_values)
        )
        stacked = (seeds, *values, data.own(places))
        self._common = data.common(self._device)
        self._seeds, self._init_values, self._run_values, self._own = (
            placement.batch(stacked) if shared.vmap else jax.device_put(stacked, self._device)
        )

    def begin(self) -> None:
        """Sets every lane to its state before the first iteration."""
        self.__dict__.pop("state", None)  # frees the memory of the old state before the new one needs memory
        self.state = jax.block_until_ready(self._shared.init(self._init_values, self._seeds))

    def run(self, first: int, last: int) -> tuple[Array, Array]:
        """Dispatches the iterations first, ..., last - 1, and returns `Program.is_sound` of each lane after them."""
        ends: Any = np.int32(first), np.int32(last)
        ends = self._placement.everywhere(ends) if self._shared.vmap else jax.device_put(ends, self._device)
        arguments = self._run_values, self._seeds, self._own, self._common, *ends
        self.state, is_sound = self._shared.run(self.state, *arguments)
        return is_sound

    def clear(self) -> None:
        """Sets the sums of every lane to zero."""
        self.state = self._shared.clear(self.state)

    def acting(self) -> PyTree:
        """The acting part of each lane's agent, stacked, on one device."""
        acting = self._shared.acting(self.state)
        if self._shared.vmap:
            return self._placement.acting(acting)
        return acting if self._device is None else jax.device_put(acting, self._placement.devices[0])
