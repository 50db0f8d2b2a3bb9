"""Chooses the indices of a batch, as a pure function of seed and batch number."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from rlcls._errors import check_choice

from .permutation import permute


class Indices:
    """Draws indices from 0, ..., n - 1.

    Args:
      n: number of items, at least 1.
      sampling: with "replacement", all indices are equally likely in each draw. With "epochs", every n draws contain
        each index exactly once, in an order that depends on the seed and the epoch.
      host: number of this host, h.
      hosts: number of hosts, H. All hosts together draw batches of H * size, and host h takes every H-th index.

    Raises:
      ValueError: an option is out of range.
    """

    def __init__(self, n: int, sampling: str = "replacement", *, host: int = 0, hosts: int = 1):
        check_choice("sampling", sampling, ("replacement", "epochs"))
        if not 0 <= host < hosts:
            raise ValueError(f"host ({host}) must be at least 0 and below hosts ({hosts})")
        self._n, self._sampling, self._host, self._hosts = n, sampling, host, hosts

    def draw(self, size: int, seed: int, number: int) -> Int64[np.ndarray, "size"]:
        """The indices of batch `number`. With epochs, all batches must have the same size.

        Args:
          size: number of indices for this host.
          seed: the run's seed.
          number: number of the batch, from 0.
        """
        if self._sampling == "replacement":
            random = np.random.Generator(np.random.Philox(key=[seed, number]))
            return random.integers(0, self._n, size * self._hosts)[self._host :: self._hosts]
        first = number * size * self._hosts + self._host
        epochs, positions = np.divmod(first + self._hosts * np.arange(size, dtype=np.int64), self._n)
        indices = np.empty(size, np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            indices[inside] = permute(positions[inside], self._n, (seed, int(epoch)))
        return indices
