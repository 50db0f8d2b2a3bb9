"""A value function as in RECAP, in flax NNX: the number of steps until success, in 201 bins, from recorded episodes.

    pip install -e '.[train]'
    python examples/nnx_steps_to_success.py

Without paths the example first records episodes of `env=pick`: successes of its expert, and failures of random actions.
It also takes other recordings of one task, if observations are vectors and rewards are above 0 only at success:

    python -m rlcls.collect env=pick policy=scripted episodes=3000 out=recordings/expert
    python -m rlcls.collect env=pick policy=random episodes=300 out=recordings/random
    python examples/nnx_steps_to_success.py recordings/expert recordings/random

A fifth of the episodes is held out, and the printed numbers are for these episodes.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rlcls import collect, heads
from rlcls.datasets import CONTINUES, Recording

WIDTH = 128
BATCH = 256


class Steps(NamedTuple):
    """Steps of recorded episodes: observations [n, d], returns [n] in [-1, 0], and the number of the episode [n]."""

    observations: np.ndarray
    returns: np.ndarray
    episode: np.ndarray


def record(folder: Path, episodes: int) -> list[Path]:
    """Records `episodes` episodes of the environment's expert, and a tenth as many of random actions."""
    paths = []
    for policy, count in (("scripted", episodes), ("random", episodes // 10)):
        paths.append(folder / policy)
        code = collect.main(["env=pick", f"policy={policy}", f"episodes={count}", f"out={paths[-1]}"])
        if code:
            raise SystemExit(code)
    return paths


def read(paths: list[Path]) -> Steps:
    """The steps of recordings of one task. An episode is a success if one of its rewards is above 0.

    The difference from the previous observation is appended to each observation, because motion reveals failures.
    """
    recordings = [Recording(path).columns for path in paths]
    frames, rewards, terminals, starts = (
        np.concatenate([getattr(columns, name) for columns in recordings])
        for name in ("frames", "rewards", "terminals", "starts")
    )
    first = np.flatnonzero(starts != CONTINUES)
    rows = np.diff(first, append=len(starts))
    # The last row of an episode is its final observation, which is not a step, unless that row is terminal.
    length = rows - ~terminals[first + rows - 1]
    success = np.maximum.reduceat(rewards, first) > 0
    episode = np.repeat(np.arange(len(first)), rows)
    row, longest = np.arange(len(starts)), length.max()
    step = row - first[episode]
    motion = frames - frames[row - (step > 0)]
    observations = np.concatenate([frames, motion], axis=-1, dtype=np.float32)
    taken = step < length[episode]
    episode, step = episode[taken], step[taken]
    returns = heads.recap_returns(
        success[episode], length[episode], step, failure_cost=longest, max_length=longest
    )
    return Steps(observations[taken], returns, episode)


class ValueNetwork(nnx.Module):
    """Two hidden layers and a value head."""

    def __init__(self, head: heads.Head, num_features: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(num_features, WIDTH, rngs=rngs)
        self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.value = heads.nnx.ValueHead(head, WIDTH, rngs=rngs)

    def __call__(self, observations: jax.Array) -> jax.Array:
        return self.value(nnx.relu(self.second(nnx.relu(self.first(observations)))))


def fit(head: heads.Head, steps: Steps, updates: int, seed: int) -> ValueNetwork:
    """A network after `updates` updates of Adam, with 100 updates per compiled call."""
    network = ValueNetwork(head, steps.observations.shape[-1], rngs=nnx.Rngs(seed))
    optimizer = nnx.Optimizer(network, optax.adam(optax.cosine_decay_schedule(1e-3, updates)), wrt=nnx.Param)

    def loss_fn(network: ValueNetwork, observations: jax.Array, returns: jax.Array) -> jax.Array:
        return head.loss(network(observations), returns).mean()

    @nnx.jit
    def update(network: ValueNetwork, optimizer: nnx.Optimizer, batches: tuple[jax.Array, jax.Array]) -> None:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def one(carry: Any, batch: Any) -> Any:
            network, optimizer = carry
            optimizer.update(network, nnx.grad(loss_fn)(network, *batch))
            return carry

        one((network, optimizer), batches)

    random = np.random.default_rng(seed)
    for _ in range(updates // 100):
        rows = random.integers(0, len(steps.returns), (100, BATCH))
        update(network, optimizer, (jnp.asarray(steps.observations[rows]), jnp.asarray(steps.returns[rows])))
    return network


def measure(head: heads.CategoricalHead, network: ValueNetwork, steps: Steps) -> dict[str, float]:
    """Measures of the predictions, and the lowest cross-entropy of predictions that ignore the observation."""
    outputs = nnx.jit(lambda network, x: network(x))(network, jnp.asarray(steps.observations))
    lowest, highest = heads.edge_mass(head, outputs).mean(0)
    return {
        "explained_variance": float(heads.explained_variance(head.value(outputs), steps.returns)),
        "cross_entropy": float(head.loss(outputs, steps.returns).mean()),
        "marginal_cross_entropy": heads.marginal_cross_entropy(head, steps.returns),
        "crps": float(heads.crps(head, outputs, steps.returns).mean()),
        "lowest_bin": float(lowest),
        "highest_bin": float(highest),
    }


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="*", help="recordings; without paths they are made first")
    parser.add_argument("--episodes", type=int, default=3_000, help="episodes to record without paths")
    parser.add_argument("--target", default="one_hot", choices=("one_hot", "two_hot", "hlgauss"))
    parser.add_argument("--updates", type=int, default=2_000, help="a multiple of 100")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    head, start = heads.recap(options.target), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        steps = read(options.paths or record(Path(folder), options.episodes))
    held_out = steps.episode % 5 == 0
    network = fit(head, Steps(*(column[~held_out] for column in steps)), options.updates, options.seed)
    results = measure(head, network, Steps(*(column[held_out] for column in steps)))
    for name, value in results.items():
        print(f"{name:22s} {value:.4f}")
    print(f"in {time.monotonic() - start:.0f} s")
    return results


if __name__ == "__main__":
    main()
