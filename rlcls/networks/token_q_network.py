"""The network of a Q-Transformer: values of each token of an action, given the tokens before it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Num, PyTree

from rlcls.heads import Head
from rlcls.heads.nnx import QHead

from ._compute import check_positive, without_wraparound
from .spectral import SpectralLinear
from .transformer import KeysValues, Layer

# The inner width of SwiGLU, as a multiple of `width`. Most of the cost of an update is in these layers.
_WIDENING = 2


class TokenQNetwork(nnx.Module):
    """Q(s, a_1, ..., a_{i-1}, a_i) for every value of token i: the head's outputs, [B, T, K, n].

    A causal transformer reads the tokens of the observation and then those of the action. The features at the last
    token of the observation give the outputs of action token 1; the features at action token i give the outputs of
    token i + 1. Each token has its own embeddings and its own output layer. The output layers are initialised with 0.

    Args:
      backbone: NNX module from observations to features [B, D], one token, or [B, S, D], S tokens. Its attribute
        `num_features` is D.
      head: the value head.
      num_tokens: T, the number of tokens of an action.
      num_values: K, the number of values of a token.
      layers, width, heads, sigma_reparam: as in `Transformer`, except that SwiGLU is half as wide.
      vectors: one vector of E numbers for each game, or None. With vectors, observations are {"frames": [B, ...],
        "game": int32 [B]}, and FiLM (Perez et al. 2018) scales and shifts the features by linear functions of the
        game's vector, which are initialised with 0. The vectors are part of the network's state, so a checkpoint
        contains them.
      history: 0, or the number W of states in an observation [B, W, ...]. The backbone processes each state alone, and
        each of the W positions has a learned vector that is added to its tokens. An observation of one state has one
        such vector: without it, layer norm would remove the length of the observation.

    Raises:
      ValueError: a size is out of range.

    Source: Chebotar et al. 2023, sections 4.1 and 4.3.
    """

    def __init__(
        self,
        backbone: Any,
        head: Head,
        num_tokens: int,
        num_values: int,
        *,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        sigma_reparam: bool = False,
        vectors: Float32[np.ndarray, "games e"] | None = None,
        history: int = 0,
        rngs: nnx.Rngs,
    ):
        check_positive(num_tokens=num_tokens, num_values=num_values, layers=layers, width=width, heads=heads)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads ({heads}), not {width}")
        self.backbone, self.head, self.capture = backbone, head, False
        self.num_tokens, self.num_values = num_tokens, num_values

        def linear(inputs: int, outputs: int) -> nnx.Module:
            if sigma_reparam:
                return SpectralLinear(inputs, outputs, rngs=rngs)
            return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)

        def norm() -> nnx.Module:
            return nnx.LayerNorm(width, rngs=rngs)

        size, zeros = backbone.num_features, nnx.initializers.zeros
        film = table = None
        if vectors is not None:
            film = nnx.Linear(vectors.shape[1], 2 * size, kernel_init=zeros, rngs=rngs)
            # The vectors are stored as integers, because a Polyak average would change floats by rounding.
            table = nnx.Variable(jnp.asarray(vectors.view(np.uint32)))
        self.film, self.vectors = film, table
        self.projection = linear(size, width)
        init = nnx.initializers.normal(1.0)
        self.history = history
        self.positions = nnx.Param(init(rngs.params(), (max(history, 1), 1, width), jnp.float32))
        # The last token needs no embedding. The shape has at least one, because an empty array cannot be saved.
        shape = max(num_tokens - 1, 1), num_values, width
        self.embeddings = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.layers = nnx.List([Layer(width, heads, True, linear, norm, _WIDENING) for _ in range(layers)])
        self.norm = norm()
        self.q_heads = nnx.List(
            [QHead(head, width, num_values, init_scale=0.0, rngs=rngs) for _ in range(num_tokens)]
        )

    def __call__(
        self, observations: PyTree[Num[Array, "b *_"]], tokens: Int[Array, "b t"]
    ) -> Float[Array, "b t k n"]:
        """The outputs of all values of every token, each given the tokens before it.

        A token outside 0, ..., K - 1 gives NaN.
        """
        return jnp.stack(self.each(observations, tokens), axis=1)

    def each(
        self, observations: PyTree[Num[Array, "b *_"]], tokens: Int[Array, "b t"]
    ) -> list[Float[Array, "b k n"]]:
        """The outputs of `__call__`, one array for each token, since stacking them would copy every output."""
        x = self._observe(observations)
        observed = x.shape[1]
        before = [self._embed(tokens[:, i], i) for i in range(self.num_tokens - 1)]
        x = jnp.concatenate([x, *before], axis=1)
        for layer in self.layers:
            x = layer(x)
        features = self.norm(x)[:, observed - 1 :]
        if self.capture:
            self.sow(nnx.Intermediate, "features", features.reshape(-1, features.shape[-1]))
        return [q_head(features[:, i]) for i, q_head in enumerate(self.q_heads)]

    def first(self, observations: PyTree[Num[Array, "b *_"]]) -> Float[Array, "b k n"]:
        """The outputs of token 1 only."""
        x = self._observe(observations)
        for layer in self.layers:
            x = layer(x)
        return self.q_heads[0](self.norm(x)[:, -1])

    def decode(
        self, observations: PyTree[Num[Array, "b *_"]], forced: Int[Array, "b t"]
    ) -> tuple[Int[Array, "b t"], Float[Array, "b t k"]]:
        """Greedy actions, one token after the other, each given the tokens before it.

        The observation and each token are processed once, because attention caches keys and values.

        Args:
          observations: B observations.
          forced: tokens to use instead of the greedy ones; -1 where the greedy token is used.

        Returns:
          The tokens, int32, and the Q-values of all K choices of each token.
        """
        x, tokens, values = self._observe(observations), [], []
        past: list[KeysValues | None] = [None] * len(self.layers)
        for i, q_head in enumerate(self.q_heads):
            for j, layer in enumerate(self.layers):
                x, past[j] = layer.extend(x, past[j])
            values.append(self.head.value(q_head(self.norm(x)[:, -1])))
            best = jnp.argmax(values[-1], axis=-1).astype(jnp.int32)
            tokens.append(jnp.where(forced[:, i] < 0, best, forced[:, i]))
            if i < self.num_tokens - 1:
                x = self._embed(tokens[-1], i)
        return jnp.stack(tokens, axis=1), jnp.stack(values, axis=1)

    def _observe(self, observations: PyTree[Num[Array, "b *_"]]) -> Float[Array, "b s d"]:
        seen = observations if self.film is None else observations["frames"]
        batch = len(seen)
        if self.history:
            seen = seen.reshape(-1, *seen.shape[2:])
        features = self.backbone(seen)
        if features.ndim == 2:
            features = features[:, None]
        if self.history:
            features = features.reshape(batch, -1, features.shape[-1])
        if self.film is not None and self.vectors is not None:
            table = jax.lax.bitcast_convert_type(self.vectors[...], jnp.float32)
            games = without_wraparound(observations["game"], len(table))
            vectors = jnp.take(table, games, axis=0, mode="fill", fill_value=jnp.nan)
            scale, shift = jnp.split(self.film(vectors)[:, None], 2, axis=-1)
            features = (1 + scale) * features + shift
        tokens = self.projection(features)
        by_position = tokens.reshape(batch, len(self.positions[...]), -1, tokens.shape[-1])
        return (by_position + self.positions[...]).reshape(tokens.shape)

    def _embed(self, token: Int[Array, "b"], number: int) -> Float[Array, "b 1 d"]:
        table = self.embeddings[...][number]
        rows = without_wraparound(token, self.num_values)
        return jnp.take(table, rows, axis=0, mode="fill", fill_value=jnp.nan)[:, None]
