"""Networks from observations to the outputs of a value head, as flax NNX modules and as pure functions."""

from .flops import count_flops
from .functional import count_parameters, functional
from .impala import IMPALA
from .impala_tokens import IMPALATokens
from .minatar import MinAtar
from .mlp import MLP
from .multi_game import MultiGameQNetwork
from .nature import DataEfficient, Nature
from .q_network import QNetwork
from .resnet import ResNet
from .soft_moe import SoftMoE
from .spectral import SpectralLinear
from .states import States
from .token_q_network import TokenQNetwork
from .transformer import Transformer

__all__ = [
    "IMPALA",
    "MLP",
    "DataEfficient",
    "IMPALATokens",
    "MinAtar",
    "MultiGameQNetwork",
    "Nature",
    "QNetwork",
    "ResNet",
    "SoftMoE",
    "SpectralLinear",
    "States",
    "TokenQNetwork",
    "Transformer",
    "count_flops",
    "count_parameters",
    "functional",
]
