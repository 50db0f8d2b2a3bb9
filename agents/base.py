"""The interface of an agent: four pure functions that a loop calls, and an optional fifth, `diagnose`."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rlcls.transition import Transition

State = TypeVar("State")


class UpdateInfo(NamedTuple):
    """An update returns this besides the new state.

    Attributes:
      metrics: float32 [] by name, such as "loss"; a value that is not finite stops the run.
      priorities: float32 [B], how surprising each transition was; None if the agent gives none.
    """

    metrics: dict[str, Float[Array, ""]]
    priorities: Float[Array, "b"] | None


@runtime_checkable
class Agent(Protocol[State]):
    """Pure functions of a state, which is a pytree of arrays with an int32 field `step` that counts updates.

    An agent touches no environment, file, clock or global. Every function can be jitted, vmapped over seeds and
    sharded. By convention an agent is made as `Agent(spec, make_backbone, head, *, options)`: `spec` is an
    `rlcls.spec.Spec`, `make_backbone(observation_shape, *, rngs)` makes an NNX module with an attribute
    `num_features`, and `head` is an `rlcls.heads.Head`. The agent makes its own network from them.

    An agent may also have `diagnose(state, batch, held_out) -> dict[str, Array]`, which looks inside the network
    before an update and changes nothing.
    """

    def init(self, key: Array) -> State:
        """The state before the first update; every random number in it is drawn from `key`."""
        ...

    def acting(self, state: State, *, target: bool = False) -> PyTree:
        """The part of `state` that `act` needs; loops store and pass it without looking inside.

        Args:
          state: the agent's state.
          target: act with the target network. An agent without one raises a ValueError.
        """
        ...

    def act(self, acting: PyTree, observations: PyTree, key: Array, epsilon: ArrayLike) -> Array:
        """One action for each of B observations.

        Args:
          acting: from `acting`.
          observations: [B, *observation], or a tree of such arrays.
          key: for the random numbers of this step.
          epsilon: [], the probability of a uniformly random action.
        """
        ...

    def update(self, state: State, batch: Transition, key: Array) -> tuple[State, UpdateInfo]:
        """One gradient step."""
        ...
