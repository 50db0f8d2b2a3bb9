"""Networks from observations to the outputs of a value head: flax NNX modules, and pure functions of them."""

from .functional import count_parameters, functional
from .impala import IMPALA
from .mlp import MLP
from .nature import Nature
from .q_network import QNetwork

__all__ = ["IMPALA", "MLP", "Nature", "QNetwork", "count_parameters", "functional"]
