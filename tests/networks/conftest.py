"""Networks whose weights are drawn with NumPy, which is faster than compiling their initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import networks


@pytest.fixture(scope="session")
def drawn():
    """(function that makes a network, seed) -> `networks.functional` of it, with all variables drawn by NumPy."""

    def functional(make, seed=0):
        random = np.random.default_rng(seed)

        def draw(leaf):
            scale = 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
            return jnp.asarray(random.normal(size=leaf.shape) * scale, leaf.dtype)

        apply, *variables = networks.functional(nnx.eval_shape(make))
        return apply, *(jax.tree.map(draw, tree) for tree in variables)

    return functional
