"""Value functions trained by classification, in JAX.

The folders `agents`, `envs`, `kernels`, `configs` and `launch` stand at the top of the repository and are
imported as `rlcls.agents`, `rlcls.envs` and so on. A wheel holds them inside `rlcls`; in a checkout this file
finds them.
"""

import os
import sys

__version__ = "0.1.0"

_FOLDERS = ("agents", "configs", "envs", "kernels", "launch")


def _reach_sibling_folders() -> None:
    """Makes the sibling folders of a checkout importable below `rlcls`, and nothing else beside them."""
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(here)
    inside, beside = os.listdir(here), os.listdir(root)
    wanted = set(_FOLDERS) - {"launch"}  # the youngest: a checkout may be without it
    # In site-packages the folders lie inside this one, and what lies beside it is somebody else's.
    if wanted & set(inside) or not wanted <= set(beside):
        return
    __path__.append(root)
    own = {entry.removesuffix(".py") for entry in inside}
    for entry in beside:
        name = entry.removesuffix(".py")
        if name.isidentifier() and name not in own.union(_FOLDERS):
            sys.modules[f"{__name__}.{name}"] = None  # type: ignore[assignment]  # import raises ImportError


_reach_sibling_folders()
