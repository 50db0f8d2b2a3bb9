"""Sizes and inputs of the networks, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import heads, networks
from rlcls.networks._convolution import Convolution

ATARI = (4, 84, 84)
HEAD = heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51)


def parameters(make):
    """The shapes of a network's parameters, without computing them."""
    return nnx.state(nnx.eval_shape(make), nnx.Param)


def q_network(backbone, head=HEAD, num_actions=18, **options):
    def make():
        rngs = nnx.Rngs(0)
        return networks.QNetwork(backbone(ATARI, rngs=rngs), head, num_actions, rngs=rngs, **options)

    return make


# The number of parameters: (inputs * kernel area + 1) * outputs, summed over layers.
DATA_EFFICIENT = (4 * 25 + 1) * 32 + (32 * 25 + 1) * 64 + (64 * 3 * 3 + 1) * 256
NATURE = (4 * 64 + 1) * 32 + (32 * 16 + 1) * 64 + (64 * 9 + 1) * 64 + (64 * 7 * 7 + 1) * 512
IMPALA_STACKS = sum(
    (inputs * 9 + 1) * outputs + 4 * (outputs * 9 + 1) * outputs
    for inputs, outputs in ((4, 16), (16, 32), (32, 32))
)
IMPALA = IMPALA_STACKS + (11 * 11 * 32 + 1) * 512


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (q_network(networks.Nature), NATURE + 513 * 18 * 51),
        (q_network(networks.Nature, dueling=True), NATURE + 513 * 19 * 51),
        (q_network(networks.Nature, heads.MSE()), NATURE + 513 * 18),
        (q_network(networks.DataEfficient), DATA_EFFICIENT + 257 * 18 * 51),
        (q_network(networks.IMPALA), IMPALA + 513 * 18 * 51),
    ],
    ids=["nature", "nature dueling", "nature mse", "data-efficient", "impala"],
)
def test_a_network_has_the_published_number_of_parameters(make, expected):
    assert networks.count_parameters(parameters(make)) == expected


def test_the_sizes_of_the_two_atari_networks():
    assert networks.count_parameters(parameters(q_network(networks.Nature))) == 2_155_062
    assert networks.count_parameters(parameters(q_network(networks.IMPALA))) == 2_551_654


def test_width_multiplies_the_channels_of_impala():
    wide = parameters(lambda: networks.IMPALA(ATARI, width=4, rngs=nnx.Rngs(0)))
    shapes = [wide["stacks"][i]["convolution"]["kernel"].shape[-2:] for i in range(3)]
    assert shapes == [(4, 64), (64, 128), (128, 128)]


@pytest.mark.parametrize("network", [networks.Nature, networks.DataEfficient, networks.IMPALA])
def test_frames_are_channels(network):
    """Frame f is channel f: permuting frames and the weights of the channels alike does not change the features."""
    backbone = network((2, 36, 40), rngs=nnx.Rngs(0))
    observations = np.random.default_rng(0).integers(0, 256, (3, 2, 36, 40), dtype=np.uint8)
    forward = nnx.jit(lambda backbone, x: backbone(x))
    features = forward(backbone, observations)
    assert features.shape == (3, backbone.num_features) and features.dtype == jnp.float32
    first = backbone.stacks[0].convolution if network is networks.IMPALA else backbone.convolutions[0].window
    first.kernel[...] = first.kernel[...][:, :, ::-1]
    np.testing.assert_allclose(forward(backbone, observations[:, ::-1]), features, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride"), [(4, 2), (5, 5), (2, 2)], ids=["overlapping", "patches and a remainder", "patches"]
)
def test_a_convolution_equals_that_of_flax(kernel, stride):
    """The outputs, and the gradients of the input, the kernel and the bias, are equal."""
    ours = Convolution(3, 5, kernel, stride, kernel_init=nnx.initializers.lecun_normal(), rngs=nnx.Rngs(0))
    plain = nnx.Conv(3, 5, (kernel, kernel), stride, padding="VALID", rngs=nnx.Rngs(0))
    plain.kernel[...] = ours.window.kernel[...]
    ours.bias[...] = plain.bias[...] = jnp.arange(5.0)
    x = jax.random.normal(jax.random.key(1), (6, 10, 12, 3))

    @nnx.jit
    def both(convolution, x):
        return convolution(x), nnx.grad(lambda c, x: jnp.sum(jnp.sin(c(x))), argnums=(0, 1))(convolution, x)

    (values, (gradient, to_x)), (expected, (plain_gradient, plain_to_x)) = both(ours, x), both(plain, x)
    np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_allclose(to_x, plain_to_x, atol=1e-5)
    np.testing.assert_allclose(gradient["window"]["kernel"][...], plain_gradient["kernel"][...], atol=1e-4)
    np.testing.assert_allclose(gradient["bias"][...], plain_gradient["bias"][...], atol=1e-4)


def test_init_scale_is_the_variance_of_weights_times_the_number_of_inputs():
    nature = networks.Nature(ATARI, init_scale=2.0, rngs=nnx.Rngs(0))
    for kernel in (nature.convolutions[1].window.kernel[...], nature.dense.kernel[...]):
        assert np.var(kernel) * np.prod(kernel.shape[:-1]) == pytest.approx(2.0, rel=0.05)


def test_features_of_an_mlp():
    mlp = networks.MLP((2, 3), hidden=(5, 7), rngs=nnx.Rngs(0))
    assert mlp.num_features == 7
    assert mlp(jnp.ones((4, 2, 3))).shape == (4, 7)
    assert networks.MLP((), rngs=nnx.Rngs(0))(jnp.zeros(4, jnp.int32)).shape == (4, 64)


def test_the_same_seed_draws_the_same_weights():
    first, second = (nnx.state(networks.MLP((3,), rngs=nnx.Rngs(7))) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda rngs: networks.Nature((4, 84), rngs=rngs),
            "Nature takes observations of shape (frames, height, width), "
            "at least 36 high and wide, not (4, 84)",
        ),
        (
            lambda rngs: networks.Nature((84, 84, 4), rngs=rngs),
            "Nature takes observations of shape (frames, height, width), "
            "at least 36 high and wide, not (84, 84, 4)",
        ),
        (
            lambda rngs: networks.DataEfficient((4, 24, 84), rngs=rngs),
            "DataEfficient takes observations of shape (frames, height, width), "
            "at least 25 high and wide, not (4, 24, 84)",
        ),
        (
            lambda rngs: networks.IMPALA((128,), rngs=rngs),
            "IMPALA takes observations of shape (frames, height, width), "
            "at least 1 high and wide, not (128,); backbone=mlp or backbone=states takes vectors",
        ),
        (
            lambda rngs: networks.Nature(ATARI, init_scale=0, rngs=rngs),
            "init_scale must be positive, not 0",
        ),
        (lambda rngs: networks.IMPALA(ATARI, width=0, rngs=rngs), "width must be a positive integer, not 0"),
        (
            lambda rngs: networks.MLP((3,), hidden=(), rngs=rngs),
            "hidden must be integers of at least 1, not ()",
        ),
        (
            lambda rngs: networks.MLP((3,), rngs=rngs)(jnp.zeros((2, 4))),
            "observations must have shape (batch, 3), not (2, 4)",
        ),
    ],
)
@pytest.mark.untyped
def test_a_shape_that_does_not_fit_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as raised:
        make(nnx.Rngs(0))
    assert str(raised.value) == message


@pytest.mark.untyped
def test_observations_that_do_not_fit_are_refused():
    nature = networks.Nature((2, 36, 36), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"shape \(batch, 2, 36, 36\), not \(1, 2, 36, 37\)"):
        nature(jnp.zeros((1, 2, 36, 37), jnp.uint8))
    with pytest.raises(TypeError, match="observations must be uint8, not float32"):
        nature(jnp.zeros((1, 2, 36, 36)))
