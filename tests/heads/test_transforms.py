"""The squashing maps are odd, their inverses are exact, and their slope at 0 is not 0."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls.heads.transforms import TRANSFORMS

every_transform = pytest.mark.parametrize("name", TRANSFORMS)
SQUASHING = [name for name in TRANSFORMS if name != "identity"]


@every_transform
@given(x=hnp.arrays(np.float64, 8, elements=st.floats(-1e8, 1e8)))
@settings(max_examples=30)
def test_the_inverse_is_the_inverse_and_both_are_odd(name, x):
    forward, inverse = TRANSFORMS[name]
    np.testing.assert_allclose(inverse(forward(x)), x, rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal(forward(-x), -forward(x))
    assert (np.diff(forward(np.sort(x))) >= 0).all()


@every_transform
def test_float32_is_right_near_zero_and_far_from_it(name):
    x = np.array([-3e5, -1.0, -1e-6, 0, 1e-6, 0.5, 100, 3e5])
    forward, inverse = TRANSFORMS[name]
    np.testing.assert_array_equal(forward(np.array([np.inf, -np.inf, np.nan])), [np.inf, -np.inf, np.nan])
    squashed = jax.jit(forward)(x.astype(np.float32))
    assert squashed.dtype == np.float32
    np.testing.assert_allclose(squashed, forward(x), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(inverse)(squashed), x, rtol=2e-5)


@pytest.mark.parametrize("name", SQUASHING)
def test_the_slope_at_zero_is_not_zero(name):
    for function in TRANSFORMS[name]:
        assert 0.3 < jax.grad(function)(0.0) < 2.1
        assert np.isnan(function(jnp.nan))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("signed_hyperbolic", (rlax.signed_hyperbolic, rlax.signed_parabolic)),
        ("symlog", (rlax.signed_logp1, rlax.signed_expm1)),
    ],
)
def test_transforms_equal_rlax(name, theirs):
    x = np.linspace(-30, 30, 41).astype(np.float32)
    for ours, other in zip(TRANSFORMS[name], theirs, strict=True):
        np.testing.assert_allclose(ours(x), jax.jit(other)(x), rtol=2e-3, atol=1e-4)
