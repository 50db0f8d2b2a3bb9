"""The training loop: environments step in C++ threads and updates run in a thread of their own, in one fixed order."""

from __future__ import annotations

import collections
import hashlib
import statistics
import time
from typing import Any

import gymnasium.vector
import jax
import jax.numpy as jnp
import numpy as np
from omegaconf import DictConfig

from rlcls._errors import UserError
from rlcls.replay import FrameReplay, Transition

from . import xla
from .checkpoint import Checkpoint
from .episodes import Episodes
from .learner import Acting, Learner

_INIT, _ACT, _UPDATE = range(3)  # what the run's key is folded with; `player.KEY` is another


class Trainer:
    """One run between two of its moments.

    Everything random is a function of (seed, step), and everything that crosses threads does so after a fixed lag:
    step s acts with the parameters after the updates of step s - 1 - lag, and the updates of step s sample what the
    replay held, and the priorities it had, `lag` steps before. So a run gives the same bits at any speed, and goes on
    from any `get_state`.

    Args:
      config: of the run.
      agent: init, act, update.
      env: N environments, see `rlcls.envs`.

    Attributes:
      steps: vector steps done; each is N agent steps.
      replay: what was played.
    """

    def __init__(self, config: DictConfig, agent: Any, env: gymnasium.vector.VectorEnv):
        self._config, self._agent, self._env = config, agent, env
        self._num_envs, self._lag = env.num_envs, int(config.training.lag)
        self._frame_skip = getattr(env, "frame_skip", 1)
        self._period = int(config.training.update_period)
        self._reseed_every = max(1, int(config.training.reseed_every) // self._num_envs)
        self.replay = make_replay(config, env)
        key = jax.random.key(config.seed)
        init_key, act_key, update_key = (jax.random.fold_in(key, use) for use in (_INIT, _ACT, _UPDATE))

        def act(acting, observations, step, epsilon):
            return agent.act(*acting, observations, jax.random.fold_in(act_key, step), epsilon)

        def update(state, batch, number):
            return agent.update(state, batch, jax.random.fold_in(update_key, number))

        self._act, self._update = xla.jit(act), xla.jit(update, donate_argnums=0)
        # An agent of somebody's own need not have it.
        self._diagnose = xla.jit(agent.diagnose) if hasattr(agent, "diagnose") else None
        state = xla.jit(agent.init)(init_key)
        acts = bool(config.training.act_with_target)
        self._learner = Learner(self._update, state, self._lag, self._diagnose, acts)
        self._episodes = Episodes(self._num_envs)
        self._sums: collections.Counter[str] = collections.Counter()  # of update metrics since the last line
        self.steps = 0
        self._observations: np.ndarray
        self._starts: np.ndarray
        self._sent: list[np.ndarray] = []  # actions since the last re-seed
        self._reseed(0)

    @property
    def agent_steps(self) -> int:
        """Steps taken, all environments together."""
        return self.steps * self._num_envs

    @property
    def counts(self) -> dict[str, int]:
        """What a line of metrics is placed by."""
        frames = self.agent_steps * self._frame_skip
        return {"agent_steps": self.agent_steps, "frames": frames, "updates": self._updates_due(self.steps)}

    @property
    def acting(self) -> Acting:
        """What acts in the next step."""
        return self._learner.acting

    @property
    def diagnosed(self) -> list[dict[str, Any]]:
        """What the last step learned of the inside of the network, and after how many updates."""
        return self._learner.diagnosed

    @property
    def mean_return(self) -> float | None:
        """Of the last 20 finished episodes."""
        return self._episodes.mean_return

    def step(self) -> list[dict[str, Any]]:
        """One vector step and its updates.

        Returns:
          return and length of each episode that finished.

        Raises:
          Diverged: an update gave a result that is not finite.
        """
        if self.steps and self.steps % self._reseed_every == 0:
            self._reseed(self.steps // self._reseed_every)
        observations, starts = self._observations, self._starts
        actions = np.asarray(self._act(self._learner.acting, observations, self.steps, self._epsilon()))
        self._env.send(actions)  # type: ignore[attr-defined]
        if self._lag:  # the updates need nothing of this step: they are prepared while the emulator plays it
            self._learn()
        self._observations, rewards, terminated, _, info = self._env.recv()  # type: ignore[attr-defined]
        self._starts = info["episode_start"]
        self._sent.append(actions)
        frames = observations[:, -1] if is_stacked(self._env) else observations
        self.replay.add(frames, actions, rewards, terminated, starts)
        if not self._lag:
            self._learn()
        for line in self._learner.end_round(self.replay):
            self._sums.update(line)
            self._sums["updates"] += 1
        self.steps += 1
        finished = self._episodes.add(rewards, self._starts)
        return [{"return": value, "length": length} for value, length in finished]

    def _learn(self) -> None:
        size, seed = int(self._config.training.batch_size), self._config.seed
        while (number := self._learner.submitted) < self._updates_due(self.steps + 1):
            held_out = None
            if (
                self._diagnose
                and (every := self._config.diagnostics.every)
                and number
                and number % every == 0
            ):
                held_out = self.replay.sample_held_out(self._config.diagnostics.batch_size, seed, number)
            self._learner.submit(*self.replay.sample(size, seed, number), held_out)

    def _updates_due(self, steps: int) -> int:
        return max(0, steps * self._num_envs - int(self._config.replay.min_size)) // self._period

    def _epsilon(self) -> float:
        exploration = self._config.exploration
        share = (self.agent_steps - self._config.replay.min_size) / max(1, exploration.epsilon_decay)
        share = min(max(share, 0.0), 1.0)
        return exploration.epsilon_start + share * (exploration.epsilon_end - exploration.epsilon_start)

    def _reseed(self, index: int) -> None:
        """Resets every environment, so that its state is a function of (seed, index) and the actions sent since."""
        # One array of seeds per reset: seed + i would make environment 1 of seed 0 the twin of environment 0 of seed 1.
        seeds = np.random.SeedSequence([self._config.seed, index]).generate_state(self._num_envs)
        self._observations, _ = self._env.reset(seed=seeds)  # type: ignore[arg-type]
        self._starts = np.ones(self._num_envs, bool)
        self._sent = []
        self._episodes.drop()

    def summary(self) -> dict[str, Any]:
        """A line of metrics over the updates since the last call."""
        sums, self._sums = self._sums, collections.Counter()
        updates = sums.pop("updates", 0)
        means = {name: value / updates for name, value in sums.items()}
        return means | {
            "epsilon": self._epsilon(),
            "episode_return": self.mean_return,
            "episodes": self._episodes.finished,
        }

    def warm_up(self, timed: int = 3) -> float:
        """Compiles what the loop runs, and measures.

        Returns:
          Seconds of one update, the median of `timed`.
        """
        batch = self._zeros(self._config.training.batch_size)
        tree, _ = self._learner.snapshot()
        self._act(self._learner.acting, self._observations, 0, 0.0)
        last = self._updates_due(int(self._config.steps) // self._num_envs)
        if self._diagnose and 0 < self._config.diagnostics.every < last:
            held_out = self._zeros(self._config.diagnostics.batch_size)
            jax.block_until_ready(self._diagnose(tree["state"], batch, held_out))
        state, _ = self._update(jax.tree.map(jnp.copy, tree["state"]), batch, 0)
        seconds = []
        for _ in range(timed):
            jax.block_until_ready(state)
            begun = time.perf_counter()
            state, _ = jax.block_until_ready(self._update(state, batch, 0))
            seconds.append(time.perf_counter() - begun)
        return statistics.median(seconds)

    def _zeros(self, size: int) -> Transition:
        space = self._env.single_observation_space
        observations = np.zeros((size, *space.shape), space.dtype)  # type: ignore[misc]
        line = np.zeros(size, np.float32)
        return Transition(observations, np.zeros(size, np.int32), line, line, observations, line)

    def get_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
        """The pytree, small arrays and JSON-able counters of this moment; the replay is saved apart.

        It may be taken after any step and changes nothing.

        Raises:
          Diverged: this moment is not worth keeping, see `Learner.snapshot`.
        """
        tree, arrays = self._learner.snapshot()
        sent = np.stack(self._sent) if self._sent else np.zeros((0, self._num_envs))
        arrays["sent"] = sent.astype(np.int32)
        counters = {
            "steps": self.steps,
            "observations": _digest(self._observations),
            "episodes": self._episodes.get_state(),
            "sums": dict(self._sums),
        }
        return tree, arrays, counters

    def set_state(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint; the environments are brought there by playing their actions again.

        Raises:
          UserError: they did not come to the same observations.
        """
        counters = checkpoint.counters["trainer"]
        like, _ = self._learner.snapshot()
        acting = [self._learner.acting] * self._lag
        self._learner.restore(checkpoint.tree({"state": like["state"], "acting": acting}), checkpoint.arrays)
        checkpoint.fill(self.replay)
        self.steps = counters["steps"]
        # A re-seed is done by the step that needs it, so the last one lies before the last step done.
        self._reseed(max(0, self.steps - 1) // self._reseed_every)
        for actions in checkpoint.arrays["sent"]:
            self._observations, _, _, _, info = self._env.step(actions)
            self._starts = info["episode_start"]
            self._sent.append(actions)
        self._episodes.set_state(counters["episodes"])
        self._sums = collections.Counter(counters["sums"])
        if _digest(self._observations) != counters["observations"]:
            raise UserError(
                "the environments do not come back to where the checkpoint left them: they play differently now "
                f"({_emulator()}); resume with the versions named in the run folder's run.json"
            )

    def close(self) -> None:
        """Ends the learner's thread."""
        self._learner.close()


def make_replay(config: DictConfig, env: gymnasium.vector.VectorEnv) -> FrameReplay:
    """The replay of a configuration for what `env` shows.

    Raises:
      UserError: there would not always be a transition to sample.
    """
    training, num_envs = config.training, env.num_envs
    least = num_envs * (config.replay.n_step + training.lag)
    if config.replay.min_size < least:
        raise UserError(
            f"replay.min_size ({config.replay.min_size}) must be at least {least}: {config.replay.n_step}-step returns "
            f"of {num_envs} environments at a lag of {training.lag} are not known before"
        )
    if training.reseed_every < 2 * num_envs:
        raise UserError(
            f"training.reseed_every ({training.reseed_every}) must be at least {2 * num_envs}, two steps of each "
            "environment: the last before a reset is not learnt from"
        )
    space: Any = env.single_observation_space
    stacked = is_stacked(env)
    options = dict(config.replay)
    capacity = options.pop("capacity")
    del options["min_size"]
    try:
        return FrameReplay(
            env.num_envs,
            capacity,
            frame_shape=space.shape[1:] if stacked else space.shape,
            frame_dtype=space.dtype,
            stack=space.shape[0] if stacked else 0,
            # With a lag one samples before the step adds its row: that is one row already.
            delay=max(0, int(config.training.lag) - 1),
            **options,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def is_stacked(env: gymnasium.vector.VectorEnv) -> bool:
    """Whether observations are the latest frames, [stack, height, width]."""
    space = env.single_observation_space
    return space.dtype == np.uint8 and len(space.shape) == 3  # type: ignore[arg-type]


def _digest(observations: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(observations).tobytes()).hexdigest()


def _emulator() -> str:
    from .run_folder import facts

    return f"ale-py {facts()['ale-py']}"
