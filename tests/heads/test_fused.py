"""The fused loss of the categorical heads is the cross-entropy to `encode`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls import heads
from rlcls.heads import criteria

UNIFORM = [
    heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51),
    heads.make("hlgauss", vmin=-10, vmax=10, num_bins=501, sigma=0.5, scalar_transform="symlog"),
    heads.make("two_hot", vmin=-10, vmax=10, num_bins=101),
    heads.make("c51", vmin=-10, vmax=10, num_bins=51),
    heads.make("one_hot", vmin=-10, vmax=10, num_bins=51),
]
DENSE = [
    heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51, label_smoothing=0.1),
    heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51, criterion="ordinal"),
    heads.HLGauss(heads.Support.symexp(-5, 5, 51)),
]


def dense(head, outputs, scalars):
    return criteria.cross_entropy(outputs.astype(jnp.float32), head.encode(scalars))


@pytest.mark.parametrize("head", UNIFORM, ids=lambda head: f"{head.name}-{head.num_outputs}")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_fused_loss_and_its_gradient_equal_the_dense_ones(head, dtype):
    rng = np.random.default_rng(0)
    outputs = jnp.asarray(3 * rng.normal(size=(2, 7, head.num_outputs)), dtype)
    scalars = jnp.asarray([*rng.uniform(-10, 10, 9), -10.0, 10.0, 1e30, -1e30, 0.0], jnp.float32).reshape(
        2, 7
    )

    def both(loss):
        return jax.jit(jax.value_and_grad(lambda x: loss(x).sum()))(outputs)

    (found, gradient), (truth, expected) = (
        both(lambda x: head.loss(x, scalars)),
        both(lambda x: dense(head, x, scalars)),
    )
    assert found.dtype == jnp.float32 and gradient.dtype == dtype
    np.testing.assert_allclose(found, truth, rtol=2e-6)
    np.testing.assert_allclose(
        gradient.astype(jnp.float32),
        expected.astype(jnp.float32),
        rtol=2**-7 if dtype != jnp.float32 else 0,
        atol=3e-6,
    )


def test_an_implementation_can_be_named_and_comes_back_from_a_dict():
    head = heads.make("hlgauss", vmin=-10, vmax=10, num_bins=101, implementation="reference")
    assert heads.make(**head.to_dict()) == head != heads.make("hlgauss", vmin=-10, vmax=10, num_bins=101)
    outputs, scalars = jnp.ones((3, 101)), jnp.zeros(3)
    np.testing.assert_allclose(head.loss(outputs, scalars), dense(head, outputs, scalars), rtol=1e-6)


@pytest.mark.untyped
def test_an_unknown_or_unsuitable_implementation_is_refused():
    with pytest.raises(
        ValueError, match="hlgauss: implementation must be one of reference, xla, .*, not cuda"
    ):
        heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51, implementation="cuda")
    for head in DENSE:
        options = head.to_dict() | {"implementation": "xla"}
        with pytest.raises(ValueError, match="goes with the plain cross-entropy on bins of one width only"):
            heads.make(**options)
