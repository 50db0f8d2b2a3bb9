"""Several processes that train one agent: how they meet, agree and end together."""

from .connected import DIED
from .hosts import ALONE, Hosts
from .joining import compare, joined

__all__ = ["ALONE", "DIED", "Hosts", "compare", "joined"]
