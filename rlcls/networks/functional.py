"""A network as a pure function of nested dicts of arrays, which is how agents use it."""

import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree


@runtime_checkable
class Apply(Protocol):
    """A network as a pure function; `train`, `capture` and `method` are static."""

    def __call__(
        self,
        params: PyTree,
        network_state: PyTree,
        *inputs: Any,
        train: bool,
        capture: bool = False,
        method: str = "__call__",
    ) -> tuple[Any, PyTree, PyTree]: ...


def functional(network: nnx.Module) -> tuple[Apply, PyTree, PyTree]:
    """The network as a pure function, its parameters, and its other state.

    Returns:
      apply: apply(params, network_state, *inputs, train, capture=False, method="__call__") -> (outputs, network_state,
        intermediates). The inputs, such as observations, are the arguments of that method of the network. With train,
        dropout is active and statistics are updated. With capture, the attribute `capture` of the modules is set to
        True, and intermediates holds the values that they sow (activity of units, queries and keys of attention,
        routing of a SoftMoE): nested dicts of tuples, one entry for each call. Call it under jit, because each eager
        call rebuilds the network.
      params: the trainable parameters, as nested dicts of arrays.
      network_state: batch statistics, power iterations and keys of random streams, as nested dicts of arrays.
    """
    graphdef, params, network_state = nnx.split(network, nnx.Param, ...)  # type: ignore[misc]

    def apply(
        params: PyTree,
        network_state: PyTree,
        *inputs: Any,
        train: bool,
        capture: bool = False,
        method: str = "__call__",
    ) -> tuple[Any, PyTree, PyTree]:
        module = nnx.merge(graphdef, params, network_state)
        module.train() if train else module.eval()
        inputs = jax.tree.map(jnp.asarray, inputs)
        if capture:
            module.set_attributes(capture=True, raise_if_not_found=False)
            outputs, intermediates = nnx.capture(getattr(module, method), nnx.Intermediate)(*inputs)
        else:
            outputs = getattr(module, method)(*inputs)
            intermediates = nnx.pop(module, nnx.Intermediate)
        _, _, network_state = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
        return outputs, nnx.to_pure_dict(network_state), nnx.to_pure_dict(intermediates)

    return apply, nnx.to_pure_dict(params), nnx.to_pure_dict(network_state)


def count_parameters(params: PyTree) -> int:
    """The number of scalars in all parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
