"""rejax's DQN on MinAtar's Breakout in gymnax: MLP of 128, 8 environments, batch 32, an update every 4 agent steps.

rejax 0.1.3 imports distrax, whose dependency does not import on JAX 0.10. Its DQN uses one class of distrax, which this
file replaces. rejax also expects five values from gymnax's step, which returns six.
"""

import argparse
import importlib.metadata
import json
import sys
import time
import types

MARK = "MEASURED "
ENVIRONMENTS, BATCH, CAPACITY, FILL = 8, 32, 100_000, 2000


def _import() -> tuple:
    import gymnax
    import jax
    import jax.numpy as jnp

    class EpsilonGreedy:
        """The part of distrax that rejax's DQN acts with."""

        def __init__(self, values, epsilon: float):
            self._values, self._epsilon = values, epsilon

        def sample(self, seed):
            explores, action = jax.random.split(seed)
            shape, count = self._values.shape[:-1], self._values.shape[-1]
            random = jax.random.randint(action, shape, 0, count)
            greedy = jnp.argmax(self._values, axis=-1)
            return jnp.where(jax.random.uniform(explores, shape) < self._epsilon, random, greedy)

    stub = types.ModuleType("distrax")
    stub.__getattr__ = lambda name: EpsilonGreedy if name == "EpsilonGreedy" else object  # type: ignore[method-assign]
    sys.modules["distrax"] = stub
    from rejax import DQN

    return gymnax, jax, DQN


def run(seeds: int, seconds: float) -> dict:
    gymnax, jax, dqn = _import()
    import jax.numpy as jnp

    class FiveValues:
        """gymnax's environment with terminated and truncated as one."""

        def __init__(self) -> None:
            self.env, self.default_params = gymnax.make("Breakout-MinAtar")

        def reset(self, key, params):
            return self.env.reset(key, params)

        def step(self, key, state, action, params):
            observation, state, reward, terminated, truncated, info = self.env.step(
                key, state, action, params
            )
            return observation, state, reward, terminated | truncated, info

        def action_space(self, params):
            return self.env.action_space(params)

        def observation_space(self, params):
            return self.env.observation_space(params)

    algorithm = dqn.create(
        env=FiveValues(),
        agent_kwargs={"activation": "relu"},
        num_envs=ENVIRONMENTS,
        num_epochs=ENVIRONMENTS // 4,
        batch_size=BATCH,
        buffer_size=CAPACITY,
        fill_buffer=FILL,
        learning_rate=1e-4,
        target_update_freq=1000,
        polyak=0.0,
        total_timesteps=10**6,
        ddqn=False,
        max_grad_norm=0.5,
    )
    algorithm = algorithm.replace(agent=algorithm.agent.clone(hidden_layer_sizes=(128,)))
    iterations = 250

    def chunk(state):
        return jax.lax.fori_loop(0, iterations, lambda _, state: algorithm.train_iteration(state), state)

    begin, many = algorithm.init_state, chunk
    if seeds > 1:
        begin, many = jax.vmap(begin), jax.vmap(chunk)
    many = jax.jit(many, donate_argnums=0)
    keys = jax.random.split(jax.random.key(0), seeds)
    state = jax.jit(begin)(keys if seeds > 1 else keys[0])
    state = jax.tree.map(jnp.array, state)
    for _ in range(2):  # fills the buffer: the first update comes after 2,000 agent steps
        state = jax.block_until_ready(many(state))
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        state = jax.block_until_ready(many(state))
        count += 1
    elapsed = time.perf_counter() - begun
    return {
        "steps_per_second": count * iterations * ENVIRONMENTS * seeds / elapsed,
        "version": importlib.metadata.version("rejax"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    print(MARK + json.dumps(run(arguments.seeds, arguments.seconds)))
