"""A keyed permutation of 0, ..., n - 1 without a table, so that epochs need no shuffle buffer and no state."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

_ROUNDS = 6


def permute(positions: Int64[np.ndarray, "b"], n: int, key: tuple[int, int]) -> Int64[np.ndarray, "b"]:
    """The images of positions under a permutation of 0, ..., n - 1.

    A Feistel network permutes 0, ..., 2**k - 1, where 2**k is the smallest power of two that is at least n. An image
    outside 0, ..., n - 1 is permuted again until it is inside (cycle walking), which takes less than two passes on
    average.

    Args:
      positions: 0 <= position < n.
      n: size of the range, at least 1.
      key: two numbers below 2**64 that choose the permutation.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
    """
    bits = max(4, (n - 1).bit_length())
    # A different high word of the counter makes these numbers independent of those for sampling with replacement.
    round_keys = np.random.Philox(key=list(key), counter=[0, 0, 0, 1]).random_raw(_ROUNDS)
    images = _feistel(positions.astype(np.uint64), bits, round_keys)
    while (outside := np.flatnonzero(images >= n)).size:
        images[outside] = _feistel(images[outside], bits, round_keys)
    return images.astype(np.int64)


def _feistel(numbers: np.ndarray, bits: int, round_keys: np.ndarray) -> np.ndarray:
    low, high = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    left, right = numbers >> high, numbers & _mask(high)
    widths = low, high
    # If `bits` is odd, the halves have different widths, which swap in each round; an even number restores them.
    for key in round_keys:
        left, right = right, left ^ (_mix(right ^ key) & _mask(widths[0]))
        widths = widths[1], widths[0]
    return (left << high) | right


def _mask(bits: np.uint64) -> np.uint64:
    return (np.uint64(1) << bits) - np.uint64(1)


def _mix(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, modulo 2**64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
