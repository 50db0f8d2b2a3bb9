"""bfloat16 and rematerialisation change results only within tolerance, and layers show their activity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import diagnostics, heads, networks

SHAPE = (2, 16, 24)
QUICK = {"xla_backend_optimization_level": 0}  # every compiled program runs once
BACKBONES = {
    "nature": lambda shape, **options: networks.Nature((2, 36, 44), **options),
    "data_efficient": lambda shape, **options: networks.DataEfficient((2, 29, 31), **options),
    "mlp": networks.MLP,
    "impala": networks.IMPALA,
    "soft_moe": networks.IMPALATokens,
    "resnet18": lambda shape, **options: networks.ResNet(shape, width=8, **options),
    "transformer": lambda shape, **options: networks.Transformer(
        shape, layers=2, width=16, heads=4, patch=8, sigma_reparam=True, **options
    ),
}
NUMBERS = {"mlp": jnp.float32}  # it takes no uint8 images
NOTHING_TO_COMPUTE_AGAIN = ("nature", "data_efficient", "mlp")


@pytest.mark.parametrize("name", BACKBONES)
def test_results_stay_within_tolerance(name, drawn):
    shape = nnx.eval_shape(lambda: BACKBONES[name](SHAPE, rngs=nnx.Rngs(0))).observation_shape
    pictures = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    if name == "mlp":
        pictures = np.float32(pictures / 255)

    def run(**options):
        """Features, the network's new state, and a gradient."""
        apply, params, state = drawn(lambda: BACKBONES[name](SHAPE, rngs=nnx.Rngs(0), **options))

        def loss(params):
            features, after, _ = apply(params, state, pictures, train=True)
            return jnp.sum(jnp.sin(features)), (features, after)

        gradient_of = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
        (_, (features, after)), gradient = gradient_of(params)
        return features, *(
            np.concatenate([np.ravel(leaf) for leaf in [np.zeros(0), *jax.tree.leaves(tree)]])
            for tree in (after, gradient)
        )

    features, after, gradient = run()
    if name not in NOTHING_TO_COMPUTE_AGAIN:
        again, after_again, gradient_again = run(remat=True)
        np.testing.assert_allclose(again, features, atol=1e-5 * np.abs(features).max())
        np.testing.assert_allclose(after_again, after, atol=1e-5)
        np.testing.assert_allclose(gradient_again, gradient, atol=1e-4 * np.abs(gradient).max())
    coarse, _, coarse_gradient = run(dtype="bfloat16")
    assert coarse.dtype == np.float32 and not np.array_equal(coarse, features)
    np.testing.assert_allclose(coarse, features, atol=0.04 * np.abs(features).max())
    cosine = coarse_gradient @ gradient / np.linalg.norm(coarse_gradient) / np.linalg.norm(gradient)
    assert cosine > 0.97


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", BACKBONES)
def test_parameters_features_and_gradients_are_float32(name, dtype):
    """This also holds with 64-bit dtypes enabled and with rank promotion forbidden."""
    head = heads.make("hlgauss", vmin=-1, vmax=1, num_bins=5)
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):

        def make():
            rngs = nnx.Rngs(0)
            return networks.QNetwork(BACKBONES[name](SHAPE, dtype=dtype, rngs=rngs), head, 3, rngs=rngs)

        network = nnx.eval_shape(make)
        apply, params, state = networks.functional(network)
        pictures = jax.ShapeDtypeStruct(
            (1, *network.backbone.observation_shape), NUMBERS.get(name, jnp.uint8)
        )

        def everything(params, state, pictures):
            def loss(params):
                outputs, after, _ = apply(params, state, pictures, train=True)
                return jnp.sum(outputs), (outputs, after)

            shown = apply(params, state, pictures, train=False, capture=True)[2]
            return jax.grad(loss, has_aux=True)(params), diagnostics.shown(shown)

        made = jax.eval_shape(everything, params, state, pictures)
    for leaf in jax.tree.leaves((params, state, made)):
        assert leaf.dtype == jnp.float32


# Number of units of all hidden layers of the networks above.
UNITS = {
    "nature": 32 + 64 + 64 + 512,
    "data_efficient": 32 + 64 + 256,
    "mlp": 64 + 64,
    "impala": 4 * (16 + 32 + 32) + 32 + 512,
    "soft_moe": 4 * (16 + 32 + 32) + 32 + 4 * 512,
    "resnet18": 8 + 4 * (8 + 16 + 32 + 64) + 512,
    "transformer": 2 * 4 * 16,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_hidden_layer_sows_the_activity_of_its_units(name):
    options = {} if name in NOTHING_TO_COMPUTE_AGAIN else {"remat": True}
    network = nnx.eval_shape(lambda: BACKBONES[name](SHAPE, rngs=nnx.Rngs(0), **options))
    apply, params, state = networks.functional(network)
    pictures = jax.ShapeDtypeStruct((3, *network.observation_shape), NUMBERS.get(name, jnp.uint8))

    def look(params, state, pictures):
        return apply(params, state, pictures, train=False, capture=True)[2]

    shown = jax.tree_util.tree_leaves_with_path(jax.eval_shape(look, params, state, pictures))
    layers = [leaf.shape for path, leaf in shown if "activity" in str(path)]
    assert all(len(shape) == 1 for shape in layers)
    assert sum(units for (units,) in layers) == UNITS[name]


@pytest.mark.parametrize("network", [networks.Nature, networks.IMPALATokens])
def test_activity_is_the_mean_over_observations(network, drawn):
    """The activity for two images is the mean of their activities."""
    shape = (1, 36, 36)
    apply, params, state = drawn(lambda: network(shape, rngs=nnx.Rngs(0)))
    one, other = np.random.default_rng(0).integers(0, 256, (2, 1, *shape), dtype=np.uint8)

    @jax.jit
    def activities(pictures):
        features, _, shown = apply(params, state, pictures, train=False, capture=True)
        found = jax.tree_util.tree_leaves_with_path(shown)
        return features, [leaf for path, leaf in found if "activity" in str(path)]

    (features, alone), (_, beside) = activities(one), activities(other)
    _, both = activities(np.concatenate([one, other]))
    for first, second, mean in zip(alone, beside, both, strict=True):
        assert (first >= 0).all()
        np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-4, atol=1e-6)
    if network is networks.Nature:
        np.testing.assert_allclose(alone[-1], features[0], rtol=1e-5)
