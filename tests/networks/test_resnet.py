"""ResNets: independent counts of parameters and operations, and facts about their features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import heads, networks

ATARI = (4, 84, 84)
# Parameters of the standard networks for three channels, without their last layer: torchvision 0.20's totals minus
# 1000 * (inputs + 1). Group norm has as many parameters as batch norm.
BODIES = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}
# Multiply-adds in billions for an image of 224 x 224, as published with torchvision 0.20.
GIGA = {18: 1.814, 34: 3.664, 50: 4.089, 101: 7.801}


@functools.cache
def abstract(shape, **options):
    """The network as a pure function, and the shapes of its parameters."""
    network = nnx.eval_shape(lambda: networks.ResNet(shape, rngs=nnx.Rngs(0), **options))
    graphdef, params, state = nnx.split(network, nnx.Param, ...)
    return lambda params, x: nnx.merge(graphdef, params, state)(x), params


def body(depth, channels, side, width=64):
    """(parameters, multiplications) of the convolutions and norms, layer by layer, from He et al. 2016, table 1."""
    parameters = multiplications = 0

    def layer(inputs, outputs, kernel, side):
        nonlocal parameters, multiplications
        parameters += kernel**2 * inputs * outputs + 2 * outputs
        multiplications += kernel**2 * inputs * outputs * side**2

    halve = lambda side: -(-side // 2)  # noqa: E731
    side = halve(side)
    layer(channels, width, 7, side)
    side = halve(side)
    lengths = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    inputs = width
    for stage, length in enumerate(lengths):
        inner = width * 2**stage
        outputs = inner * (4 if depth >= 50 else 1)
        for block in range(length):
            before, side = side, halve(side) if stage and not block else side
            if depth >= 50:
                layer(inputs, inner, 1, before)
                layer(inner, inner, 3, side)
                layer(inner, outputs, 1, side)
            else:
                layer(inputs, inner, 3, side)
                layer(inner, outputs, 3, side)
            if inputs != outputs or before != side:
                layer(inputs, outputs, 1, side)
            inputs = outputs
    return parameters, multiplications, inputs, side


@pytest.mark.parametrize("depth", BODIES)
@pytest.mark.parametrize("shape", [(3, 224, 224), ATARI])
def test_parameters_and_operations_are_those_of_the_standard_networks(depth, shape):
    apply, params = abstract(shape, depth=depth)
    params = nnx.to_pure_dict(params)
    parameters, multiplications, channels, side = body(depth, *shape[:2])
    if shape[0] == 3:
        assert parameters == BODIES[depth]
        assert (multiplications + 1000 * channels) / 1e9 == pytest.approx(GIGA[depth], abs=6e-4)
    convolutions = {name: params[name] for name in ("stem", "blocks")}
    assert networks.count_parameters(convolutions) == parameters
    embeddings, dense = side**2 * channels * 8, channels * 8 * 512
    assert networks.count_parameters(params) == parameters + embeddings + dense + 512
    flops = networks.count_flops(
        apply, abstract(shape, depth=depth)[1], jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    )
    assert flops == 2 * (multiplications + embeddings + dense)


def test_convolutions_have_no_bias():
    _, params = abstract(ATARI, depth=50)
    biases = {
        path[-2]
        for path, _ in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(params))
        if path[-1].key == "bias"
    }
    assert {key.key for key in biases} == {"norm", "dense"}


@pytest.fixture(scope="module")
def forward(drawn):
    apply, params, state = drawn(lambda: networks.ResNet((2, 36, 41), width=8, rngs=nnx.Rngs(0)))
    function = jax.jit(lambda params, pictures: apply(params, state, pictures, train=False)[0])
    return lambda pictures: function(params, pictures)


def test_features_have_length_one(forward):
    features = forward(np.random.default_rng(0).integers(0, 256, (3, 2, 36, 41), dtype=np.uint8))
    assert features.shape == (3, 512) and features.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_features_depend_on_position_but_not_on_brightness(forward):
    """Brightness scales the output of a convolution without bias, and the norm removes this scale."""
    pictures = np.zeros((3, 2, 36, 41), np.uint8)
    pictures[0, :, :20, :20], pictures[1, :, :20, :20], pictures[2, :, 16:, 21:] = 254, 127, 254
    features = forward(pictures)
    darker, elsewhere = (float(jnp.abs(features[i] - features[0]).max()) for i in (1, 2))
    assert darker < 1e-2 and elsewhere > 10 * darker


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 19}, "depth must be one of 18, 34, 50, 101, not 19"),
        ({"width": 6}, "width must be a multiple of the 4 groups of the norms, not 6"),
        ({"width": 0}, "width must be a positive integer, not 0"),
        ({"spatial": 0}, "spatial must be a positive integer, not 0"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16, not 'float16'"),
    ],
)
@pytest.mark.untyped
def test_an_option_out_of_range_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError) as raised:
        networks.ResNet(ATARI, rngs=nnx.Rngs(0), **options)
    assert str(raised.value) == message


@pytest.mark.untyped
def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"^ResNet takes observations of shape \(frames, height, width\)"):
        networks.ResNet((128,), rngs=nnx.Rngs(0))


HEAD = heads.make("hlgauss", vmin=-2, vmax=2, num_bins=5)


def multi_game(form, **options):
    rngs = nnx.Rngs(0)
    backbone = networks.MLP((2,), hidden=(16,), rngs=rngs)
    return networks.MultiGameQNetwork(backbone, HEAD, 3, 4, form=form, rngs=rngs, **options)


def test_each_game_has_its_own_head():
    network = multi_game("heads")
    x, game = jnp.linspace(-1, 1, 10).reshape(5, 2), jnp.array([0, 3, 1, 3, 2])
    outputs = network({"frames": x, "game": game})
    everything = network.q_head(network.backbone(x)).reshape(5, 4, 3, 5)
    np.testing.assert_array_equal(outputs, np.asarray(everything)[np.arange(5), game])
    _, params, _ = networks.functional(network)
    assert networks.count_parameters(params) == 3 * 16 + 17 * 4 * 3 * 5
    # The gradient from one game's samples changes only the head of that game.
    graphdef, state = nnx.split(network)
    gradient = jax.grad(
        lambda state: nnx.merge(graphdef, state)({"frames": x, "game": jnp.full(5, 2)}).sum()
    )(state)
    rows = np.abs(gradient["q_head"]["advantage"]["kernel"][...]).reshape(16, 4, 15).sum(axis=(0, 2))
    assert (rows[[0, 1, 3]] == 0).all() and rows[2] > 0


def test_a_game_embedding_tells_games_apart_beyond_a_constant():
    network = multi_game("embedding")
    _, params, _ = networks.functional(network)
    assert networks.count_parameters(params) == 3 * 16 + 4 * 64 + (16 + 64 + 1) * 16 + 17 * 3 * 5
    x = jnp.linspace(-3, 3, 10).reshape(5, 2)
    one, other = (network({"frames": x, "game": jnp.full(5, game)}) for game in (0, 1))
    assert np.std(one - other, axis=0).max() > 1e-3


@pytest.mark.parametrize("game", [4, -1])
@pytest.mark.parametrize("form", ["heads", "embedding"])
def test_an_unknown_game_gives_nan(form, game):
    outputs = multi_game(form)({"frames": jnp.ones((1, 2)), "game": jnp.array([game])})
    assert np.isnan(outputs).all()


@pytest.mark.untyped
def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="^form must be one of heads, embedding, not head$"):
        multi_game("head")
    with pytest.raises(ValueError, match="^num_games must be a positive integer, not 0$"):
        networks.MultiGameQNetwork(networks.MLP((2,), rngs=nnx.Rngs(0)), HEAD, 3, 0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("depth", "published"), [(34, 31e6), (50, 60e6), (101, 79e6)])
def test_the_multi_game_networks_have_about_the_published_size(depth, published, record_property):
    """The paper does not specify its head and embeddings, so the counts are only close to the published ones."""

    def make():
        rngs = nnx.Rngs(0)
        backbone = networks.ResNet(ATARI, depth=depth, rngs=rngs)
        head = heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51)
        return networks.MultiGameQNetwork(backbone, head, 18, 40, rngs=rngs)

    count = networks.count_parameters(nnx.state(nnx.eval_shape(make), nnx.Param))
    record_property("parameters", count)
    assert 0.6 < count / published < 1.5
