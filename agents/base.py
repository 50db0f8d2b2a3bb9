"""The interface of an agent: four pure functions that a loop calls, and an optional one, `diagnose`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rlcls._errors import UserError, one_line
from rlcls.spec import Spec
from rlcls.transition import Transition

State = TypeVar("State")

Mean = Callable[[PyTree], PyTree]
"""Averages every floating-point array of a tree over the devices that share a batch."""


def identity(tree: PyTree) -> PyTree:
    """The `Mean` for one device, which has the whole batch."""
    return tree


class UpdateInfo(NamedTuple):
    """The results of an update besides the new state.

    Attributes:
      metrics: float32 [] by name, such as "loss". A value that is not finite stops the run.
      priorities: float32 [B], the priority of each transition in prioritised replay; None if the agent has none.
    """

    metrics: dict[str, Float[Array, ""]]
    priorities: Float[Array, "b"] | None


@runtime_checkable
class Agent(Protocol[State]):
    """Pure functions of a state, which is a pytree of arrays with an int32 field `step` that counts updates.

    An agent uses no environment, file, clock or global. Every function can be jitted, vmapped over seeds and sharded.
    By convention an agent is made as `Agent(spec, make_backbone, head, *, options)`: `spec` is an `rlcls.spec.Spec`,
    `make_backbone(observation_shape, *, rngs)` makes an NNX module with an attribute `num_features`, and `head` is an
    `rlcls.heads.Head`. The agent makes its own network from them.

    An agent may also have `diagnose(state, batch, held_out) -> dict[str, Array]`, which measures the network before an
    update and does not change the state.

    `update` may also take a keyword `mean`, a `Mean`, with the default `identity`. On a mesh, `update` is then called
    on each device with that device's part of the batch, and with the same state and key on all. It must call `mean`
    once, on a tree of everything that depends on the batch except priorities: gradients, metrics, statistics. Without
    this keyword, `update` is called with the whole batch, and XLA divides its arithmetic among the devices.
    """

    def init(self, key: Array) -> State:
        """The state before the first update. All random numbers in it come from `key`."""
        ...

    def acting(self, state: State, *, target: bool = False) -> PyTree:
        """The part of `state` that `act` needs. Loops treat it as opaque.

        Args:
          state: the agent's state.
          target: whether to act with the target network. An agent without one raises a ValueError.
        """
        ...

    def act(self, acting: PyTree, observations: PyTree, key: Array, epsilon: ArrayLike) -> Array:
        """One action for each of B observations.

        Args:
          acting: from `acting`.
          observations: [B, *observation], or a tree of such arrays.
          key: random key of this step.
          epsilon: [], the probability of a uniformly random action.
        """
        ...

    def update(self, state: State, batch: Transition, key: Array) -> tuple[State, UpdateInfo]:
        """One gradient step."""
        ...


def check_agent(agent: Any, spec: Spec, *, acts_with_target: bool = False) -> None:
    """Raises a UserError unless an agent has the functions of `Agent` and `act` returns actions of `spec`.

    The functions are only traced, with the shapes of two observations.
    """
    kind, size = f"{type(agent).__module__}.{type(agent).__qualname__}", 2
    missing = [
        name for name in ("init", "acting", "act", "update") if not callable(getattr(agent, name, None))
    ]
    if missing:
        raise UserError(
            f"agent: {kind} has no {' and no '.join(missing)}; rlcls.agents.Agent lists what it needs"
        )
    try:  # reports a network that does not take these observations now, instead of after the replay has filled
        key = jax.eval_shape(jax.random.key, 0)
        state = jax.eval_shape(agent.init, key)
        acting = jax.eval_shape(lambda state: agent.acting(state, target=acts_with_target), state)
        observations = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype), spec.observation
        )
        actions = jax.eval_shape(agent.act, acting, observations, key, 0.0)
    except (TypeError, ValueError) as error:
        raise UserError(f"agent: {one_line(error)}") from error
    expected = jax.ShapeDtypeStruct((size, *spec.action.shape), spec.action.dtype)
    is_array = isinstance(actions, jax.ShapeDtypeStruct)
    kind_of_number = jnp.integer if spec.num_actions is not None else jnp.floating
    if not (is_array and actions.shape == expected.shape and jnp.issubdtype(actions.dtype, kind_of_number)):
        shown = f"{actions.dtype} {list(actions.shape)}" if is_array else type(actions).__name__
        raise UserError(
            f"agent: {kind}.act returns {shown} for {size} observations; it must return {expected.dtype} "
            f"{list(expected.shape)}"
        )
