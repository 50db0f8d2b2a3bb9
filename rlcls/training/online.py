"""Online training: an agent acts in environments while a second thread makes its updates, in a fixed order."""

from __future__ import annotations

import collections
import copy
import hashlib
import itertools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, PyTree, UInt32

from rlcls._errors import UserError
from rlcls.agents.base import Agent
from rlcls.envs.base import HostEnv, check_finite, environment_seeds
from rlcls.replay import FrameReplay

from . import xla
from .exploration import LinearDecay
from .learner import Learner
from .loop import Saved, Tick
from .placement import Placement
from .returns import EpisodeReturns

_REHEARSAL = 0.5  # seconds; `warm_up` measures the loop for at least this long
_REHEARSAL_STEPS = 2  # the fewest vector steps that `warm_up` measures


class Online:
    """A loop in which one agent learns from what it plays in several environments.

    All random numbers are a function of (seed, step), and the two threads exchange data with a fixed lag. Step s acts
    with the parameters after the updates of step s - 1 - lag. The updates of step s sample the rows that the replay had
    `lag` steps before, by the priorities of that moment. A run therefore gives the same bits at any speed, and
    continues from any `save`.

    The state of an emulator cannot be saved. Each environment therefore gets a new seed at its first episode start
    after `reseed_every` of its steps, which cuts no episode. This seed is a function of (seed, number of the
    environment, number of its earlier seeds). The state of an environment is then a function of its last seed and of
    its actions since, which `restore` replays.

    Several processes of one `placement` can train one agent together. Each makes this loop with its own environments
    and replay, and all take the same steps at the same time. Each update learns from a share of every replay.

    Args:
      agent: the agent that learns.
      env: the N environments of this process.
      replay: an empty replay of N streams.
      seed: determines the networks, the exploration, the replay's samples and the environments.
      batch_size: transitions in an update, summed over all processes.
      update_period: agent steps between two updates, summed over all processes.
      lag: vector steps by which acting and learning overlap; with 0 they alternate.
      act_with_target: whether the agent's target network acts instead of the online network.
      reseed_every: steps of an environment after which its next episode starts from a new seed, at least 1.
      exploration: gives the probability of a random action.
      diagnostics_every: updates between two diagnoses of the network; 0 turns them off.
      diagnostics_batch_size: held-out transitions in a diagnosis, summed over all processes.
      log_every: agent steps between two "train" lines.
      placement: the devices on which updates are made; None takes one.

    Attributes:
      replay: the replay.
      number: vector steps so far. One vector step is N agent steps in each process.

    Raises:
      ValueError: an option is out of range, or the parts do not fit together.
    """

    unit = "agent_steps"

    def __init__(
        self,
        agent: Agent[Any],
        env: HostEnv,
        replay: FrameReplay,
        *,
        seed: int = 0,
        batch_size: int = 32,
        update_period: int = 4,
        lag: int = 1,
        act_with_target: bool = False,
        reseed_every: int = 6_000,
        exploration: LinearDecay = LinearDecay(),  # noqa: B008  # frozen
        diagnostics_every: int = 0,
        diagnostics_batch_size: int = 256,
        log_every: int = 2_000,
        placement: Placement | None = None,
    ):
        for name, value in (
            ("batch_size", batch_size),
            ("update_period", update_period),
            ("log_every", log_every),
            ("reseed_every", reseed_every),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name, value in (("lag", lag), ("diagnostics_every", diagnostics_every)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        if replay.num_streams != env.num_envs:
            raise ValueError(f"the replay has {replay.num_streams} streams for {env.num_envs} environments")
        placement = placement or Placement()
        placement.check_batch(batch_size=batch_size)
        host, hosts = placement.host, placement.hosts
        batch_size //= hosts
        if replay.min_size < batch_size:
            raise ValueError(
                f"replay.min_size ({replay.min_size}) must be at least batch_size ({batch_size})"
            )
        # With lag >= 1 a batch is drawn before this step's row is added, which already delays sampling by one row.
        replay.delay = max(0, lag - 1)
        least = env.num_envs * (replay.n_step + lag)
        if replay.min_size < least:
            raise ValueError(
                f"replay.min_size ({replay.min_size}) must be at least {least}: {replay.n_step}-step returns of "
                f"{env.num_envs} environments at a lag of {lag} are not complete before"
            )
        self.replay, self.number = replay, 0
        self._filled_from = (0, 0)  # vector steps and updates when the replay was empty
        self._agent, self._env, self._seed, self._lag = agent, env, seed, lag
        self._batch_size, self._update_period, self._log_every = batch_size, update_period, log_every
        self._host, self._hosts = host, hosts
        # Seeds are below 2**32, so no two processes share a sample seed. Process 0 has that of a single process.
        self._sample_seed = seed + (host << 32)
        self._reseed_every = reseed_every
        self._exploration = exploration
        init_key, act_key, update_key = xla.keys(seed, xla.Use.INIT, xla.Use.ACT, xla.Use.UPDATE)

        def act(acting: PyTree, observations: Any, number: Any, epsilon: Any) -> Any:
            key = jax.random.fold_in(act_key, number)
            return agent.act(acting, observations, jax.random.fold_in(key, host) if host else key, epsilon)

        self._act = xla.jit(act)
        # The update divides weights by the largest of the batch, which no single process knows.
        replay.raw_weights = hosts > 1 and replay.prioritized
        self._learner = Learner(
            agent,
            init_key,
            update_key,
            lag=lag,
            act_with_target=act_with_target,
            placement=placement,
            scale_weights=replay.raw_weights,
        )
        self._diagnostics_every = diagnostics_every if self._learner.diagnoses else 0
        if self._diagnostics_every:
            placement.check_batch(diagnostics_batch_size=diagnostics_batch_size)
        self._diagnostics_batch_size = diagnostics_batch_size // hosts
        self._returns = EpisodeReturns(env.num_envs)
        # Whether `advance` failed in a step that can be neither finished nor repeated.
        self._halfway = False
        # The sums of the updates' metrics since the last "train" line, and the number of those updates.
        self._sums: collections.Counter[str] = collections.Counter()
        # The first `advance` resets the environments with their seeds; in a restored loop `_replay_actions` does it.
        self._observations: PyTree | None = None
        self._starts = np.ones(env.num_envs, bool)
        # For each environment, the number of seeds after its first one, and the vector steps before the last one.
        self._seedings = np.zeros(env.num_envs, np.int64)
        self._seeded_at = np.zeros(env.num_envs, np.int64)
        # The actions of every step since the oldest `_seeded_at`.
        self._sent: collections.deque[np.ndarray] = collections.deque()

    @property
    def counts(self) -> dict[str, int]:
        """Agent steps, emulator frames and updates so far."""
        steps = self._agent_steps
        frames = steps * self._env.frame_skip
        return {"agent_steps": steps, "frames": frames, "updates": self._updates_due(self.number)}

    @property
    def _agent_steps(self) -> int:
        return self.number * self._env.num_envs * self._hosts

    def acting(self) -> PyTree:
        """The acting part of the agent in the next step."""
        return self._learner.acting

    def advance(self) -> list[tuple[str, dict[str, Any]]]:
        """One vector step and its updates."""
        if self._observations is None:
            first, _ = self._env.reset(seed=self._seeds())
            check_finite(self._env.name, self.number, first)
            self._observations = first
        observations, starts = self._observations, self._starts
        arguments = jax.device_put((observations, self.number, self._epsilon()), may_alias=True)
        # A copy: a view would keep one of JAX's arrays alive for each step.
        actions = np.array(jax.device_get(self._act(self._learner.acting, *arguments)))
        self._env.send(actions)
        if (
            self._lag
        ):  # the updates need no data of this step, so they are submitted while the emulator plays it
            self._learn()
        next_observations, rewards, terminated, _, info = self._env.recv()
        check_finite(self._env.name, self.number + 1, next_observations, rewards)
        # If the step fails before this line, the loop can be saved. `advance` then repeats the step, without the
        # updates that are already submitted.
        self._halfway = True
        self._observations, self._starts = next_observations, info["episode_start"]
        self._sent.append(actions)
        self.replay.add(observations, actions, rewards, terminated, starts)
        if not self._lag:
            self._learn()
        results = self._learner.end_round()
        for result in results:
            self._sums.update(result.metrics)
            self._sums["updates"] += 1
            if result.priorities is not None:
                self.replay.set_priorities(result.where, result.priorities)
        before = self._agent_steps
        self.number += 1
        episodes = self._returns.add(rewards, self._starts)
        due = self._starts & (self.number - self._seeded_at >= self._reseed_every)
        if due.any():
            self._reseed(due)
        lines: list[tuple[str, dict[str, Any]]] = [
            ("episode", {"return": value, "length": length}) for value, length in episodes
        ]
        lines += [
            ("diagnostics", {"updates": result.number, **result.diagnostics})
            for result in results
            if result.diagnostics
        ]
        if self._agent_steps // self._log_every > before // self._log_every:
            lines.append(("train", self.summary()))
            self._sums.clear()
        self._halfway = False
        return lines

    def _learn(self) -> None:
        """Submits the updates of this step."""
        while (number := self._learner.submitted) < self._updates_due(self.number + 1):
            held_out = None
            if self._diagnostics_every and number and number % self._diagnostics_every == 0:
                held_out = self.replay.sample_held_out(
                    self._diagnostics_batch_size, self._sample_seed, number
                )
            self._learner.submit(*self.replay.sample(self._batch_size, self._sample_seed, number), held_out)

    def _updates_due(self, number: int) -> int:
        """The number of updates that `number` vector steps lead to."""
        first_number, updates = self._filled_from
        added = (number - first_number) * self._env.num_envs * self._hosts
        return updates + max(0, added - self._min_size) // self._update_period

    @property
    def _min_size(self) -> int:
        """Agent steps of all processes before the first update."""
        return self.replay.min_size * self._hosts

    def _epsilon(self) -> float:
        return self._exploration.epsilon(self._agent_steps - self._min_size)

    def _seeds(self) -> UInt32[np.ndarray, "N"]:
        """The last seed of each environment."""
        use = xla.Use.ENVIRONMENT
        # Environments are numbered over all processes, so their seeds do not depend on the number of processes.
        counts = enumerate(self._seedings.tolist(), self._host * self._env.num_envs)
        return np.concatenate(
            [environment_seeds((self._seed, use, number, count), 1) for number, count in counts]
        )

    def _reseed(self, due: Bool[np.ndarray, "N"]) -> None:
        """Resets the environments that are `due` with new seeds. Their episodes have just started."""
        self._seedings[due] += 1
        self._seeded_at[due] = self.number
        while len(self._sent) > self.number - self._seeded_at.min():
            self._sent.popleft()
        self._observations, info = self._env.reset(seed=self._seeds(), options={"reset_mask": due})
        self._starts = info["episode_start"]

    def _replay_actions(self, tick: Tick) -> None:
        """Brings every environment to its present state by replaying the actions since its last seed.

        The environments step together from the oldest `_seeded_at`. Each is reset with its last seed at the step at
        which it got that seed, so the steps that it replays before have no effect.
        """
        seeds, steps = self._seeds(), len(self._sent)
        first = self.number - steps
        self._observations, _ = self._env.reset(seed=seeds)
        self._starts = np.ones(self._env.num_envs, bool)
        for number, actions in enumerate(self._sent, first + 1):
            self._observations, _, _, _, info = self._env.step(actions)
            self._starts = info["episode_start"]
            begins = self._seeded_at == number
            if begins.any():
                self._observations, info = self._env.reset(seed=seeds, options={"reset_mask": begins})
                self._starts = info["episode_start"]
            tick(number - first, steps)

    def summary(self) -> dict[str, Any]:
        """The values of a "train" line over the updates since the last one."""
        means = {
            name: value / self._sums["updates"] for name, value in self._sums.items() if name != "updates"
        }
        return means | {
            "epsilon": self._epsilon(),
            "episode_return": self._returns.mean,
            "episodes": self._returns.finished,
        }

    def warm_up(self, until: int) -> float:
        """Compiles what a run to `until` agent steps needs, and measures half a second of playing and learning.

        Call it before the first `advance` or `restore`, because it resets the environments without a seed. It changes
        nothing else: it uses a small replay of its own.

        Returns:
          Seconds for one agent step once learning has begun.
        """
        rehearsal = copy.copy(self)
        rehearsal._learner = self._learner.rehearsal()
        # Learning begins once the replay has enough rows for every kind of sample.
        rows = self.replay.least_rows + 2 * self._lag + 2
        first = rows * self._env.num_envs
        rehearsal.replay = self.replay.like(capacity=2 * first, min_size=first)
        rehearsal._returns = EpisodeReturns(self._env.num_envs)
        rehearsal._sums = collections.Counter()
        rehearsal._sent = collections.deque()
        last_update = self._updates_due(-(-until // (self._env.num_envs * self._hosts)))
        rehearsal._diagnostics_every = 2 if 0 < self._diagnostics_every < last_update else 0
        rehearsal._reseed_every = 1 << 62
        rehearsal._observations, _ = self._env.reset()
        try:
            while rehearsal._learner.submitted < 3:  # the third update follows a diagnosis
                rehearsal.advance()
            rehearsal._diagnostics_every = 0
            # Reads the results of these updates, so that no compilation is timed.
            for _ in range(self._lag + 2):
                rehearsal.advance()
            begun, first_number = time.perf_counter(), rehearsal.number
            least = max(_REHEARSAL_STEPS, -(-3 * self._update_period // (self._env.num_envs * self._hosts)))
            # All processes must make equally many updates, so none of them may decide by its own clock.
            while rehearsal.number < first_number + least or (
                self._hosts == 1 and time.perf_counter() - begun < _REHEARSAL
            ):
                rehearsal.advance()
            seconds = time.perf_counter() - begun
        finally:
            rehearsal._learner.close()
        return seconds / ((rehearsal.number - first_number) * self._env.num_envs * self._hosts)

    def save(self) -> Saved:
        """The learner, the replay, and the seeds and actions that determine the environments' states.

        Raises:
          RuntimeError: an `advance` failed halfway.
        """
        if self._halfway:
            raise RuntimeError("the last step ended halfway")
        tree, arrays = self._learner.save()
        action = self._env.spec.action
        sent = np.stack(self._sent) if self._sent else np.zeros((0, self._env.num_envs, *action.shape))
        arrays |= {
            "sent": sent.astype(action.dtype),
            "seedings": self._seedings.copy(),
            "seeded_at": self._seeded_at.copy(),
        }
        replay_arrays, replay_counters = self.replay.save()
        counters = {
            "number": self.number,
            "observations": _digests(self._observations),
            "returns": self._returns.save(),
            "sums": dict(self._sums),
            "replay": replay_counters,
            "filled_from": self._filled_from,
            "mesh": self._learner.placement.sizes,
        }
        return Saved(tree, arrays | replay_arrays, counters, self.replay)

    def restore(self, saved: Saved, tick: Tick = lambda done, total: None) -> None:
        """Continues from a saved state, which the environments reach by replaying their actions.

        Without rows the replay stays empty, and every environment starts an episode with its next seed. Updates then
        continue once `min_size` agent steps are in the replay. The probability of a random action remains a function
        of all agent steps.

        Args:
          saved: the state that `save` returned.
          tick: called with the number of vector steps replayed so far and the number of all that are replayed.

        Raises:
          UserError: the replayed actions lead to other observations.
        """
        counters = saved.counters
        self._learner.restore(saved.tree, saved.arrays)
        self.number = counters["number"]
        first_number, updates = counters.get("filled_from", (0, 0))
        self._filled_from = (first_number, updates)
        self._returns.restore(counters["returns"])
        self._sums = collections.Counter(counters["sums"])
        self._seedings[:], self._seeded_at[:] = saved.arrays["seedings"], saved.arrays["seeded_at"]
        if saved.rows is None:
            self._filled_from = (self.number, self._updates_due(self.number))
            # The first `advance` resets the environments, so their unfinished episodes never end.
            self._seedings += 1
            self._seeded_at[:] = self.number
            self._returns.drop_unfinished()
            return
        self.replay.restore(saved.arrays, counters["replay"])
        self._sent = collections.deque(saved.arrays["sent"])
        self._replay_actions(tick)
        before = counters["observations"]
        if isinstance(before, list) and before != _digests(self._observations):
            raise UserError(
                "replaying the actions since the last seeds gives other observations than the checkpoint has, so the "
                "environments play differently now; resume with the versions named in the run folder's run.json, or "
                "move its replay/ away and give resume=weights"
            )

    def deal(self, parts: Sequence[Saved]) -> Saved:
        """See `rlcls.training.Dealing`. Environments and their streams are numbered over all processes."""
        num_envs = self._env.num_envs
        own = slice(self._host * num_envs, (self._host + 1) * num_envs)
        *first, total = itertools.accumulate((len(part.arrays["seedings"]) for part in parts), initial=0)
        if total != num_envs * self._hosts:
            raise UserError(
                f"the checkpoint has {total} environments, and {self._hosts} processes have {num_envs * self._hosts}"
            )

        def joined(name: str) -> np.ndarray:
            return np.concatenate([part.arrays[name] for part in parts])

        arrays = parts[0].arrays | {
            name: joined(name)[own] for name in ("seedings", "seeded_at", "replay/drawn")
        }
        arrays["replay/priorities"] = joined("replay/priorities").reshape(total, -1)[own].reshape(-1)
        # Actions before an environment's last seed have no effect, so shorter columns are padded with zeros.
        sent = [part.arrays["sent"] for part in parts]
        longest = max(map(len, sent))
        padded = [
            np.concatenate([np.zeros_like(each, shape=(longest - len(each), *each.shape[1:])), each])
            for each in sent
        ]
        number = parts[0].counters["number"]
        arrays["sent"] = np.concatenate(padded, axis=1)[longest - (number - arrays["seeded_at"].min()) :, own]
        for name in [name for name in arrays if name.startswith("pending/") and name.endswith("/where/0")]:
            streams = np.concatenate(
                [part.arrays[name] + least for part, least in zip(parts, first, strict=True)]
            )
            mine = (streams >= own.start) & (streams < own.stop)
            arrays[name] = streams[mine] - own.start
            update = name.removesuffix("where/0")
            for other in {f"{update}where/1", f"{update}priorities"} & arrays.keys():
                arrays[other] = joined(other)[mine]
        counters = [part.counters for part in parts]
        observed = [each["observations"] for each in counters]
        dealt = {
            # A part that was saved before the first step has no digests. An earlier version saved one digest for all.
            "observations": [digest for each in observed for digest in each][own]
            if all(isinstance(each, list) for each in observed)
            else None,
            "returns": EpisodeReturns.deal([each["returns"] for each in counters], own),
            "replay": counters[0]["replay"]
            | {"max_priority": max(each["replay"]["max_priority"] for each in counters)},
        }
        return parts[0]._replace(arrays=arrays, counters=counters[0] | dealt)

    def close(self) -> None:
        """Ends the learner's thread. It does not close the environments."""
        self._learner.close()


def _digests(observations: PyTree | None) -> list[str] | None:
    """SHA-256 of the bytes of each environment's observation, leaf by leaf; None before the first."""
    if observations is None:
        return None
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(observations)]
    return [
        hashlib.sha256(b"".join(row.tobytes() for row in rows)).hexdigest()
        for rows in zip(*leaves, strict=True)
    ]
