"""bfloat16 and rematerialisation change memory and speed, and results within tolerance only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import networks

SHAPE = (2, 16, 24)
QUICK = {"xla_backend_optimization_level": 0}  # to compile: nothing here runs twice
BACKBONES = {
    "impala": networks.IMPALA,
    "soft_moe": networks.IMPALATokens,
    "resnet18": lambda shape, **options: networks.ResNet(shape, width=8, **options),
    "transformer": lambda shape, **options: networks.Transformer(
        shape, layers=2, width=16, heads=4, patch=8, sigma_reparam=True, **options
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_results_stay_within_tolerance(name, drawn):
    pictures = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)

    def run(**options):
        """Features, the network's state after them, and a gradient."""
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
    again, after_again, gradient_again = run(remat=True)
    np.testing.assert_allclose(again, features, atol=1e-5 * np.abs(features).max())
    np.testing.assert_allclose(after_again, after, atol=1e-5)
    np.testing.assert_allclose(gradient_again, gradient, atol=1e-4 * np.abs(gradient).max())
    coarse, _, coarse_gradient = run(dtype="bfloat16")
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(coarse, features, atol=0.04 * np.abs(features).max())
    cosine = coarse_gradient @ gradient / np.linalg.norm(coarse_gradient) / np.linalg.norm(gradient)
    assert cosine > 0.97
