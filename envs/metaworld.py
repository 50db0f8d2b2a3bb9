"""Meta-World's robot arm: 50 manipulation tasks, each with a scripted expert, as a vector environment.

This module uses Farama's `metaworld` package. EnvPool's port is faster, but it has no experts, cannot seed an
environment again, and cannot copy its state; docs/robotics.md compares them.
"""

from __future__ import annotations

import atexit
import copy
import functools
import importlib.metadata
import os
import sys
import warnings
from typing import Any

import gymnasium
import gymnasium.vector
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float32, Float64, Integer, Shaped, UInt8

from rlcls._errors import UserError, install, nearest, one_line
from rlcls.spec import Spec

from .base import checked_actions, reset_arguments
from .spaces import spec_from_spaces

# The middle of the space over the table, and about half of its width, in metres.
_CENTRE, _SCALE = (0.0, 0.7, 0.15), 0.15
# The gripper's opening is 1 if it is open, and about 0.4 if it holds an object.
_OPENING, _OPENING_SCALE = 0.7, 0.3
_FILM_SIZE = 240  # pixels
_LARGEST_PICTURE = 480  # pixels, the size of the package's framebuffer


class MetaWorld(gymnasium.vector.VectorEnv):
    """N robot arms with the same task: a `HostEnv`. They step one after another, because threads are no faster here.

    Every episode draws a new goal and new positions of the objects. A decision plays `action_repeat` simulation steps
    of 0.0125 s with one action (dx, dy, dz, gripper), which is clipped to [-1, 1]. Success is tested after each
    decision, in the state that the agent observes. It gives reward 1 and terminates the episode. All other rewards are
    0.

    A vector observation has 14 numbers, or 21 in a task with two objects: the hand's position, the gripper's opening,
    the position and quaternion of each object, and the goal's position. The package's 39 numbers also contain padding
    and the previous observation. Positions are (x - (0, 0.7, 0.15)) / 0.15 in metres, with the same scale in all
    directions; the opening is (x - 0.7) / 0.3.

    Args:
      task: a name of `tasks()`, such as "pick-place-v3".
      num_envs: N.
      horizon: number of decisions after which an episode without success is truncated.
      action_repeat: simulation steps per decision.
      history: with w > 1, observations are the last w of their episode, oldest first, with zeros before the first.
      image_size: with S > 0, observations are images [3, S, S], in which the goal's marker is visible.

    Raises:
      UserError: the task is unknown, a number is out of range, or a package or library is not installed.
    """

    spec: Spec  # type: ignore[assignment]  # gymnasium's is the entry of its registry
    frame_skip = 1
    evaluation_epsilon = 0.0

    def __init__(
        self,
        task: str,
        num_envs: int,
        horizon: int = 30,
        action_repeat: int = 5,
        history: int = 1,
        image_size: int = 0,
    ):
        numbers = {
            "num_envs": num_envs,
            "horizon": horizon,
            "action_repeat": action_repeat,
            "history": history,
        }
        for option, number in numbers.items():
            if number < 1:
                raise UserError(f"env.{option} must be at least 1, not {number}")
        if not 0 <= image_size <= _LARGEST_PICTURE:
            raise UserError(
                f"env.image_size must be 0 (no images) to {_LARGEST_PICTURE} pixels, not {image_size}"
            )
        if task not in tasks():
            raise UserError(f"unknown task {task!r}{nearest(task, tasks(), most=4)}")
        self.task, self.horizon, self.action_repeat = task, horizon, action_repeat
        self.name = f"metaworld/{task}"
        self.num_envs = num_envs
        self.frame_stack = history if history > 1 else 0
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self._history, self._image_size = history, image_size
        self._arms = [_Arm(task) for _ in range(num_envs)]
        self._camera = _Camera(self._arms[0].env.model, image_size) if image_size else None

        frame = (3, image_size, image_size) if image_size else (7 + 7 * self._arms[0].num_objects,)
        shape = (history, *frame) if history > 1 else frame
        box = gymnasium.spaces.Box
        self.single_observation_space = (
            box(0, 255, shape, np.uint8) if image_size else box(-np.inf, np.inf, shape, np.float32)
        )
        self.single_action_space = box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self.spec = spec_from_spaces(self.single_observation_space, self.single_action_space)

        self._raw = np.zeros((num_envs, 39))
        self._frames = np.zeros((num_envs, history, *frame), self.single_observation_space.dtype)
        self._decisions = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, bool)
        self._episode_start = np.zeros(num_envs, bool)
        self._actions: np.ndarray | None = None
        # The experts: whether each has looked in this episode, the observation it assumes, and its last action.
        self._has_looked = np.zeros(num_envs, bool)
        self._imagined = np.zeros((num_envs, 39))
        self._chosen = np.zeros((num_envs, 4), np.float32)
        self._stepped = False

    def reset(
        self, *, seed: int | Integer[np.ndarray, "N"] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Shaped[np.ndarray, "N *observation"], dict[str, np.ndarray]]:
        """Starts an episode in every environment, or in those of options["reset_mask"]; see `HostEnv`."""
        seeds, mask = reset_arguments(seed, options, self.num_envs)
        if self._actions is not None and not mask.all():
            raise RuntimeError("a reset of single environments must not stand between send and recv")
        self._actions = None
        for i in map(int, np.flatnonzero(mask)):
            if seeds is not None:
                self._arms[i].env.seed(int(seeds[i]))
            self._begin(i)
        self._over = self._over & ~mask
        self._episode_start = self._episode_start | mask
        return self._observations(), {"episode_start": self._episode_start}

    def send(self, actions: Shaped[np.ndarray, "N 4"]) -> None:
        """Stores the actions for `recv`; see `HostEnv`."""
        if self._actions is not None:
            raise RuntimeError("send was called twice without recv")
        checked = checked_actions(actions, self.spec, self.num_envs, self.name)
        self._actions = np.clip(checked, -1.0, 1.0)

    def recv(
        self,
    ) -> tuple[
        Shaped[np.ndarray, "N *observation"],
        Float32[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        Bool[np.ndarray, "N"],
        dict[str, np.ndarray],
    ]:
        """Plays a decision in every environment: observations, rewards, terminated, truncated, info; see `HostEnv`."""
        if self._actions is None:
            raise RuntimeError("recv was called without send")
        actions, self._actions = self._actions, None
        starts, success = self._over, np.zeros(self.num_envs, bool)
        for i, arm in enumerate(self._arms):
            if starts[i]:
                self._begin(i)
                continue
            self._raw[i] = arm.play(actions[i], self.action_repeat)
            self._decisions[i] += 1
            success[i] = arm.succeeded(self._raw[i], actions[i])
            self._push(i)
        truncated = ~success & (self._decisions >= self.horizon)
        self._over, self._episode_start, self._stepped = success | truncated, starts, True
        return self._observations(), success.astype(np.float32), success, truncated, {"episode_start": starts}

    def step(self, actions: Shaped[np.ndarray, "N 4"]) -> Any:
        """`send` followed by `recv`."""
        self.send(actions)
        return self.recv()

    def scripted_actions(self, look: Bool[np.ndarray, "N"] | None = None) -> Float32[np.ndarray, "N 4"]:
        """The actions of the task's expert; see `HostEnv`.

        Where the expert does not look, MuJoCo plays its previous action in a copy of the state that the expert assumes.
        Only these calls have the cost of this second simulation. The expert always looks in its first call of an
        episode.
        """
        looks = np.ones(self.num_envs, bool) if look is None else np.asarray(look)
        if looks.shape != (self.num_envs,) or looks.dtype != bool:
            raise ValueError(f"look must be bool [{self.num_envs}], not {look!r}")
        for i in map(int, np.flatnonzero(looks | ~self._has_looked)):
            self._arms[i].remember()
            self._imagined[i] = self._raw[i]
        if self._stepped:
            for i in map(int, np.flatnonzero(~looks & self._has_looked)):
                self._imagined[i] = self._arms[i].imagine(self._chosen[i], self.action_repeat)
        self._has_looked[:], self._stepped = True, False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the experts warn about each clipped action
            for i, arm in enumerate(self._arms):
                self._chosen[i] = np.clip(arm.expert.get_action(self._imagined[i]), -1.0, 1.0)
        return self._chosen.copy()

    def evaluation(self, num_envs: int) -> MetaWorld:
        """`num_envs` arms with the same task, because evaluations have the same rules as training."""
        return MetaWorld(**self._arguments(), num_envs=num_envs)

    def render_twin(self) -> Film:
        """One environment that plays the same episodes with images, for `rlcls.evaluation.film`."""
        return Film(MetaWorld(**self._arguments() | {"history": 1, "image_size": _FILM_SIZE}, num_envs=1))

    @property
    def seconds(self) -> float:
        """The simulated time per decision."""
        return self._arms[0].env.dt * self.action_repeat

    def describe(self) -> str:
        """The length of an episode and the observation in one line."""
        size = self._image_size
        seen = f"{size} x {size} pictures" if size else f"{self._frames.shape[-1]} numbers"
        past = f", the last {self._history}" if self._history > 1 else ""
        return f"ends at success or {self.horizon} decisions of {self.seconds:g} s; {seen}{past}"

    def facts(self) -> dict[str, Any]:
        """The options, and the versions of the packages that simulate."""
        packages = {name: importlib.metadata.version(name) for name in ("metaworld", "mujoco")}
        return {
            "name": "metaworld",
            **self._arguments(),
            "packages": packages,
            "evaluation_epsilon": self.evaluation_epsilon,
        }

    def close_extras(self, **kwargs: Any) -> None:
        """Frees the camera's OpenGL context."""
        # gymnasium also closes an environment whose constructor raised.
        camera: _Camera | None = getattr(self, "_camera", None)
        if camera is not None:
            camera.close()
            self._camera = None

    def __repr__(self) -> str:
        return f"MetaWorld({self.task!r}, num_envs={self.num_envs})"

    def _arguments(self) -> dict[str, Any]:
        """The constructor's arguments except `num_envs`."""
        return {
            "task": self.task,
            "horizon": self.horizon,
            "action_repeat": self.action_repeat,
            "history": self._history,
            "image_size": self._image_size,
        }

    def _begin(self, i: int) -> None:
        """Starts an episode in environment `i`."""
        self._raw[i] = self._arms[i].begin()
        self._decisions[i] = 0
        self._has_looked[i] = False
        self._frames[i] = 0
        self._push(i)

    def _push(self, i: int) -> None:
        """Appends the current state of environment `i` to its frames."""
        self._frames[i, :-1] = self._frames[i, 1:]
        if self._camera is not None:
            self._frames[i, -1] = self._camera.picture(self._arms[i].env)
        else:
            self._frames[i, -1] = _standardised(self._raw[i], self._arms[i].num_objects)

    def _observations(self) -> Shaped[np.ndarray, "N *observation"]:
        return self._frames.copy() if self._history > 1 else self._frames[:, 0].copy()


class Film:
    """One environment whose observations are images [1, 1, height, width, 3], for `rlcls.evaluation.film`.

    Attributes:
      fps: decisions per second of simulated time.
    """

    def __init__(self, env: MetaWorld):
        self._env = env
        self.fps = 1 / env.seconds

    def reset(
        self, *, seed: Integer[np.ndarray, "1"]
    ) -> tuple[UInt8[np.ndarray, "1 1 h w 3"], dict[str, Any]]:
        observations, info = self._env.reset(seed=seed)
        return np.moveaxis(observations, 1, -1)[None], info

    def step(self, actions: Float32[np.ndarray, "1 4"]) -> Any:
        observations, *rest = self._env.step(actions)
        return np.moveaxis(observations, 1, -1)[None], *rest

    def close(self) -> None:
        self._env.close()


def make(
    task: str,
    num_envs: int,
    horizon: int = 30,
    action_repeat: int = 5,
    history: int = 1,
    image_size: int = 0,
) -> MetaWorld:
    """`num_envs` arms with the same task; see `MetaWorld`."""
    return MetaWorld(task, num_envs, horizon, action_repeat, history, image_size)


def tasks() -> list[str]:
    """The names of the 50 tasks, in alphabetical order."""
    return sorted(_package().policies.ENV_POLICY_MAP)


class _Arm:
    """One environment of the package: its simulation and test of success, without its dense reward and time limit.

    Here an episode depends only on the random stream. In the package it does not: it draws one of 50 goals, ignores the
    seed of a reset, and leaves bodies of the model where the previous episode moved them, which in ten tasks changes
    the first observation or the hand's first movement.
    """

    def __init__(self, task: str):
        import mujoco

        package = _package()
        self._mujoco = mujoco
        self.env = _task_class(task)()
        self.env._partially_observable = False  # the goal is visible
        del self.env.sawyer_observation_space  # cached with a hidden goal
        self.env._set_task_called = True
        self.env.seeded_rand_vec = True
        self.env.seed(np.random.SeedSequence().generate_state(1)[0].item())
        self.expert = package.policies.ENV_POLICY_MAP[task]()
        self.num_objects = len(self.env._get_pos_objects()) // 3
        self._bodies = self.env.model.body_pos.copy()
        self._sites = self.env.model.site_pos.copy()
        self._parts = mujoco.mjtState.mjSTATE_INTEGRATION
        self._remembered = np.zeros(mujoco.mj_stateSize(self.env.model, self._parts))
        self._imagination: Any = None

    def begin(self) -> Float64[np.ndarray, "39"]:
        """Draws a goal and starts an episode; returns its first observation."""
        env = self.env
        env.model.body_pos[:], env.model.site_pos[:] = self._bodies, self._sites
        # The first pass draws a goal and moves the model's bodies. It skips moving the hand, which is most of the work.
        env._freeze_rand_vec = False
        env._reset_hand = functools.partial(type(env)._reset_hand, env, steps=0)
        self._start()
        # The second pass repeats the reset with the same draw, after the bodies were moved.
        env._freeze_rand_vec = True
        del env._reset_hand
        self._start()
        self._mujoco.mj_forward(env.model, env.data)
        return self._observe()

    def play(self, action: Float32[np.ndarray, "4"], repeat: int) -> Float64[np.ndarray, "39"]:
        """Plays `repeat` simulation steps with one action; returns the observation after the last."""
        env = self.env
        for _ in range(repeat):
            env.set_xyz_action(action[:3])
            env.do_simulation([action[3], -action[3]], env.frame_skip)
            self._mujoco.mj_forward(env.model, env.data)
        return self._observe()

    def succeeded(self, observation: Float64[np.ndarray, "39"], action: Float32[np.ndarray, "4"]) -> bool:
        """Whether the task is done in the current state, after this action."""
        return bool(self.env.evaluate_state(observation, action)[1]["success"])

    def remember(self) -> None:
        """Stores the current state, from which `imagine` continues."""
        self._mujoco.mj_getState(self.env.model, self.env.data, self._remembered, self._parts)

    def imagine(self, action: Float32[np.ndarray, "4"], repeat: int) -> Float64[np.ndarray, "39"]:
        """The observation after `action` in the stored state. The state after it is stored in turn."""
        if self._imagination is None:
            self._imagination = self._mujoco.MjData(self.env.model)
        present, self.env.data = self.env.data, self._imagination
        try:
            self._mujoco.mj_setState(self.env.model, self.env.data, self._remembered, self._parts)
            observation = self.play(action, repeat)
            self.remember()
        finally:
            self.env.data = present
        return observation

    def _start(self) -> None:
        self._mujoco.mj_resetData(self.env.model, self.env.data)
        self._mujoco.mj_forward(self.env.model, self.env.data)
        self.env.reset_model()

    def _observe(self) -> Float64[np.ndarray, "39"]:
        space = self.env.sawyer_observation_space
        return np.clip(self.env._get_obs(), space.low, space.high)


class _Camera:
    """Renders images of arms with the same task, without effects that are slow to draw.

    Args:
      model: the MuJoCo model of any of the arms.
      size: height and width in pixels.
    """

    def __init__(self, model: Any, size: int):
        import mujoco

        model = copy.copy(model)
        # Shadows and anti-aliasing take nine tenths of the package's own rendering.
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        try:
            _draw_without_window()
            self._renderer = type("Renderer", (mujoco.Renderer,), _UNMADE)(model, size, size)
        except Exception as error:  # OpenGL libraries that cannot draw raise various exceptions
            raise UserError(
                f"images need OpenGL: apt-get install libegl1 libgl1-mesa-dri ({one_line(error)})"
            ) from error
        # At the end of the process, MuJoCo's classes fail to free their contexts after EGL has ended.
        atexit.register(self.close)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
            self._renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False
        self._view = mujoco.MjvCamera()
        self._view.lookat[:] = 0.0, 0.65, 0.12
        self._view.distance, self._view.azimuth, self._view.elevation = 1.0, 142.0, -32.0

    def picture(self, env: Any) -> UInt8[np.ndarray, "3 size size"]:
        """An image of the current state of an environment of the package."""
        for site in env._target_site_config:  # moves the marker of the goal, which the simulation does not do
            env._set_pos_site(*site)
        self._renderer.update_scene(env.data, self._view)
        return np.moveaxis(self._renderer.render(), -1, 0)

    def close(self) -> None:
        self._renderer.close()
        atexit.unregister(self.close)


# MuJoCo's classes read these attributes when they are deleted, even if their constructor raised.
_UNMADE = {"_context": None, "_gl_context": None, "_mjr_context": None}


def _draw_without_window() -> None:
    """Makes MuJoCo draw with EGL, like MUJOCO_GL=egl before its import, unless this variable is set."""
    if sys.platform == "linux" and "MUJOCO_GL" not in os.environ:
        import mujoco.egl
        import mujoco.gl_context

        mujoco.gl_context.GLContext = type("GLContext", (mujoco.egl.GLContext,), _UNMADE)


def _standardised(raw: Float64[np.ndarray, "39"], num_objects: int) -> Float32[np.ndarray, "numbers"]:
    """The scaled numbers of a vector observation; see `MetaWorld`."""
    parts = [(raw[:3] - _CENTRE) / _SCALE, (raw[3:4] - _OPENING) / _OPENING_SCALE]
    for first in range(4, 4 + 7 * num_objects, 7):
        parts += [(raw[first : first + 3] - _CENTRE) / _SCALE, raw[first + 3 : first + 7]]
    return np.concatenate([*parts, (raw[36:] - _CENTRE) / _SCALE]).astype(np.float32)


@functools.cache
def _task_class(task: str) -> Any:
    """The package's class of a task. Its instances copy one model, instead of reading 30 mesh files each."""
    import mujoco

    kind = _package().env_dict.ALL_V3_ENVIRONMENTS[task]
    models: dict[str, Any] = {}

    def copied(env: Any) -> tuple[Any, Any]:
        if env.fullpath not in models:
            models[env.fullpath] = kind._initialize_simulation(env)[0]
        model = copy.copy(models[env.fullpath])
        return model, mujoco.MjData(model)

    return type(kind.__name__, (kind,), {"_initialize_simulation": copied})


@functools.cache
def _package() -> Any:
    """The package `metaworld`.

    Raises:
      UserError: the package, or a package or library that it needs, is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import metaworld.env_dict
            import metaworld.policies
    except ModuleNotFoundError as error:
        raise UserError(f"env=metaworld needs {error.name}: {install('robotics')}") from None
    except (AttributeError, ImportError, RuntimeError) as error:
        if (way := os.environ.get("MUJOCO_GL")) is None:
            raise
        raise UserError(
            f"MuJoCo cannot draw with MUJOCO_GL={way} ({one_line(error)}): install its library or unset the variable"
        ) from error
    return metaworld
