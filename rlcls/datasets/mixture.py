"""Mixes transitions of several games in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Int64

from rlcls.spec import Spec
from rlcls.transition import Transition

from .transitions import Transitions


class Mixture:
    """Transitions of several games. An observation is {"frames": [*observation], "game": int32 []}.

    The number of a game is its position in `games`. All games must have the same shapes and dtypes of observations and
    actions. The spec has the largest number of actions of all games.

    Args:
      games: the transitions of each game by its name, all sampled with replacement.
      weights: proportional to the share of each game in the batches; None means equal shares.
      host: number of this host, h.
      hosts: number of hosts, H; host h takes every H-th transition of a batch of H * size.

    Raises:
      ValueError: the games cannot be mixed.
    """

    def __init__(
        self,
        games: Mapping[str, Transitions],
        weights: Sequence[float] | None = None,
        *,
        host: int = 0,
        hosts: int = 1,
    ):
        self.games = dict(games)
        shares = np.ones(len(games)) if weights is None else np.array(weights, np.float64)
        if len(games) == 0 or len(shares) != len(games) or shares.min() < 0 or not 0 < shares.sum() < np.inf:
            raise ValueError(
                f"weights must be {len(games)} numbers of at least 0, and not all 0, not {list(shares)}"
            )
        for name, game in games.items():
            if game.sampling != "replacement":
                raise ValueError("several games need sampling=replacement; epochs of games differ in length")
            if game.spec[:2] != next(iter(games.values())).spec[:2]:
                raise ValueError(
                    f"observations or actions of {name} differ from those of {next(iter(games))}"
                )
        if not 0 <= host < hosts:
            raise ValueError(f"host ({host}) must be at least 0 and below hosts ({hosts})")
        self._bounds = np.cumsum(shares) / shares.sum()
        self._host, self._hosts = host, hosts

    @property
    def spec(self) -> Spec:
        """The spec of the games, with the number of the game in observations."""
        first, *others = (game.spec for game in self.games.values())
        counts = [spec.num_actions for spec in (first, *others) if spec.num_actions is not None]
        observation = {"frames": first.observation, "game": jax.ShapeDtypeStruct((), np.int32)}
        return Spec(observation, first.action, max(counts, default=None), first.action_range)

    @property
    def identity(self) -> dict[str, str]:
        """The recorded contents of each game by its name, see `Transitions.identity`."""
        return {name: contents for name, game in self.games.items() for contents in game.identity.values()}

    @property
    def behaviour_returns(self) -> dict[str, float]:
        """The mean return of each game; see `Transitions.behaviour_returns`."""
        return {name: mean for game in self.games.values() for name, mean in game.behaviour_returns.items()}

    @property
    def sparse_rewards(self) -> dict[str, float]:
        """The one reward of each game that has one, see `Transitions.sparse_rewards`."""
        return {name: reward for name, game in self.games.items() for reward in game.sparse_rewards.values()}

    def sample(self, size: int, seed: int, number: int) -> tuple[Transition, tuple[np.ndarray, np.ndarray]]:
        """A batch; see `rlcls.training.Source`. Its origin is (games, rows), each int64 [size].

        Raises:
          UserError: frames of the batch are damaged.
        """
        # A different high word of the counter makes these numbers independent of those that draw transitions.
        random = np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, 1]))
        uniforms = random.random(size * self._hosts)[self._host :: self._hosts]
        games = np.searchsorted(self._bounds, uniforms, side="right").astype(np.int64)
        rows = np.zeros(len(games), np.int64)
        for place, game in enumerate(self.games.values()):
            if count := int((games == place).sum()):
                # Each game has its own seed, because games of equal length would draw the same rows. Seeds are < 2**32.
                rows[games == place] = game.draw(count, seed + (place << 32), number)
        return self.at(games, rows), (games, rows)

    def held_out(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The origins of at most `most` held-out transitions, for `at`; the limit is the same for each game.

        Raises:
          ValueError: `most` is below the number of games.
        """
        if most < len(self.games):
            raise ValueError(f"{most} held-out transitions are too few for {len(self.games)} games")
        rows = [game.held_out(most // len(self.games))[0] for game in self.games.values()]
        return np.repeat(np.arange(len(rows)), [len(part) for part in rows]), np.concatenate(rows)

    def at(self, games: Int64[np.ndarray, "b"], rows: Int64[np.ndarray, "b"]) -> Transition:
        """The transitions that start at these rows of these games."""
        order, parts = np.argsort(games, kind="stable"), []
        for place, game in enumerate(self.games.values()):
            if (games == place).any():
                parts.append(game.at(rows[games == place]))
        back = np.argsort(order)
        batch = jax.tree.map(lambda *columns: np.concatenate(columns)[back], *parts)
        frames = {
            name: {"frames": getattr(batch, name), "game": games.astype(np.int32)}
            for name in ("observation", "next_observation")
        }
        return batch._replace(**frames)
