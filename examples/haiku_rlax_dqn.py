"""DQN in Haiku and rlax that learns values by classification: catch a falling ball, in about ten seconds on a laptop.

    pip install -e . dm-haiku optax rlax
    python examples/haiku_rlax_dqn.py
    python examples/haiku_rlax_dqn.py --loss=mse

Only the head depends on the representation of values. `--loss` selects another head by its name: two_hot, c51, mse or
huber. The code of the network and the loss is the same for all heads.
"""

import argparse
import collections
import random
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rlax

from rlcls import heads

GAMMA = 0.99
BATCH = 64
TARGET_PERIOD = 100
LEARNING_STARTS = 500


class Transition(NamedTuple):
    observation: Any
    action: Any
    reward: Any
    discount: Any  # 0 at the end of an episode
    next_observation: Any


class Catch:
    """A ball falls through 10 rows of 5 columns above a moving paddle. A catch gives +1, a miss -1."""

    rows, columns, num_actions = 10, 5, 3

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def reset(self) -> np.ndarray:
        self.ball, self.row, self.paddle = self.random.randrange(self.columns), 0, self.columns // 2
        return self.observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        self.paddle = min(max(self.paddle + action - 1, 0), self.columns - 1)
        self.row += 1
        over = self.row == self.rows - 1
        reward = (1.0 if self.ball == self.paddle else -1.0) if over else 0.0
        return self.observe(), reward, over

    def observe(self) -> np.ndarray:
        board = np.zeros((self.rows, self.columns), np.float32)
        board[self.row, self.ball] = board[-1, self.paddle] = 1.0
        return board.ravel()


def make_head(loss: str) -> heads.Head:
    """Returns are in [-1, 1]. A margin of half a unit on each side avoids the bias of HL-Gauss near the edges."""
    if loss in ("mse", "huber"):
        return heads.make(loss)
    return heads.make(loss, vmin=-1.5, vmax=1.5, num_bins=51)


class Agent:
    """Double Q-learning. All computations are pure, jitted functions."""

    def __init__(self, head: heads.Head, learning_rate: float):
        def network(observations):
            features = hk.Sequential([hk.Linear(64), jax.nn.relu, hk.Linear(64), jax.nn.relu])(observations)
            return heads.haiku.QHead(head, Catch.num_actions)(features)

        self.head = head
        self.network: hk.Transformed = hk.without_apply_rng(hk.transform(network))
        self.optimizer = optax.adam(learning_rate)
        self.act = jax.jit(self._act)
        self.update = jax.jit(self._update)

    def init(self, key: jax.Array) -> tuple[Any, Any, Any]:
        params = self.network.init(key, jnp.zeros(Catch.rows * Catch.columns))
        return params, params, self.optimizer.init(params)

    def _act(self, params: Any, observation: Any, key: jax.Array, epsilon: Any) -> jax.Array:
        q_values = self.head.value(self.network.apply(params, observation))
        return rlax.epsilon_greedy(epsilon).sample(key, q_values)

    def _loss(self, params: Any, target_params: Any, batch: Transition) -> jax.Array:
        outputs = self.network.apply(params, batch.observation)
        selector = self.head.value(self.network.apply(params, batch.next_observation))
        next_outputs = heads.select(
            self.network.apply(target_params, batch.next_observation), jnp.argmax(selector, -1)
        )
        target = self.head.td_target(next_outputs, batch.reward, batch.discount)
        return jnp.mean(self.head.td_loss(heads.select(outputs, batch.action), target))

    def _update(self, state: Any, batch: Transition, number: Any) -> tuple[Any, Any, Any]:
        params, target_params, opt_state = state
        gradient = jax.grad(self._loss)(params, target_params, batch)
        changes, opt_state = self.optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, changes)
        target_params = optax.periodic_update(params, target_params, number, TARGET_PERIOD)
        return params, target_params, opt_state


def evaluate(agent: Agent, params: Any, episodes: int = 50) -> float:
    """The mean return of the greedy policy."""
    env, total = Catch(seed=10_000), 0.0
    for _ in range(episodes):
        observation, over = env.reset(), False
        while not over:
            observation, reward, over = env.step(int(agent.act(params, observation, jax.random.key(0), 0.0)))
            total += reward
    return total / episodes


def train(loss: str = "hlgauss", steps: int = 5_000, learning_rate: float = 1e-3, seed: int = 0) -> float:
    """Trains an agent; returns the mean return of its greedy policy, at most 1."""
    agent, env = Agent(make_head(loss), learning_rate), Catch(seed)
    keys = hk.PRNGSequence(seed)
    state = agent.init(next(keys))
    replay: collections.deque[Transition] = collections.deque(maxlen=10_000)
    sampler = random.Random(seed)
    observation, updates = env.reset(), 0
    for step in range(steps):
        epsilon = max(0.05, 1 - 2 * step / steps)
        action = int(agent.act(state[0], observation, next(keys), epsilon))
        next_observation, reward, over = env.step(action)
        discount = 0.0 if over else GAMMA
        replay.append(
            Transition(
                observation, np.int32(action), np.float32(reward), np.float32(discount), next_observation
            )
        )
        observation = env.reset() if over else next_observation
        if step >= LEARNING_STARTS:
            batch = Transition(*map(np.stack, zip(*sampler.sample(replay, BATCH), strict=True)))
            updates += 1
            state = agent.update(state, batch, updates)
    return evaluate(agent, state[0])


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--loss", default="hlgauss", help="mse, huber, two_hot, hlgauss, c51")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    settings = vars(parser.parse_args(arguments))
    result = train(**settings)
    print(
        f"{settings['loss']}: mean return {result:+.2f} over 50 greedy episodes "
        f"after {settings['steps']:,} steps (best is +1)"
    )
    return result


if __name__ == "__main__":
    main()
