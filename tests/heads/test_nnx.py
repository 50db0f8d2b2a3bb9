"""The last layer as a flax module."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import heads

HEAD = heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51)


@pytest.mark.parametrize("dueling", [False, True])
def test_outputs_for_every_action_and_any_leading_dimensions(dueling):
    q_head = heads.nnx.QHead(HEAD, 8, 3, dueling=dueling, rngs=nnx.Rngs(0))
    assert q_head(jnp.ones((2, 5, 8))).shape == (2, 5, 3, 51)
    assert q_head(jnp.ones(8)).shape == (3, 51)


@pytest.mark.parametrize("dueling", [False, True])
def test_a_head_initialised_with_zeros_has_value_zero(dueling):
    q_head = heads.nnx.QHead(HEAD, 8, 3, dueling=dueling, init_scale=0.0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(HEAD.value(q_head(jnp.ones((2, 8)))), np.zeros((2, 3)))


def test_a_dueling_head_has_the_state_s_outputs_as_its_mean_over_actions():
    q_head = heads.nnx.QHead(HEAD, 8, 3, dueling=True, rngs=nnx.Rngs(0))
    features = jnp.linspace(0, 1, 16).reshape(2, 8)
    outputs = q_head(features)
    np.testing.assert_allclose(outputs.mean(-2), q_head.state(features), atol=1e-6)
    advantages = q_head.advantage(features).reshape(2, 3, 51)
    np.testing.assert_allclose(outputs[:, 0] - outputs[:, 1], advantages[:, 0] - advantages[:, 1], atol=1e-6)


def test_weights_are_drawn_within_dopamine_s_bound():
    kernel = heads.nnx.QHead(HEAD, 512, 18, rngs=nnx.Rngs(0)).advantage.kernel[...]
    bound = np.sqrt(3 / np.sqrt(3) / 512)
    assert 0.99 * bound < np.abs(kernel).max() <= bound


@pytest.mark.untyped
def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="num_actions must be at least 1, not 0"):
        heads.nnx.QHead(HEAD, 8, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="init_scale must not be negative"):
        heads.nnx.QHead(HEAD, 8, 2, init_scale=-1.0, rngs=nnx.Rngs(0))
