"""States as tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls.networks import States


def test_each_state_of_a_history_is_one_token_with_its_position():
    one = States((3,), rngs=nnx.Rngs(0))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(one(jnp.asarray(x)), x[:, None])
    assert one.num_features == 3
    several = States((2, 3), rngs=nnx.Rngs(0))
    tokens = np.asarray(several(jnp.asarray(x[None])))
    np.testing.assert_array_equal(tokens, [[[0, 1, 2, 1, 0], [3, 4, 5, 0, 1]]])
    assert several.num_features == 5 and several.yields_tokens


def test_an_unsuitable_shape_is_refused():
    for shape in ((), (2, 3, 4), (0,)):
        with pytest.raises(ValueError, match="States takes observations of shape"):
            States(shape, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"observations must have shape \(batch, 3\), not \(2, 4\)"):
        States((3,), rngs=nnx.Rngs(0))(jnp.zeros((2, 4)))
