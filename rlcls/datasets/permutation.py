"""A keyed permutation of 0, ..., n - 1 that needs no table, so an epoch needs no shuffle and no state."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

_ROUNDS = 6


def permute(positions: Int64[np.ndarray, "b"], n: int, key: tuple[int, int]) -> Int64[np.ndarray, "b"]:
    """The images of positions under a permutation of 0, ..., n - 1.

    A Feistel network permutes 0, ..., 4**k - 1, the smallest such range that holds n numbers. An image outside
    0, ..., n - 1 is permuted again until it lies inside (cycle walking), about four times at most on average.

    Args:
      positions: 0 <= position < n.
      n: size of the range, at least 1.
      key: two numbers below 2**64 that choose the permutation.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
    """
    half = max(2, ((n - 1).bit_length() + 1) // 2)
    # The high word of the counter keeps these numbers apart from those that draw samples with replacement.
    round_keys = np.random.Philox(key=list(key), counter=[0, 0, 0, 1]).random_raw(_ROUNDS)
    images = _feistel(positions.astype(np.uint64), half, round_keys)
    while (outside := np.flatnonzero(images >= n)).size:
        images[outside] = _feistel(images[outside], half, round_keys)
    return images.astype(np.int64)


def _feistel(numbers: np.ndarray, half: int, round_keys: np.ndarray) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> bits, numbers & mask
    for key in round_keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def _mix(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, modulo 2**64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
