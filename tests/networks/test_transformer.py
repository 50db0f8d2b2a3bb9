"""The transformer against NumPy and the published sizes, and spectral norms against LAPACK."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import heads, networks

CHESS = (79,)
SIZES = {"9M": (8, 256, 9e6), "136M": (8, 1024, 136e6), "270M": (16, 1024, 270e6)}


@pytest.mark.parametrize("name", SIZES)
def test_the_published_sizes(name):
    """Ruoss et al. 2024, appendix A: 1,968 tokens, 79 positions, 128 classes of one value."""
    layers, width, published = SIZES[name]

    def make():
        rngs = nnx.Rngs(0)
        backbone = networks.Transformer(CHESS, layers=layers, width=width, vocabulary=1968, rngs=rngs)
        head = heads.make("hlgauss", vmin=0, vmax=1, num_bins=128)
        return networks.QNetwork(backbone, head, 1, rngs=rngs)

    count = networks.count_parameters(nnx.state(nnx.eval_shape(make), nnx.Param))
    attention, feedforward, norms = 4 * width**2, 3 * width * 4 * width, 2 * 2 * width
    body = (1968 + 79) * width + layers * (attention + feedforward + norms) + 2 * width
    assert count == body + (width + 1) * 128
    assert count == pytest.approx(published, rel=0.01)


@functools.cache
def small(shape, **options):
    """A small transformer, which the tests share because none of them changes it."""
    make = abstract(shape, **options)
    if options.get("sigma_reparam"):  # the initial vectors belong to the initial weights
        return nnx.jit(make)()
    graphdef, state = nnx.split(nnx.eval_shape(make))
    random = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(random.normal(size=leaf.shape) / np.sqrt(leaf.shape[0]), leaf.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, state))


def abstract(shape, **options):
    options = {"layers": 2, "width": 16, "heads": 4} | options
    return lambda: networks.Transformer(shape, rngs=nnx.Rngs(0), **options)


def norm(x, layer):
    if layer is None:
        return x
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * np.float64(layer.scale[...]) + np.float64(layer.bias[...])


def weight(layer):
    """The weight; W_hat of a spectral layer is computed with a singular value decomposition."""
    kernel = np.float64(layer.kernel[...])
    if isinstance(layer, networks.SpectralLinear):
        kernel = kernel * float(layer.gamma[...]) / np.linalg.svd(kernel, compute_uv=False)[0]
    return kernel


def by_numpy(network, x, causal):
    """The transformer with loops over layers, tokens and heads; x [B, T, D] is the input of the first layer."""
    for layer in network.layers:
        y = norm(x, layer.attention_norm)
        query, key, value = (y @ weight(each) for each in (layer.query, layer.key, layer.value))
        mixed = np.zeros_like(x)
        size = x.shape[2] // layer.heads
        for sample in range(x.shape[0]):
            for head in range(layer.heads):
                part = slice(head * size, (head + 1) * size)
                for token in range(x.shape[1]):
                    seen = token + 1 if causal else x.shape[1]
                    logits = key[sample, :seen, part] @ query[sample, token, part] / np.sqrt(size)
                    attention = np.exp(logits - logits.max())
                    mixed[sample, token, part] = attention / attention.sum() @ value[sample, :seen, part]
        x = x + mixed @ weight(layer.output)
        y = norm(x, layer.feedforward_norm)
        gate = y @ weight(layer.gate)
        x = x + (gate / (1 + np.exp(-gate)) * (y @ weight(layer.up))) @ weight(layer.down)
    return norm(x, network.norm)


@pytest.mark.parametrize(
    ("causal", "options"),
    [
        (False, {}),
        (True, {}),
        (True, {"sigma_reparam": True, "layer_norm": False}),
        (False, {"sigma_reparam": True, "gamma_init": "norm"}),
    ],
)
def test_the_transformer_equals_one_in_numpy(causal, options):
    network = small((5, 3), causal=causal, pool="none", **options)
    vectors = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    x = vectors @ weight(network.tokeniser.projection) + np.float64(network.positions[...])
    network.eval()
    outputs = jax.jit(lambda x: network(x))(vectors)
    np.testing.assert_allclose(outputs, by_numpy(network, x, causal), atol=2e-4)
    if causal:
        vectors[:, 3:] += 1
        np.testing.assert_allclose(network(jnp.asarray(vectors))[:, :3], outputs[:, :3], atol=1e-5)


def test_tokens_of_each_kind_of_observation():
    tokens = np.array([[0, 6, 2], [5, 5, 1]], np.uint8)
    lookup = small((3,), vocabulary=7).tokeniser
    expected = np.asarray(lookup.embedding[...])[tokens] * 4
    np.testing.assert_allclose(lookup(jnp.asarray(tokens)), expected, rtol=1e-6)
    for beyond in (7, -1):
        assert np.isnan(lookup(jnp.array([[beyond, 0, 0]]))[0, 0]).all()

    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 12, 18), dtype=np.uint8)
    patches = small((4, 12, 18), patch=6).tokeniser
    assert patches.num_tokens == 6
    cut = np.moveaxis(frames[1, :, 6:12, 12:18], 0, -1).ravel() / 255  # the second row's third patch
    np.testing.assert_allclose(
        patches(jnp.asarray(frames))[1, 5], cut @ weight(patches.projection), atol=1e-5
    )


def test_features_are_the_last_tokens_or_the_mean():
    every = small((5, 3), pool="none")
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    outputs = every(vectors)
    for pool, expected in (("last", outputs[:, -1]), ("mean", outputs.mean(axis=1))):
        np.testing.assert_allclose(small((5, 3), pool=pool)(vectors), expected, atol=1e-6)


def test_queries_and_keys_are_sown_if_captured():
    network = small((5, 3), causal=True, remat=True)
    apply, params, state = networks.functional(network)
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    assert apply(params, state, vectors, train=True)[2] == {}
    outputs, after, shown = apply(params, state, vectors, train=False, capture=True)
    np.testing.assert_allclose(outputs, network(vectors), atol=1e-6)
    chex.assert_trees_all_equal_structs(after, state)
    assert set(shown["layers"]) == {0, 1}
    y = norm(
        np.float64(network.tokeniser(vectors) + network.positions[...]), network.layers[0].attention_norm
    )
    for name, layer in (("queries", network.layers[0].query), ("keys", network.layers[0].key)):
        (found,) = shown["layers"][0][name]
        np.testing.assert_allclose(found, (y @ weight(layer)).reshape(2, 5, 4, 4), atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "gamma_init"), [((6, 4), "one"), ((4, 6), "norm"), ((1, 3), "one"), ((20, 20), "norm")]
)
def test_the_spectral_norm_is_gamma(sizes, gamma_init):
    layer = nnx.jit(lambda: networks.SpectralLinear(*sizes, gamma_init=gamma_init, rngs=nnx.Rngs(0)))()
    largest = np.linalg.svd(np.float64(layer.kernel[...]), compute_uv=False)[0]
    gamma = 1 if gamma_init == "one" else largest
    assert float(layer.gamma[...]) == pytest.approx(gamma, rel=1e-5)
    hat = layer.weight()
    assert np.linalg.svd(hat, compute_uv=False)[0] == pytest.approx(gamma, rel=1e-5)
    if gamma_init == "norm":
        np.testing.assert_allclose(hat, layer.kernel[...], rtol=1e-5)
    x = jnp.ones((2, sizes[0]))
    np.testing.assert_allclose(layer(x), x @ hat, rtol=1e-5)


def test_one_power_iteration_per_training_step_finds_the_spectral_norm_of_a_changed_weight():
    apply, params, state = networks.functional(networks.SpectralLinear(8, 5, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(1)
    params = params | {"kernel": jnp.asarray(random.normal(size=(8, 5)), jnp.float32)}
    kernel = np.float64(params["kernel"])
    left, values, right = np.linalg.svd(kernel)
    x, u = jnp.eye(8), np.float64(state["power"])
    step = jax.jit(apply, static_argnames="train")
    for number in range(200):
        hat, after, _ = step(params, state, x, train=True)
        v = kernel @ u / np.linalg.norm(kernel @ u)
        sigma = np.linalg.norm(v @ kernel)
        u = v @ kernel / sigma
        if number < 5:  # one iteration, and W_hat uses the vectors after it
            np.testing.assert_allclose(after["power"], u, atol=1e-5)
            np.testing.assert_allclose(hat, kernel / sigma, atol=1e-5)
        state = after
    assert abs(np.float64(state["power"]) @ right[0]) == pytest.approx(1, abs=1e-5)
    assert np.linalg.svd(hat, compute_uv=False)[0] == pytest.approx(1, rel=1e-5)
    _, evaluated, _ = step(params, state, x, train=False)
    np.testing.assert_array_equal(evaluated["power"], state["power"])
    # The derivative of the largest singular value is the outer product of its singular vectors.
    loss = lambda params: 1 / apply(params, state, x[:1], train=False)[0].sum()  # noqa: E731
    gradient = jax.grad(loss)(params)["kernel"]
    row = kernel[0].sum()
    expected = np.outer(left[:, 0], right[0]) / row
    expected[0] -= values[0] / row**2
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_an_averaged_vector_gives_the_same_spectral_norm():
    """A Polyak average of unit vectors, in a target network, is shorter than 1."""
    apply, params, state = networks.functional(networks.SpectralLinear(8, 5, rngs=nnx.Rngs(0)))
    half = jax.tree.map(lambda vector: vector / 2, state)
    one, other = (apply(params, each, jnp.eye(8), train=False)[0] for each in (state, half))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_vectors_are_state_and_every_linear_layer_has_one():
    make = lambda **options: nnx.eval_shape(abstract((4, 12, 18), patch=6, **options))  # noqa: E731
    _, params, state = networks.functional(make(sigma_reparam=True))
    plain = networks.functional(make())[1]
    linears = 1 + 2 * 7
    assert len(jax.tree.leaves(state)) == linears
    assert networks.count_parameters(params) == networks.count_parameters(plain) + linears
    assert not any("power" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (4, 83, 84),
            {},
            "Transformer cuts frames into patches of 12 x 12, which does not divide (4, 83, 84)",
        ),
        ((4, 84, 84), {"vocabulary": 9}, "a vocabulary (9) needs observations of shape (tokens,), "
         "not (4, 84, 84)"),
        ((1,), {}, "Transformer takes observations of shape (tokens,) with a vocabulary, "
         "(tokens, features) or (frames, height, width), not (1,) without a vocabulary"),
        ((), {}, "Transformer takes observations of shape (tokens,) with a vocabulary, "
         "(tokens, features) or (frames, height, width), not ()"),
        ((4, 84, 84), {"width": 30}, "width must be a multiple of heads (8), not 30"),
        ((4, 84, 84), {"pool": "first"}, "pool must be one of last, mean, none, not first"),
        ((4, 84, 84), {"gamma_init": "svd"}, "gamma_init must be one of one, norm, not svd"),
        ((4, 84, 84), {"layers": 0}, "layers must be a positive integer, not 0"),
        ((4, 84, 84), {"patch": 0}, "patch must be a positive integer, not 0"),
        ((3,), {"vocabulary": 0}, "vocabulary must be a positive integer, not 0"),
    ],
)  # fmt: skip
@pytest.mark.untyped
def test_unsuitable_options_and_shapes_are_refused_in_one_line(shape, options, message):
    with pytest.raises(ValueError) as raised:
        networks.Transformer(shape, rngs=nnx.Rngs(0), **options)
    assert str(raised.value) == message


@pytest.mark.untyped
def test_tokens_where_a_vector_is_needed_are_refused():
    backbone = nnx.eval_shape(
        lambda: networks.Transformer((3,), layers=1, width=8, vocabulary=5, pool="none", rngs=nnx.Rngs(0))
    )
    for make in (
        lambda rngs: networks.QNetwork(backbone, heads.MSE(), 2, rngs=rngs),
        lambda rngs: networks.MultiGameQNetwork(backbone, heads.MSE(), 2, 3, rngs=rngs),
    ):
        with pytest.raises(
            ValueError, match="^a Q-network needs one vector of features, but Transformer returns"
        ):
            make(nnx.Rngs(0))
    with pytest.raises(TypeError, match="^tokens must be integers, not float32$"):
        backbone(jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"^observations must have shape \(batch, 3\), not \(1, 4\)$"):
        backbone(jnp.zeros((1, 4), jnp.int32))
