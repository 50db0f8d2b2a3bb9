"""Times the compiled update alone, an upper bound of the speed of training. Prints one line of JSON."""

import argparse
import json
import time

import jax
import numpy as np

from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.spec import Spec
from rlcls.training import memory, xla
from rlcls.training.learner import Learner
from rlcls.transition import Transition

MARK = "MEASURED "


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    settings = compose(arguments.overrides)
    xla.choose_device(settings.device)
    xla.cache_compilations()
    memory.reuse_freed_memory()
    env = build.environment(settings)
    agent = build.agent(settings, env.spec)
    learner = Learner(agent, jax.random.key(0), jax.random.key(1))
    state = learner.save()[0]["state"]
    batches = [sample_batch(env.spec, int(settings.training.batch_size), seed) for seed in range(8)]
    for number in range(20):
        state, _, _ = learner.update(state, batches[number % 8], number)
    jax.block_until_ready(state)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < arguments.seconds:
        state, info, _ = learner.update(state, batches[count % 8], count)
        jax.block_until_ready(info)
        count += 1
    elapsed = time.perf_counter() - began
    print(MARK + json.dumps({"updates": count, "seconds": elapsed, "updates_per_second": count / elapsed}))


def sample_batch(spec: Spec, size: int, seed: int) -> Transition:
    """Random frames, actions and rewards, as NumPy arrays."""
    random = np.random.default_rng(seed)
    shape = (size, *spec.observation.shape)
    return Transition(
        observation=random.integers(0, 256, shape, np.uint8),
        action=random.integers(0, spec.num_actions, size, np.int32),
        reward=random.integers(-1, 2, size).astype(np.float32),
        discount=np.full(size, 0.99, np.float32),
        next_observation=random.integers(0, 256, shape, np.uint8),
        weight=np.ones(size, np.float32),
    )


if __name__ == "__main__":
    main()
