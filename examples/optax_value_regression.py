"""A value function fitted to noisy returns, by regression and by classification, with JAX and optax only.

    pip install -e . optax
    python examples/optax_value_regression.py

A state is a point in the plane, and its value is a smooth function of it. The observed return is the value plus noise
with heavy tails. Each head fits the same network to the same returns. The program prints the errors against the true
values, which are not used for training. The best head depends on the noise, the network and the number of steps, so
this is not a benchmark.
"""

import argparse
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlcls import heads

HIDDEN = 64
GRID = {"vmin": -12.0, "vmax": 12.0, "num_bins": 61}  # values are in [-6, 6]; the noise exceeds this range
HEADS = {
    "mse": heads.make("mse"),
    "huber": heads.make("huber"),
    "two_hot": heads.make("two_hot", **GRID),
    "hlgauss": heads.make("hlgauss", **GRID),
}


def true_value(states: Any) -> Any:
    return 4 * np.sin(2 * states[..., 0]) + 2 * np.cos(3 * states[..., 1])


def sample(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States and observed returns, whose noise has Student's t distribution with 3 degrees of freedom."""
    random = np.random.default_rng(seed)
    states = random.uniform(-1.5, 1.5, (count, 2))
    returns = true_value(states) + random.standard_t(3, count)
    return states.astype(np.float32), returns.astype(np.float32)


def init(key: jax.Array, num_outputs: int) -> list[dict[str, jax.Array]]:
    """Three dense layers. The weights of the last one are 0, so every head starts with the value 0."""
    sizes = [2, HIDDEN, HIDDEN, num_outputs]
    layers = []
    for number, (m, n) in enumerate(itertools.pairwise(sizes)):
        scale = 0.0 if number == 2 else np.sqrt(2 / m)
        weights = scale * jax.random.normal(jax.random.fold_in(key, number), (m, n))
        layers.append({"weights": weights, "bias": jnp.zeros(n)})
    return layers


def apply(layers: list[dict[str, jax.Array]], states: jax.Array) -> jax.Array:
    hidden = states
    for layer in layers[:-1]:
        hidden = jax.nn.relu(hidden @ layer["weights"] + layer["bias"])
    return hidden @ layers[-1]["weights"] + layers[-1]["bias"]


def fit(head: heads.Head, states: Any, returns: Any, steps: int, seed: int = 0) -> Any:
    """The parameters after `steps` updates of Adam with batches of 256, in one compiled loop."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    states, returns = jnp.asarray(states), jnp.asarray(returns)

    def loss(params, batch):
        return jnp.mean(head.loss(apply(params, states[batch]), returns[batch]))

    @jax.jit
    def run(key):
        def step(carry, number):
            params, opt_state = carry
            batch = jax.random.randint(jax.random.fold_in(key, number), (256,), 0, len(returns))
            value, gradient = jax.value_and_grad(loss)(params, batch)
            changes, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, changes), opt_state), value

        params = init(key, head.num_outputs)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
        return params, losses

    return run(jax.random.key(seed))


def compare(steps: int = 3_000, count: int = 20_000, seed: int = 0) -> dict[str, float]:
    """The root mean square error of each head's values on new states."""
    states, returns = sample(count, seed)
    unseen, _ = sample(10_000, seed + 1)
    errors = {}
    for name, head in HEADS.items():
        params, _ = fit(head, states, returns, steps, seed)
        values = jax.jit(lambda params, x, head=head: head.value(apply(params, x)))(params, unseen)
        errors[name] = float(np.sqrt(np.mean((np.asarray(values) - true_value(unseen)) ** 2)))
    return errors


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--count", type=int, default=20_000, help="returns to learn from")
    parser.add_argument("--seed", type=int, default=0)
    errors = compare(**vars(parser.parse_args(arguments)))
    spread = float(np.std(true_value(sample(10_000, 1)[0])))
    print(f"root mean square error of the values (a constant has {spread:.2f})")
    for name, error in errors.items():
        print(f"  {name:8s} {error:.3f}")
    return errors


if __name__ == "__main__":
    main()
