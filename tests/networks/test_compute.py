"""bfloat16 and rematerialisation change memory and speed, and results within tolerance only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import networks

SHAPE = (2, 16, 24)
BACKBONES = {
    "impala": networks.IMPALA,
    "soft_moe": networks.IMPALATokens,
    "resnet18": lambda shape, **options: networks.ResNet(shape, width=8, **options),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_results_stay_within_tolerance(name):
    pictures = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)

    def pure(**options):
        return networks.functional(nnx.jit(lambda: BACKBONES[name](SHAPE, rngs=nnx.Rngs(0), **options))())

    def features_and_gradient(apply, params, state):
        def loss(params):
            features, *_ = apply(params, state, pictures, train=True)
            return jnp.sum(jnp.sin(features)), features

        (_, features), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return np.asarray(features), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])

    features, gradient = features_and_gradient(*pure())
    again, regradient = features_and_gradient(*pure(remat=True))
    np.testing.assert_allclose(again, features, atol=1e-6)
    np.testing.assert_allclose(regradient, gradient, atol=1e-4 * np.abs(gradient).max())
    coarse, coarse_gradient = features_and_gradient(*pure(dtype="bfloat16"))
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(coarse, features, atol=0.03 * np.abs(features).max())
    cosine = coarse_gradient @ gradient / np.linalg.norm(coarse_gradient) / np.linalg.norm(gradient)
    assert cosine > 0.97
