"""A Q-network that several games share, with a head or a learned embedding for each game."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rlcls._errors import check_choice
from rlcls.heads import Head
from rlcls.heads.nnx import QHead

from ._compute import check_positive, relu, without_wraparound
from .q_network import check_vector

_EMBEDDING = 64


class MultiGameQNetwork(nnx.Module):
    """A network from observations of several games to the head's outputs for every action of their games.

    Observations are {"frames": [B, ...], "game": integers [B]} with 0 <= game < num_games.

    Args:
      backbone: maps observations to `num_features` features.
      head: the value head.
      num_actions: actions of every game. Games with different actions use the full set of 18 Atari actions.
      num_games: at least 1.
      form: "heads" has a last layer for each game, as in Scaled QL. "embedding" has a learned vector of 64 numbers for
        each game, which is concatenated with the features; a dense layer of `num_features` units and one last layer
        follow.

    Raises:
      ValueError: an argument is out of range, or the backbone returns features for each token.

    If `functional` captures, the network sows `features`, the input of the head: [B, D].

    Source: Kumar et al. 2022 (Scaled QL), for "heads".
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
        check_choice("form", form, ("heads", "embedding"))
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

    def __call__(self, observations: dict[str, Any]) -> Float[Array, "b a n"]:
        """The outputs of every action. A game number out of range gives NaN."""
        features = self.backbone(observations["frames"])
        game = without_wraparound(jnp.asarray(observations["game"]), self.num_games)
        if self.embedding is not None and self.mixer is not None:
            features = jnp.concatenate([features, self.embedding(game)], axis=-1)
            features = relu(self, self.mixer(features))
        if self.capture:
            self.sow(nnx.Intermediate, "features", features)
        outputs = self.q_head(features)
        if self.embedding is not None:
            return outputs
        # Computes the outputs for all games, then selects. Selecting weights first would load them for each sample.
        outputs = outputs.reshape(len(outputs), self.num_games, self.num_actions, -1)
        return jnp.take_along_axis(outputs, game[:, None, None, None], axis=1)[:, 0]
