"""One body for many games, with a head or a learned embedding for each game."""

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

    An observation is {"frames": [B, ...], "game": integers [B]}, and 0 <= game < num_games.

    Args:
      backbone: maps observations to `num_features` features.
      head: represents a value.
      num_actions: actions of every game; all 18 of the Atari if the games differ.
      num_games: at least 1.
      form: "heads", a last layer for each game, as in Scaled QL; or "embedding", a learned vector of 64 for each game,
        concatenated with the features and mixed by a dense layer of `num_features` units, and one last layer.

    Raises:
      ValueError: an argument is out of range, or the backbone yields features for each token.

    With `functional`'s capture it sows `features`, the input of the head: [B, D].

    Source: Kumar et al. 2022 (Scaled QL), which has a shared body and a head for each game.
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
        """The outputs of every action; NaN for a game number out of range."""
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
        # Computes the outputs of all games, then selects: a product for each sample would load weights for each.
        outputs = outputs.reshape(len(outputs), self.num_games, self.num_actions, -1)
        return jnp.take_along_axis(outputs, game[:, None, None, None], axis=1)[:, 0]
