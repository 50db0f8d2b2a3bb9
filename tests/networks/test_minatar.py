"""MinAtar's network: its matrix product equals a convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from rlcls import networks


@pytest.mark.parametrize("shape", [(10, 10, 4), (5, 7, 1)])
def test_the_network_is_a_convolution_and_a_dense_layer(shape):
    network = networks.MinAtar(shape, filters=6, hidden=8, rngs=nnx.Rngs(0))
    observations = np.random.default_rng(0).random((3, *shape)) < 0.3
    kernel = network.convolution.kernel[...].reshape(3, 3, shape[-1], 6)
    x = lax.conv_general_dilated(
        jnp.asarray(observations, jnp.float32),
        kernel,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jax.nn.relu(x + network.convolution.bias[...]).reshape(3, -1)
    expected = jax.nn.relu(x @ network.dense.kernel[...] + network.dense.bias[...])
    np.testing.assert_allclose(network(jnp.asarray(observations)), expected, rtol=1e-5, atol=1e-6)
    assert network.num_features == 8


def test_the_number_of_parameters_is_that_of_the_paper():
    _, params, _ = networks.functional(networks.MinAtar((10, 10, 4), rngs=nnx.Rngs(0)))
    assert networks.count_parameters(params) == (9 * 4 * 16 + 16) + (1024 * 128 + 128)


def test_bfloat16_is_close_to_float32():
    exact, rough = (
        networks.MinAtar((10, 10, 4), dtype=dtype, rngs=nnx.Rngs(0)) for dtype in ("float32", "bfloat16")
    )
    observations = jnp.ones((2, 10, 10, 4), bool)
    assert rough(observations).dtype == jnp.float32
    np.testing.assert_allclose(rough(observations), exact(observations), atol=0.05)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: networks.MinAtar((4,), rngs=nnx.Rngs(0)), r"shape \(height, width, channels\), not \(4,\)"),
        (lambda: networks.MinAtar((2, 9, 1), rngs=nnx.Rngs(0)), r"not \(2, 9, 1\)"),
        (
            lambda: networks.MinAtar((9, 9, 1), filters=0, rngs=nnx.Rngs(0)),
            r"filters \(0\) and hidden \(128\)",
        ),
        (
            lambda: networks.MinAtar((9, 9, 1), rngs=nnx.Rngs(0))(jnp.zeros((1, 8, 8, 1))),
            r"observations must have shape \(batch, 9, 9, 1\), not \(1, 8, 8, 1\)",
        ),
    ],
)
def test_unsuitable_sizes_and_observations_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
