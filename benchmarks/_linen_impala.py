"""A DQN update with the IMPALA network in plain Linen, with the layers, head and optimiser of rlcls."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rlcls import heads


class _Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.Conv(self.features, (3, 3))(nn.relu(x))
        return x + nn.Conv(self.features, (3, 3))(nn.relu(y))


class _Impala(nn.Module):
    num_actions: int
    num_outputs: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        x = jnp.transpose(observations, (0, 2, 3, 1)).astype(jnp.float32) / 255.0
        for features in (16, 32, 32):
            x = nn.Conv(features, (3, 3), kernel_init=nn.initializers.xavier_uniform())(x)
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
            x = _Block(features)(_Block(features)(x))
        x = nn.relu(x).reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(512, kernel_init=nn.initializers.xavier_uniform())(x))
        x = nn.Dense(self.num_actions * self.num_outputs)(x)
        return x.reshape((x.shape[0], self.num_actions, self.num_outputs))


def make(
    head: heads.Head, num_actions: int, observations: jax.Array, learning_rate: float, eps: float
) -> tuple[Any, Callable[..., Any]]:
    """(state, update) with update(state, batch) -> (state, (loss, priorities)), not yet compiled."""
    network = _Impala(num_actions, head.num_outputs)
    params = jax.jit(network.init)(jax.random.key(0), observations)
    optimizer = optax.adam(learning_rate, eps=eps)

    def update(state: Any, batch: Any) -> Any:
        params, target_params, opt_state, step = state
        next_outputs = network.apply(target_params, batch.next_observation)
        best = jnp.argmax(head.value(next_outputs), axis=-1)
        target = head.td_target(heads.select(next_outputs, best), batch.reward, batch.discount)

        def loss_fn(params: Any) -> Any:
            chosen = heads.select(network.apply(params, batch.observation), batch.action)
            return jnp.mean(batch.weight * head.td_loss(chosen, target)), chosen

        (loss, chosen), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        target_params = optax.periodic_update(params, target_params, step + 1, 500)
        return (params, target_params, opt_state, step + 1), (loss, head.td_divergence(chosen, target))

    return (params, params, optimizer.init(params), jnp.zeros((), jnp.int32)), update
