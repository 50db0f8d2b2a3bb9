"""DQN in one file with flax Linen, in the style of CleanRL: CartPole, in about ten seconds on a laptop.

    pip install -e . flax optax gymnasium
    python examples/linen_dqn.py
    python examples/linen_dqn.py --loss=mse

Lines marked "# head" differ from CleanRL's dqn_jax.py: classification needs a head, a last layer with the head's number
of outputs, and the head's target and loss.
"""

import argparse
import dataclasses
from typing import Any

import flax.linen as nn
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from rlcls import heads


@dataclasses.dataclass(frozen=True)
class Args:
    loss: str = "hlgauss"  # mse, huber, two_hot, hlgauss, c51
    steps: int = 24_000  # agent steps of all environments together
    num_envs: int = 8
    learning_rate: float = 1e-3
    buffer_size: int = 20_000
    gamma: float = 0.98
    tau: float = 0.05  # Polyak rate of the target network, at every update
    batch_size: int = 128
    updates_per_step: int = 2  # updates per vector step
    end_epsilon: float = 0.05
    exploration_fraction: float = 0.5
    learning_starts: int = 1_000
    seed: int = 0


def make_head(args: Args) -> heads.Head:
    """With a reward of 1 per step, returns are at most 1 / (1 - gamma) = 50. The support has a margin on both sides."""
    if args.loss in ("mse", "huber"):
        return heads.make(args.loss)
    return heads.make(args.loss, vmin=-5.0, vmax=55.0, num_bins=61)


class QNetwork(nn.Module):
    head: heads.Head
    num_actions: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(120)(x))
        x = nn.relu(nn.Dense(84)(x))
        return heads.linen.QHead(self.head, self.num_actions)(x)  # head


class State(TrainState):
    target_params: Any = None


class Buffer:
    """A ring buffer of transitions, in arrays."""

    def __init__(self, capacity: int, observation: np.ndarray):
        rows = {"observations": observation.shape, "next_observations": observation.shape}
        rows |= {"actions": (), "rewards": (), "discounts": ()}
        self.data = {name: np.zeros((capacity, *shape), np.float32) for name, shape in rows.items()}
        self.data["actions"] = np.zeros(capacity, np.int32)
        self.capacity, self.added = capacity, 0

    def add(self, **rows: np.ndarray) -> None:
        count = len(rows["actions"])
        where = (self.added + np.arange(count)) % self.capacity
        for name, values in rows.items():
            self.data[name][where] = values
        self.added += count

    def sample(self, random: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        where = random.integers(0, min(self.added, self.capacity), size)
        return {name: values[where] for name, values in self.data.items()}


def make_functions(head: heads.Head, tau: float) -> tuple[Any, Any]:
    @jax.jit
    def greedy(state, observations):
        return jnp.argmax(head.value(state.apply_fn(state.params, observations)), -1)  # head

    @jax.jit
    def update(state, batch):
        next_outputs = state.apply_fn(state.target_params, batch["next_observations"])
        best = jnp.argmax(head.value(next_outputs), -1)  # head
        target = head.td_target(heads.select(next_outputs, best), batch["rewards"], batch["discounts"])

        def loss(params):
            outputs = heads.select(state.apply_fn(params, batch["observations"]), batch["actions"])
            return head.td_loss(outputs, target).mean()  # head

        state = state.apply_gradients(grads=jax.grad(loss)(state.params))
        return state.replace(target_params=optax.incremental_update(state.params, state.target_params, tau))

    return greedy, update


def evaluate(greedy: Any, state: State, seed: int, episodes: int = 10) -> float:
    """The mean return of the greedy policy, at most 500 for CartPole."""
    envs = gym.make_vec("CartPole-v1", num_envs=episodes, vectorization_mode="sync")
    observations, _ = envs.reset(seed=10_000 + seed)
    returns, running = np.zeros(episodes), np.ones(episodes, bool)
    while running.any():
        observations, rewards, terminations, truncations, _ = envs.step(
            np.asarray(greedy(state, observations))
        )
        returns += rewards * running
        running &= ~(terminations | truncations)
    envs.close()
    return float(returns.mean())


def train(args: Args) -> float:
    """Trains an agent; returns the mean return of its greedy policy."""
    random = np.random.default_rng(args.seed)
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.make("CartPole-v1")] * args.num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
    )
    observations, _ = envs.reset(seed=args.seed)
    head = make_head(args)
    network = QNetwork(head, int(envs.single_action_space.n))
    params = network.init(jax.random.key(args.seed), observations)
    state = State.create(
        apply_fn=network.apply, params=params, target_params=params, tx=optax.adam(args.learning_rate)
    )
    greedy, update = make_functions(head, args.tau)
    buffer = Buffer(args.buffer_size, observations[0])
    for step in range(0, args.steps, args.num_envs):
        fraction = min(step / (args.exploration_fraction * args.steps), 1)
        epsilon = 1 + fraction * (args.end_epsilon - 1)
        explore = random.random(args.num_envs) < epsilon
        randomly = random.integers(0, envs.single_action_space.n, args.num_envs)
        actions = np.where(explore, randomly, np.asarray(greedy(state, observations)))
        following, rewards, terminations, truncations, infos = envs.step(actions)
        after = following.copy()
        for i in np.flatnonzero(terminations | truncations):
            after[i] = infos["final_obs"][i]
        buffer.add(
            observations=observations,
            actions=actions,
            rewards=rewards,
            discounts=args.gamma * ~terminations,  # a truncation bootstraps
            next_observations=after,
        )
        observations = following
        if step >= args.learning_starts:
            for _ in range(args.updates_per_step):
                state = update(state, buffer.sample(random, args.batch_size))
    envs.close()
    return evaluate(greedy, state, args.seed)


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for field in dataclasses.fields(Args):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default)
    args = Args(**vars(parser.parse_args(arguments)))
    result = train(args)
    print(
        f"{args.loss}: mean return {result:.1f} over 10 greedy episodes after {args.steps:,} steps (best: 500)"
    )
    return result


if __name__ == "__main__":
    main()
