"""A backbone followed by a value head for every action."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Shaped

from rlcls.heads import Head
from rlcls.heads.nnx import QHead


class QNetwork(nnx.Module):
    """Observations -> the head's outputs for every action, [B, A, n].

    `backbone` is an NNX module from observations to features [B, D], and its attribute `num_features` is D. If
    `functional` captures, the network sows `features`, the input of the head.

    Raises:
      ValueError: the backbone returns features for each token (its attribute `yields_tokens` is true).
    """

    def __init__(self, backbone: Any, head: Head, num_actions: int, *, dueling: bool = False, rngs: nnx.Rngs):
        check_vector(backbone)
        self.backbone, self.capture = backbone, False
        self.q_head = QHead(head, backbone.num_features, num_actions, dueling=dueling, rngs=rngs)

    def __call__(self, observations: Shaped[Array, "b *o"]) -> Float[Array, "b a n"]:
        """The outputs of every action; the backbone checks the observations."""
        features = self.backbone(observations)
        if features.ndim != 2:
            name = type(self.backbone).__name__
            raise ValueError(f"{name} returns features of shape {features.shape}, not [batch, num_features]")
        if self.capture:
            self.sow(nnx.Intermediate, "features", features)
        return self.q_head(features)


def check_vector(backbone: Any) -> None:
    """Raises a ValueError if the backbone returns features for each token instead of one vector."""
    if getattr(backbone, "yields_tokens", False):
        name = type(backbone).__name__
        raise ValueError(
            f"a Q-network needs one vector of features, but {name} returns one for every token: pool them"
        )
