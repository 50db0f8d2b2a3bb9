"""Places arrays, and compiles programs, on one device or on a mesh of devices."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import PyTree

from rlcls._errors import UserError
from rlcls.agents.base import UpdateInfo

from . import xla

Rules = Sequence[tuple[str, Sequence[str | None]]]
"""Pairs of a regular expression, which is searched for in an array's path, and "model" or None for each dimension."""

RULES: Rules = (
    # Transformers, also the Q-Transformer's: attention heads and hidden units are divided, so that each half of a layer
    # ends in one all-reduce.
    (r"/(query|key|value|gate|up)/kernel$", (None, "model")),
    (r"/(output|down)/kernel$", ("model", None)),
    # SoftMoE: each device holds some of the experts.
    (r"/experts/(first|second)(_bias)?$", ("model",)),
    # ResNet: the output channels of each convolution with its norm.
    (r"/(stem|layers/\d+|shortcut)/convolution/kernel$", (None, None, None, "model")),
    (r"/(stem|layers/\d+|shortcut)/norm/(scale|bias)$", ("model",)),
    (r"/backbone/spatial$", (None, None, "model", None)),
    # The inputs of the dense layer behind convolutions, which has most parameters of the Nature network.
    (r"/backbone/dense/kernel$", ("model", None)),
)
"""How the library's large networks are divided over the axis "model"; every other array is on every device."""

_DATA, _MODEL = "data", "model"


class Placement:
    """Arrays on one device, or on a mesh of data * model devices.

    Each of the mesh's `data` rows has `model` devices. A row holds one copy of the network, and learns from its part of
    every batch. With data=1 and model=1 there is no mesh, and `xla.jit` compiles every function.

    With model=1 each device runs the update with its part of the batch. Gradients, metrics and the network's state are
    averaged in at least float32, whatever dtype the network computes in. With model > 1, and for an agent whose
    `update` does not take `mean`, XLA's partitioner divides the program. It sums gradients in the dtype in which they
    were computed.

    Args:
      data: devices that share a batch.
      model: devices that share a network.
      rules: how the arrays of an agent's state are divided over "model"; the first rule that matches an array's path,
        such as params/backbone/layers/0/query/kernel, decides. The paths of the optimiser's moments and of the target
        network end like those of the parameters, so the same rules divide them. None means `RULES`. Rules have no
        effect if model=1.
      devices: the devices to take; None takes those of JAX's default kind. If the machine does not have these devices,
        functions can still be lowered and compiled, for arguments from `shapes` and `shapes_of_batch`.

    Attributes:
      data: devices that share a batch.
      model: devices that share a network.
      devices: [data * model], the devices of the mesh; the first one acts.

    Raises:
      ValueError: a size is below 1, there are fewer devices, the processes have different shares of them, or a rule is
        not valid.
    """

    def __init__(
        self,
        data: int = 1,
        model: int = 1,
        rules: Rules | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
    ):
        for name, size in ((_DATA, data), (_MODEL, model)):
            if size < 1:
                raise ValueError(f"mesh.{name} must be at least 1, not {size}")
        visible = _devices() if devices is None else list(devices)
        if data * model > len(visible):
            platform = visible[0].platform
            remedy = (
                f"; XLA_FLAGS=--xla_force_host_platform_device_count={data * model} divides a CPU"
                if platform == "cpu"
                else ""
            )
            raise ValueError(
                f"mesh.data={data} and mesh.model={model} need {data * model} devices, and JAX finds {len(visible)} "
                f"({platform}){remedy}"
            )
        self.data, self.model = data, model
        self.devices = visible[: data * model]
        grid = np.array(self.devices).reshape(data, model)
        if devices is None:
            _check_shares(grid)
        # `xla.jit` adds options of the CPU's compiler, which programs for other devices do not accept.
        self._jit: Callable[..., Any] = xla.jit if devices is None else jax.jit
        self._rules = [_read_rule(rule) for rule in (RULES if rules is None else rules)]
        self._own_rules = rules is not None
        self._mesh: Mesh | None = None
        self._over_data: Sharding = SingleDeviceSharding(self.devices[0])
        self._everywhere: Sharding = self._over_data
        if data * model > 1:
            self._mesh = Mesh(grid, (_DATA, _MODEL), axis_types=(AxisType.Auto, AxisType.Auto))
            self._over_data = NamedSharding(self._mesh, PartitionSpec(_DATA))
            self._everywhere = NamedSharding(self._mesh, PartitionSpec())

    def __str__(self) -> str:
        return f"data={self.data}, model={self.model}"

    @property
    def sizes(self) -> dict[str, int]:
        """The mesh's sizes by axis."""
        return {_DATA: self.data, _MODEL: self.model}

    @property
    def host(self) -> int:
        """The number of this process among those of the mesh."""
        return jax.process_index() if self._mesh else 0

    @property
    def hosts(self) -> int:
        """The number of processes that train together."""
        return jax.process_count() if self._mesh else 1

    @property
    def devices_here(self) -> int:
        """The number of these devices that belong to this process."""
        return sum(device.process_index == jax.process_index() for device in self.devices)

    def check_batch(self, **sizes: int) -> None:
        """Raises a ValueError for the first batch size that `data` does not divide; keywords are the options' names."""
        for name, size in sizes.items():
            if size % self.data:
                raise ValueError(f"{name} ({size}) must be a multiple of mesh.data ({self.data})")

    def init(self, function: Callable[..., PyTree], *arguments: Any) -> PyTree:
        """The result of function(*arguments), placed by the rules, in new buffers, which may be donated.

        Raises:
          UserError: a rule matches no array, is longer than an array's shape, or divides a dimension unevenly; or
            there is no rule for this network.
        """
        if self._mesh is None:
            return self._jit(function)(*arguments)
        shardings = self._shardings(jax.eval_shape(function, *arguments))
        return self._jit(function, out_shardings=shardings)(*arguments)

    def shapes(self, function: Callable[..., PyTree], *arguments: Any) -> PyTree:
        """The shapes of `init`, with their shardings."""
        shapes = jax.eval_shape(function, *arguments)
        return _sharded(shapes, self._shardings(shapes))

    def shapes_everywhere(self, shapes: PyTree) -> PyTree:
        """The shapes of `everywhere`, with their shardings."""
        return _sharded(shapes, self._everywhere)

    def shapes_of_batch(self, shapes: PyTree) -> PyTree:
        """The shapes of `batch`, with their shardings."""
        return _sharded(shapes, self._over_data)

    def jit(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """The compiled function, whose results are on every device."""
        return (
            self._jit(function) if self._mesh is None else self._jit(function, out_shardings=self._everywhere)
        )

    def update(
        self, function: Callable[..., Any], state: PyTree, *, averages: bool, scales: bool = False
    ) -> Callable[..., Any]:
        """The compiled program of one update, which donates the state.

        Args:
          function: (state, batch, number) -> (state, `UpdateInfo`, whether all is finite).
          state: from `init`.
          averages: whether `function` takes `mean`, see `rlcls.agents.Agent`.
          scales: on a mesh, whether the weights of a batch are first divided by the largest weight of the whole batch.

        Returns:
          The compiled `function`. Its batch must come from `batch`, and its priorities are in the batch's order.
        """
        if self._mesh is None:
            return self._jit(function, donate_argnums=0)
        is_divided = averages and self.model == 1
        if scales:
            function = _with_scaled_weights(function, _DATA if is_divided else None)
        if is_divided:
            everywhere, over_data = PartitionSpec(), PartitionSpec(_DATA)
            mean = functools.partial(_mean, as_one=self.devices[0].platform == "cpu")
            function = jax.shard_map(
                functools.partial(function, mean=mean),
                mesh=self._mesh,
                in_specs=(everywhere, over_data, everywhere),
                out_specs=(everywhere, _as_info(everywhere, over_data), everywhere),
                check_vma=False,
            )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        # Without out_shardings XLA may return a parameter in another sharding, and the next call compiles again.
        return self._jit(
            function,
            donate_argnums=0,
            in_shardings=(shardings, self._over_data, self._everywhere),
            out_shardings=(shardings, _as_info(self._everywhere, self._over_data), self._everywhere),
        )

    def lanes(
        self, function: Callable[..., PyTree], in_axes: tuple[int | None, ...], donate: tuple[int, ...] = ()
    ) -> Callable[..., PyTree]:
        """Compiles a function of stacked lanes. Each device computes its share of the lanes without the others.

        Args:
          function: its arguments are stacked along axis 0 or shared by all lanes; all its results are stacked.
          in_axes: for each argument, 0 if it is stacked and None if it is shared.
          donate: the places of the arguments that are donated.
        """
        if self._mesh is not None:
            specs = tuple(PartitionSpec(_DATA) if axis == 0 else PartitionSpec() for axis in in_axes)
            function = jax.shard_map(
                function, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec(_DATA), check_vma=False
            )
        return jax.jit(function, donate_argnums=donate)

    def batch(self, tree: PyTree) -> PyTree:
        """A batch of this process on its devices, divided over `data`. On a CPU the result may share its memory.

        A batch that was placed in another way would make a compiled update compile again.

        Args:
          tree: arrays [B, ...], in which B is a multiple of the devices along `data`.
        """
        if self._mesh is None:
            return jax.device_put(tree, may_alias=True)
        if jax.process_count() > 1:
            place = functools.partial(jax.make_array_from_process_local_data, self._over_data)
            return jax.tree.map(place, tree)
        return jax.device_put(tree, self._over_data, may_alias=True)

    def everywhere(self, tree: PyTree) -> PyTree:
        """Copies arrays or numbers of the host, which must be the same in every process, to every device."""
        if self._mesh is None:
            return jax.device_put(tree)
        if jax.process_count() > 1:  # device_put would compare the values of all processes with a collective
            place = functools.partial(jax.make_array_from_process_local_data, self._everywhere)
            return jax.tree.map(lambda leaf: place(np.asarray(leaf)), tree)
        return jax.device_put(tree, self._everywhere)

    def copy(self, tree: PyTree) -> PyTree:
        """Copies of arrays in new buffers, with the same placement."""
        copies = jax.tree.map(jnp.copy, tree)
        if self._mesh is None:
            return copies
        return jax.device_put(copies, jax.tree.map(lambda leaf: leaf.sharding, tree))

    def local(self, tree: PyTree) -> PyTree:
        """Copies results of an update to the host. An array divided over `data` becomes the rows of this process."""
        return jax.device_get(tree if jax.process_count() == 1 else jax.tree.map(_own_rows, tree))

    def acting(self, tree: PyTree) -> PyTree:
        """Arrays that are on every device, as arrays on one device of this process, where agents act."""
        if self._mesh is None:
            return tree
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)

    def settled(self, tree: PyTree) -> PyTree:
        """The results of a program on the mesh. If the devices are a CPU's, it waits until they are computed.

        The devices of a CPU share its threads. Several running programs can occupy all threads, while each waits for a
        part of its all-reduce that has no thread left. A mesh of CPU devices therefore runs one program at a time.
        """
        waits = self._mesh is not None and self.devices[0].platform == "cpu"
        return jax.block_until_ready(tree) if waits else tree

    def _shardings(self, state: PyTree) -> PyTree:
        """The sharding of each array of a state; see `init`."""
        mesh = self._mesh
        if mesh is None or self.model == 1:
            return jax.tree.map(lambda _: self._everywhere, state)
        used: set[str] = set()

        def place(path: Any, leaf: Any) -> Sharding:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            rule = next((rule for rule in self._rules if rule.pattern.search(name)), None)
            if rule is None:
                return self._everywhere
            used.add(rule.text)
            rule.check(name, leaf.shape, self.model)
            return NamedSharding(mesh, PartitionSpec(*rule.entries))

        shardings = jax.tree_util.tree_map_with_path(place, state)
        unused = [rule.text for rule in self._rules if rule.text not in used]
        if self._own_rules and unused:
            raise UserError(
                f"mesh.rules: {unused[0]!r} matches no array that an earlier rule leaves; {_largest(state)}"
            )
        if not used:
            raise UserError(
                f"mesh.model={self.model}: no rule divides this network; give mesh.rules=[[PATTERN,[null,model]]]; "
                f"{_largest(state)}"
            )
        return shardings


class _Rule(NamedTuple):
    """A rule whose pattern is compiled; `text` is the pattern as it was given."""

    text: str
    pattern: re.Pattern[str]
    entries: tuple[str | None, ...]

    def check(self, name: str, shape: tuple[int, ...], parts: int) -> None:
        """Raises a UserError unless the rule divides an array of this shape into equal parts."""
        if len(self.entries) > len(shape):
            raise UserError(
                f"mesh.rules: {self.text!r} is for {len(self.entries)} dimensions, and {name} has shape {list(shape)}"
            )
        dimension = self.entries.index(_MODEL)
        if shape[dimension] % parts:
            raise UserError(
                f"mesh.rules: {self.text!r} divides dimension {dimension} of {name}, whose shape is {list(shape)}, and "
                f"mesh.model={parts} does not divide {shape[dimension]}"
            )


def _read_rule(rule: Any) -> _Rule:
    is_pair = isinstance(rule, (list, tuple)) and len(rule) == 2
    text, entries = rule if is_pair else (None, None)
    if not isinstance(text, str) or not isinstance(entries, (list, tuple)):
        raise ValueError(f"mesh.rules: expected [PATTERN,[null,model]], not {rule!r}")
    if any(entry not in (None, _MODEL) for entry in entries) or list(entries).count(_MODEL) != 1:
        raise ValueError(
            f"mesh.rules: {text!r}: expected one dimension of model and null for others, not {list(entries)}"
        )
    try:
        return _Rule(text, re.compile(text), tuple(entries))
    except re.error as error:
        raise ValueError(f"mesh.rules: {text!r} is not a regular expression ({error})") from error


def _devices() -> list[jax.Device]:
    """The devices of the kind that programs run on by default."""
    default = jax.config.values["jax_default_device"]
    return jax.devices(default.platform) if default else jax.devices()


def _check_shares(grid: np.ndarray) -> None:
    """Raises a ValueError unless every process has whole rows of the mesh, and all have equally many."""
    (data, model), processes = grid.shape, jax.process_count()
    owners = [{device.process_index for device in row} for row in grid]
    if any(len(each) > 1 for each in owners):
        raise ValueError(
            f"mesh.model={model} must divide the devices of each process ({jax.local_device_count()})"
        )
    shares = [owners.count({process}) for process in range(processes)]
    if len(set(shares)) > 1:
        raise ValueError(
            f"mesh.data={data}: each of {processes} processes must have equally many devices along data, and they "
            f"have {', '.join(map(str, shares))}"
        )


def _as_info(metrics: Any, priorities: Any) -> UpdateInfo:
    """An `UpdateInfo` that has a sharding for each of its parts."""
    return UpdateInfo(metrics, priorities)


def _with_scaled_weights(function: Callable[..., Any], axis: str | None) -> Callable[..., Any]:
    """An update that first divides a batch's weights by their maximum, also over `axis` of the mesh if it is given."""

    def scaled(state: PyTree, batch: Any, number: Any, **mean: Any) -> Any:
        largest = jnp.max(batch.weight)
        if axis is not None:
            largest = lax.pmax(largest, axis)
        return function(state, batch._replace(weight=batch.weight / largest), number, **mean)

    return scaled


def _mean(tree: PyTree, *, as_one: bool) -> PyTree:
    """Every floating-point array averaged over `data`, in at least float32; others are returned as they are.

    Args:
      tree: the arrays of one device.
      as_one: whether to send them as one vector. On a CPU an all-reduce sends each array as a message of its own, which
        takes longer than copying them into one vector. On other devices XLA sends them together.
    """
    leaves, structure = jax.tree.flatten(tree)
    places = [place for place, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    floats = [leaves[place].astype(jnp.promote_types(leaves[place].dtype, jnp.float32)) for place in places]
    if as_one and floats:
        vector = lax.pmean(jnp.concatenate([leaf.reshape(-1) for leaf in floats]), _DATA)
        parts = jnp.split(vector, np.cumsum([leaf.size for leaf in floats])[:-1])
        floats = [part.reshape(leaf.shape) for part, leaf in zip(parts, floats, strict=True)]
    else:
        floats = lax.pmean(floats, _DATA)
    for place, leaf in zip(places, floats, strict=True):
        leaves[place] = leaf.astype(leaves[place].dtype)
    return jax.tree.unflatten(structure, leaves)


def _sharded(shapes: PyTree, shardings: PyTree | Sharding) -> PyTree:
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _own_rows(leaf: Any) -> Any:
    """The rows of an array that are on this process's devices, in order. Arrays that are on every device stay whole."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    shards = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
    return np.concatenate([jax.device_get(shards[first]) for first in sorted(shards)])


def _largest(state: PyTree) -> str:
    """A phrase that names the largest arrays of a state, and skips other arrays of the same path, such as moments."""
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]
    named.sort(key=lambda pair: (-pair[1].size, len(pair[0])))
    shown: dict[str, str] = {}
    for name, leaf in named:
        own_name = name.partition("/")[2]
        if not any(name.endswith(other) for other in shown):
            shown[own_name] = f"{name} {list(leaf.shape)}"
    return f"the largest arrays are {', '.join(list(shown.values())[:3])}"
