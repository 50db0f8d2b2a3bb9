"""Two tasks of a point-sized gripper in the unit cube, as pure functions: `Pick` and `Relay`.

A gripper moves by at most 0.08 in each direction a step. Both tasks reward success alone, with 1, which ends the
episode: the undiscounted return of an episode is 1 or 0, and its mean is the success rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Key, UInt8

from rlcls._errors import UserError, nearest
from rlcls.spec import Spec

from .base import JaxEnv
from .jax_vector import JaxVectorEnv

_STEP = 0.08  # the largest motion along one axis in a step
_NEAR = 0.08  # an object this close to its goal has reached it
_SIDE = 96  # pixels of a picture of the cube from one side


class PickState(NamedTuple):
    """Positions in the unit cube; `closed` and `held` are 0 or 1."""

    gripper: Float32[Array, "3"]
    block: Float32[Array, "3"]
    goal: Float32[Array, "3"]
    closed: Float32[Array, ""]
    held: Float32[Array, ""]
    time: Int32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Pick:
    """Grasp an object on the floor and hold it at a goal in the air: a `JaxEnv`.

    An action is the gripper's motion in units of 0.08, and whether it is closed (above 0). It grasps in the step in
    which it closes within 0.05 of the object. Letting go above a height of 0.15 breaks the object and ends the episode
    without a reward. After `horizon` steps the episode is truncated.

    An observation is 11 numbers, 3 * (x - 0.5): gripper, object and goal (x, y, z each), closed, held. With `hidden`
    the last two are always 0, and only a history shows them.

    Args:
      horizon: steps of an episode.
      hidden: whether the fingers and what they hold are hidden.
    """

    horizon: int = 30
    hidden: bool = False

    def __post_init__(self) -> None:
        _check_horizon(self.horizon)

    @property
    def spec(self) -> Spec:
        """float32 [11], and actions float32 [4] between -1 and 1."""
        return _spec(observation=11, action=4)

    def reset(self, key: Key[Array, ""]) -> tuple[PickState, Float32[Array, "11"]]:
        """An open gripper in the middle, an object on the floor, a goal in the air."""
        low = jnp.array([0.2, 0.2, 0.4, 0.1, 0.1, 0.0, 0.1, 0.1, 0.3])
        high = jnp.array([0.8, 0.8, 0.8, 0.9, 0.9, 0.0, 0.9, 0.9, 0.8])
        gripper, block, goal = jnp.split(jax.random.uniform(key, (9,), minval=low, maxval=high), 3)
        zero = jnp.zeros((), jnp.float32)
        state = PickState(gripper, block, goal, zero, zero, jnp.zeros((), jnp.int32))
        return state, self._observe(state)

    def step(
        self, state: PickState, action: Float32[Array, "4"], key: Key[Array, ""]
    ) -> tuple[PickState, Float32[Array, "11"], Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """One step; nothing in it is random."""
        del key
        gripper = _moved(state.gripper, action[:3])
        closed = (action[3] > 0).astype(jnp.float32)
        grasps = (_distance(gripper, state.block) < 0.05) & (state.closed == 0)
        held = closed * jnp.maximum(state.held, grasps)
        dropped = (state.held > 0) & (held == 0)
        broken = dropped & (state.block[2] > 0.15)
        fallen = jnp.where(dropped, state.block.at[2].set(0.0), state.block)
        block = jnp.where(held > 0, gripper, fallen)
        success = (held > 0) & (_distance(block, state.goal) < _NEAR)
        new = PickState(gripper, block, state.goal, closed, held, state.time + 1)
        ends = success | broken
        return (
            new,
            self._observe(new),
            success.astype(jnp.float32),
            ends,
            ~ends & (new.time >= self.horizon),
        )

    def expert(self, state: PickState) -> Float32[Array, "4"]:
        """Moves straight to the object, closes in the step that arrives, and moves straight to the goal."""
        way = jnp.where(state.held > 0, state.goal, state.block) - state.gripper
        arrives = jnp.max(jnp.abs(way)) <= _STEP
        closes = (state.held > 0) | (arrives & (state.closed == 0))
        return jnp.concatenate([jnp.clip(way / _STEP, -1, 1), jnp.where(closes, 1.0, -1.0)[None]])

    def facts(self) -> dict[str, Any]:
        """The fields."""
        return dataclasses.asdict(self)

    def draw(self, state: PickState) -> UInt8[np.ndarray, "height width 3"]:
        """The cube from the front and from above: the goal green, the object red, the gripper black when closed."""
        grey = 0 if state.closed else 120
        return _picture(
            (state.goal, 9, (0, 160, 0)), (state.block, 5, (200, 0, 0)), (state.gripper, 3, (grey,) * 3)
        )

    def _observe(self, state: PickState) -> Float32[Array, "11"]:
        fingers = jnp.stack([state.closed, state.held])
        if self.hidden:
            fingers = jnp.full(2, 0.5)
        return 3 * (jnp.concatenate([state.gripper, state.block, state.goal, fingers]) - 0.5)


class RelayState(NamedTuple):
    """The position of the held object, the three goals, and the leg on which the demonstrator is careful."""

    gripper: Float32[Array, "3"]
    goals: Float32[Array, "3 3"]
    leg: Int32[Array, ""]
    careful_leg: Int32[Array, ""]
    time: Int32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Relay:
    """Carry an object to three goals, one after another, without losing it: a `JaxEnv`.

    An action is the gripper's motion in units of 0.08. A motion of more than 0.6 in any direction loses the object with
    probability `slip`, which ends the episode without a reward.

    The demonstrator is careful on one of the three legs, which it draws for each episode, and hurries on the others.
    No demonstration is clean, and at every leg two of three demonstrators hurry. Whoever copies the most frequent
    action of the successful ones hurries three times and succeeds less often than the demonstrations do; whoever takes
    the best recorded action on each leg never loses the object.

    An observation is 9 numbers: 3 * (x - 0.5) of gripper and present goal, and the leg as a one-hot vector.

    Args:
      horizon: steps of an episode.
      slip: probability that a fast motion loses the object.
    """

    horizon: int = 60
    slip: float = 0.12

    def __post_init__(self) -> None:
        _check_horizon(self.horizon)
        if not 0 <= self.slip <= 1:
            raise ValueError(f"slip must be between 0 and 1, not {self.slip}")

    @property
    def spec(self) -> Spec:
        """float32 [9], and actions float32 [3] between -1 and 1."""
        return _spec(observation=9, action=3)

    def reset(self, key: Key[Array, ""]) -> tuple[RelayState, Float32[Array, "9"]]:
        """The object and three goals, anywhere."""
        places, legs = jax.random.split(key)
        points = jax.random.uniform(places, (4, 3), minval=0.1, maxval=0.9)
        zero = jnp.zeros((), jnp.int32)
        state = RelayState(points[0], points[1:], zero, jax.random.randint(legs, (), 0, 3), zero)
        return state, self._observe(state)

    def step(
        self, state: RelayState, action: Float32[Array, "3"], key: Key[Array, ""]
    ) -> tuple[RelayState, Float32[Array, "9"], Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """One step; whether a fast motion loses the object is random."""
        gripper = _moved(state.gripper, action)
        fast = jnp.max(jnp.abs(action)) > _FAST
        lost = fast & (jax.random.uniform(key) < self.slip)
        arrived = ~lost & (_distance(gripper, self._goal(state)) < _NEAR)
        success = arrived & (state.leg == 2)
        leg = jnp.minimum(state.leg + arrived.astype(jnp.int32), 2)
        new = state._replace(gripper=gripper, leg=leg, time=state.time + 1)
        ends = success | lost
        return (
            new,
            self._observe(new),
            success.astype(jnp.float32),
            ends,
            ~ends & (new.time >= self.horizon),
        )

    def expert(self, state: RelayState) -> Float32[Array, "3"]:
        """Moves straight to the present goal, slowly on the careful leg."""
        way = self._goal(state) - state.gripper
        speed = jnp.where(state.leg == state.careful_leg, _CAREFUL, 1.0)
        return speed * jnp.clip(way / (speed * _STEP), -1, 1)

    def facts(self) -> dict[str, Any]:
        """The fields."""
        return dataclasses.asdict(self)

    def draw(self, state: RelayState) -> UInt8[np.ndarray, "height width 3"]:
        """The cube from the front and from above: the present goal green, the others pale, the object red."""
        points = [
            (goal, 9, (0, 160, 0) if number == state.leg else (190, 220, 190))
            for number, goal in enumerate(state.goals)
        ]
        return _picture(*points, (state.gripper, 5, (200, 0, 0)))

    def _goal(self, state: RelayState) -> Float32[Array, "3"]:
        return state.goals[state.leg]

    def _observe(self, state: RelayState) -> Float32[Array, "9"]:
        points = jnp.concatenate([state.gripper, self._goal(state)])
        return jnp.concatenate([3 * (points - 0.5), jax.nn.one_hot(state.leg, 3)])


_CAREFUL = 0.5  # the demonstrators' careful speed
_FAST = (
    0.6  # faster motions can lose the object; careful ones stay below when they are played as centres of bins
)

TASKS: dict[str, Callable[..., JaxEnv]] = {"pick": Pick, "relay": Relay}


def make(
    task: str = "pick", *, num_envs: int, history: int = 1, horizon: int | None = None, hidden: bool = False
) -> JaxVectorEnv:
    """`num_envs` copies of a task.

    Args:
      task: a name of `TASKS`.
      num_envs: environments stepped together.
      history: observations in one, see `JaxVectorEnv`.
      horizon: steps of an episode; None takes the task's own number.
      hidden: see `Pick`, which alone has it.

    Raises:
      UserError: an unknown task.
      ValueError: an option is out of range, or `hidden` is given for another task.
    """
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}{nearest(task, TASKS)}")
    options: dict[str, Any] = {} if horizon is None else {"horizon": horizon}
    if hidden:
        if task != "pick":
            raise ValueError(f"hidden=true needs task=pick; task={task} has nothing to hide")
        options["hidden"] = True
    return JaxVectorEnv(TASKS[task](**options), num_envs, name=task, history=history)


def _spec(observation: int, action: int) -> Spec:
    high = np.ones(action, np.float32)
    return Spec(
        jax.ShapeDtypeStruct((observation,), np.float32),
        jax.ShapeDtypeStruct((action,), np.float32),
        None,
        (-high, high),
    )


def _check_horizon(horizon: int) -> None:
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, not {horizon}")


def _moved(gripper: Float32[Array, "3"], motion: Float32[Array, "3"]) -> Float32[Array, "3"]:
    return jnp.clip(gripper + _STEP * jnp.clip(motion, -1, 1), 0, 1)


def _distance(a: Float32[Array, "3"], b: Float32[Array, "3"]) -> Float32[Array, ""]:
    return jnp.linalg.norm(a - b)


def _picture(*points: tuple[Any, int, tuple[int, ...]]) -> UInt8[np.ndarray, "height width 3"]:
    """Discs (point, radius in pixels, colour) in the cube, from the front on the left and from above on the right."""
    picture = np.full((_SIDE, 2 * _SIDE, 3), 255, np.uint8)
    picture[:, _SIDE - 1 : _SIDE + 1] = 160
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    for axis, panel in ((2, picture[:, :_SIDE]), (1, picture[:, _SIDE:])):
        for point, radius, colour in points:
            x, y = 4 + (_SIDE - 8) * np.asarray(point)[[0, axis]]
            panel[(columns - x) ** 2 + (_SIDE - 1 - rows - y) ** 2 <= radius**2] = colour
    return picture
