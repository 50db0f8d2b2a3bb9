"""A backbone without parameters: the observation itself, as tokens."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num


class States(nnx.Module):
    """Observations of numbers as tokens, without parameters.

    An observation of shape (D,) is one token of D numbers. An observation of shape (W, D), the last W states of an
    episode, is W tokens of D + W numbers: the state, and its position as a one-hot vector.

    Raises:
      ValueError: the shape is neither (D,) nor (W, D).
    """

    def __init__(self, observation_shape: Sequence[int], *, rngs: nnx.Rngs):
        del rngs
        self.observation_shape = tuple(observation_shape)
        if len(self.observation_shape) not in (1, 2) or 0 in self.observation_shape:
            raise ValueError(
                "States takes observations of shape (numbers,) or (history, numbers), not "
                f"{self.observation_shape}"
            )
        *history, size = self.observation_shape
        self.num_features, self.yields_tokens = size + sum(history), True

    def __call__(self, observations: Num[Array, "b *o"]) -> Float[Array, "b t d"]:
        """One token for each state.

        Raises:
          ValueError: the observations do not have the shape that the network was made for.
        """
        if observations.shape[1:] != self.observation_shape:
            raise ValueError(
                f"observations must have shape (batch, {', '.join(map(str, self.observation_shape))}), not "
                f"{observations.shape}"
            )
        x = observations.astype(jnp.float32)
        if x.ndim == 2:
            return x[:, None]
        positions = jnp.broadcast_to(jnp.eye(x.shape[1]), (len(x), x.shape[1], x.shape[1]))
        return jnp.concatenate([x, positions], axis=-1)
