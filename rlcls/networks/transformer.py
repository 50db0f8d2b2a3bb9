"""A transformer over tokens, vectors or patches of images."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from rlcls._errors import check_choice

from ._compute import check_positive, compute_dtype, run, show_activity, without_wraparound
from ._images import check_image_shape, to_nhwc
from .spectral import GAMMA_INITS, SpectralLinear

_WIDENING = 4
_POOLS = ("last", "mean", "none")


class Transformer(nnx.Module):
    """Pre-norm layers of attention and SwiGLU over tokens with learned positions. No linear layer has a bias.

    The shape of an observation determines its tokens. Observations of shape (T,) are integers below `vocabulary`, each
    of which has a learned embedding. Observations of shape (T, D) are vectors, which are projected. Observations of
    shape (frames, height, width) are uint8 frames, whose patches are projected.

    Args:
      observation_shape: (T,), (T, D) or (frames, height, width).
      layers: number of layers, each with attention and SwiGLU.
      width: size of a token; a multiple of `heads`.
      heads: number of attention heads.
      vocabulary: number of different tokens, for observations of shape (T,) only.
      patch: side of a patch in pixels; height and width must be multiples of it.
      causal: whether a token attends only to itself and the tokens before it.
      pool: "last" returns the features of the last token, "mean" their mean, and "none" the features of every token.
      layer_norm: false removes every layer norm.
      sigma_reparam: whether every linear layer is a `SpectralLinear`; this does not affect the value head.
      gamma_init: "one" or "norm", the option of `SpectralLinear`.
      dtype: float32 or bfloat16, used in computations; parameters and features are float32.
      remat: whether the backward pass computes the inside of each layer again instead of storing it.

    If `functional` captures, each layer sows its `queries` and `keys`, [B, T, heads, width // heads]. Its attention is
    softmax(queries . keys / sqrt(width // heads)), masked if causal.

    Raises:
      ValueError: an argument is out of range, or does not fit the observation.

    Source: Ruoss et al. 2024, appendix A (the layers); Zhai et al. 2023 (sigma_reparam).
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        *,
        layers: int = 4,
        width: int = 256,
        heads: int = 8,
        vocabulary: int | None = None,
        patch: int = 12,
        causal: bool = False,
        pool: str = "last",
        layer_norm: bool = True,
        sigma_reparam: bool = False,
        gamma_init: str = "one",
        dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        check_positive(layers=layers, width=width, heads=heads)
        check_choice("pool", pool, _POOLS)
        check_choice("gamma_init", gamma_init, GAMMA_INITS)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads ({heads}), not {width}")
        self.observation_shape = tuple(observation_shape)
        self.dtype, self.remat, self.pool = compute_dtype(dtype), remat, pool

        def linear(inputs: int, outputs: int) -> nnx.Module:
            if sigma_reparam:
                return SpectralLinear(inputs, outputs, gamma_init=gamma_init, dtype=self.dtype, rngs=rngs)
            return nnx.Linear(inputs, outputs, use_bias=False, dtype=self.dtype, rngs=rngs)

        def norm() -> nnx.Module | None:
            return nnx.LayerNorm(width, dtype=self.dtype, rngs=rngs) if layer_norm else None

        self.tokeniser = _tokeniser(self.observation_shape, width, vocabulary, patch, linear, rngs)
        init = nnx.initializers.truncated_normal(1.0)
        self.positions = nnx.Param(init(rngs.params(), (self.tokeniser.num_tokens, width), jnp.float32))
        self.layers = nnx.List([Layer(width, heads, causal, linear, norm) for _ in range(layers)])
        self.norm = norm()
        self.num_features, self.yields_tokens = width, pool == "none"

    def __call__(self, observations: Num[Array, "b *o"]) -> Float[Array, "b *t d"]:
        """Features of each observation, or with pool="none" of each of its tokens.

        Raises:
          ValueError: the observations do not have the shape that the network was made for.
          TypeError: tokens are not integers, or frames are not uint8.
        """
        if observations.ndim == 0 or observations.shape[1:] != self.observation_shape:
            shape = ", ".join(map(str, ("batch", *self.observation_shape)))
            raise ValueError(f"observations must have shape ({shape}), not {observations.shape}")
        x = (self.tokeniser(observations) + self.positions[...][None]).astype(self.dtype)
        for layer in self.layers:
            x = run(layer, x, remat=self.remat)
        x = x if self.norm is None else self.norm(x)
        if self.pool != "none":
            x = x[:, -1] if self.pool == "last" else jnp.mean(x, axis=1)
        return x.astype(jnp.float32)


class KeysValues(NamedTuple):
    """The cache of an attention layer: keys and values of the tokens so far, each [B, T, heads, d]."""

    keys: Float[Array, "b t h k"]
    values: Float[Array, "b t h k"]


class Layer(nnx.Module):
    """Pre-norm attention and SwiGLU, each with a residual connection. SwiGLU is `widening` times as wide inside."""

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool,
        linear: Callable[[int, int], nnx.Module],
        norm: Callable[[], nnx.Module | None],
        widening: int = _WIDENING,
    ):
        self.heads, self.causal, self.capture = heads, causal, False
        self.attention_norm, self.feedforward_norm = norm(), norm()
        self.query, self.key, self.value = (linear(width, width) for _ in range(3))
        self.output = linear(width, width)
        self.gate, self.up = linear(width, widening * width), linear(width, widening * width)
        self.down = linear(widening * width, width)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        query, key, value = self._projections(x)
        if self.capture:
            self.sow(nnx.Intermediate, "queries", query)
            self.sow(nnx.Intermediate, "keys", key)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        return self._finish(x, mixed)

    def extend(
        self, x: Float[Array, "b t d"], past: KeysValues | None
    ) -> tuple[Float[Array, "b t d"], KeysValues]:
        """The layer's outputs for the tokens after those of `past`, equal to those of a causal layer on all tokens.

        Args:
          x: the new tokens; only one if there is a `past`.
          past: keys and values of all earlier tokens, or None if there are none.

        Returns:
          The outputs, and the keys and values of all tokens so far.
        """
        query, key, value = self._projections(x)
        if past is not None:
            key, value = (jnp.concatenate(pair, axis=1) for pair in zip(past, (key, value), strict=True))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=past is None)
        return self._finish(x, mixed), KeysValues(key, value)

    def _projections(self, x: Float[Array, "b t d"]) -> list[Float[Array, "b t h k"]]:
        y = x if self.attention_norm is None else self.attention_norm(x)
        rows = _rows(y)
        return [
            layer(rows).reshape(*y.shape[:2], self.heads, -1) for layer in (self.query, self.key, self.value)
        ]

    def _finish(self, x: Float[Array, "b t d"], mixed: Float[Array, "b t h k"]) -> Float[Array, "b t d"]:
        x = x + self.output(mixed.reshape(-1, x.shape[-1])).reshape(x.shape)
        y = _rows(x if self.feedforward_norm is None else self.feedforward_norm(x))
        y = nnx.silu(self.gate(y)) * self.up(y)
        show_activity(self, y)
        return x + self.down(y).reshape(x.shape)


def _rows(x: Float[Array, "b t d"]) -> Float[Array, "n d"]:
    """All tokens as one matrix. On a CPU, XLA would transpose three-dimensional operands of weight gradients."""
    return x.reshape(-1, x.shape[-1])


def _tokeniser(
    shape: tuple[int, ...],
    width: int,
    vocabulary: int | None,
    patch: int,
    linear: Callable[[int, int], nnx.Module],
    rngs: nnx.Rngs,
) -> Any:
    """A module from observations of this shape to tokens [B, T, width]."""
    if len(shape) == 1 and vocabulary is not None:
        check_positive(vocabulary=vocabulary, tokens=shape[0])
        return _Lookup(shape[0], vocabulary, width, rngs)
    if vocabulary is not None:
        raise ValueError(f"a vocabulary ({vocabulary}) needs observations of shape (tokens,), not {shape}")
    if len(shape) == 2:
        check_positive(tokens=shape[0], features=shape[1])
        return _Project(shape, width, linear)
    if len(shape) == 3:
        check_positive(patch=patch)
        return _Patches(check_image_shape("Transformer", shape, smallest=patch), patch, width, linear)
    raise ValueError(
        "Transformer takes observations of shape (tokens,) with a vocabulary, (tokens, features) or "
        f"(frames, height, width), not {shape}" + (" without a vocabulary" if len(shape) == 1 else "")
    )


class _Lookup(nnx.Module):
    def __init__(self, num_tokens: int, vocabulary: int, width: int, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(0.02)
        self.embedding = nnx.Param(init(rngs.params(), (vocabulary, width), jnp.float32))
        self.num_tokens = num_tokens

    def __call__(self, tokens: Num[Array, "b t"]) -> Float[Array, "b t d"]:
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"tokens must be integers, not {tokens.dtype}")
        embedding = self.embedding[...]
        # A token outside the vocabulary gives NaN, which stops a run, instead of another token's embedding.
        tokens = without_wraparound(tokens, len(embedding))
        rows = jnp.take(embedding, tokens, axis=0, mode="fill", fill_value=jnp.nan)
        return rows * math.sqrt(embedding.shape[1])


class _Project(nnx.Module):
    def __init__(self, shape: tuple[int, ...], width: int, linear: Callable[[int, int], nnx.Module]):
        self.num_tokens = shape[0]
        self.projection = linear(shape[1], width)

    def __call__(self, vectors: Num[Array, "b t f"]) -> Float[Array, "b t d"]:
        return self.projection(vectors.astype(jnp.float32))


class _Patches(nnx.Module):
    """Non-overlapping patches, in rows from top to bottom and from left to right within a row."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        patch: int,
        width: int,
        linear: Callable[[int, int], nnx.Module],
    ):
        frames, *sides = shape
        if any(side % patch for side in sides):
            raise ValueError(
                f"Transformer cuts frames into patches of {patch} x {patch}, which does not divide {shape}"
            )
        self.shape, self.patch = shape, patch
        self.num_tokens = math.prod(side // patch for side in sides)
        self.projection = linear(frames * patch * patch, width)

    def __call__(self, observations: Num[Array, "b f h w"]) -> Float[Array, "b t d"]:
        x, side = to_nhwc(observations, self.shape), self.patch
        batch, height, width, frames = x.shape
        x = x.reshape(batch, height // side, side, width // side, side, frames).swapaxes(2, 3)
        return self.projection(x.reshape(batch, self.num_tokens, -1))
