"""One body for many games: a head for each, or a learned vector that says which game it is."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rlcls.heads import Head
from rlcls.heads.nnx import QHead

from ._compute import check_choice, check_positive, relu, without_wraparound
from .q_network import check_vector

_EMBEDDING = 64


class GameObservation(NamedTuple):
    """What is observed, and in which game.

    Attributes:
      observation: [B, *observation].
      game: integers [B], 0 <= game < num_games.
    """

    observation: Any
    game: Any


class MultiGameQNetwork(nnx.Module):
    """GameObservation -> the head's outputs for every action of its game.

    Args:
      backbone: maps observations to features, `num_features` of them.
      head: how a value is represented.
      num_actions: of every game; all 18 of the Atari where games differ.
      num_games: at least 1.
      form: "heads", a last layer for each game, as in Scaled QL; or "embedding", in which a learned vector of 64
        for each game is joined to the features and a dense layer of as many units as there are features mixes them,
        before one last layer for all.

    Raises:
      ValueError: an argument is out of range, or the backbone gives no vector of features.

    With `functional`'s capture it shows its `features`, what the head reads: [B, D].

    Source: Kumar et al. 2022 (Scaled QL): a shared body and a head for each game.
    """

    def __init__(
        self,
        backbone: Any,
        head: Head,
        num_actions: int,
        num_games: int,
        *,
        form: str = "heads",
        rngs: nnx.Rngs,
    ):
        check_vector(backbone)
        check_positive(num_games=num_games)
        check_choice(form=(form, ("heads", "embedding")))
        self.backbone, self.num_games, self.num_actions = backbone, num_games, num_actions
        self.capture = False
        size = backbone.num_features
        embedding = mixer = None
        if form == "embedding":
            embedding = nnx.Embed(num_games, _EMBEDDING, rngs=rngs)
            init = nnx.initializers.xavier_uniform()
            mixer = nnx.Linear(size + _EMBEDDING, size, kernel_init=init, rngs=rngs)
        self.embedding, self.mixer = embedding, mixer
        copies = num_games if form == "heads" else 1
        self.q_head = QHead(head, size, copies * num_actions, rngs=rngs)

    def __call__(self, observations: GameObservation) -> Float[Array, "b a n"]:
        """The outputs of every action, NaN for a game that there is not."""
        features = self.backbone(observations.observation)
        game = without_wraparound(jnp.asarray(observations.game), self.num_games)
        if self.embedding is not None and self.mixer is not None:
            features = jnp.concatenate([features, self.embedding(game)], axis=-1)
            features = relu(self, self.mixer(features))
        if self.capture:
            self.sow(nnx.Intermediate, "features", features)
        outputs = self.q_head(features)
        if self.embedding is not None:
            return outputs
        # All games' outputs and then a choice: a product for each sample would fetch each one's weights anew.
        outputs = outputs.reshape(len(outputs), self.num_games, self.num_actions, -1)
        return jnp.take_along_axis(outputs, game[:, None, None, None], axis=1)[:, 0]
