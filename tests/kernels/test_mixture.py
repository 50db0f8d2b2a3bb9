"""Sums of weighted targets in one histogram: every implementation against the definition in float64."""

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls import kernels
from rlcls.kernels.histogram import mixture

WAYS = {
    "scattered": jax.jit(mixture._scattered, static_argnums=3),
    "compared": jax.jit(mixture.compared, static_argnums=3),
    "numpy": mixture._added_in_numpy,
    "chosen": jax.jit(mixture.add_pairs, static_argnums=3),
}
every_way = pytest.mark.parametrize("add", WAYS.values(), ids=WAYS)


def dense(p, probs, targets):
    """The mass of each target in all bins, [..., n, k], summed over the targets."""
    bins, fractions = p.split(targets)
    columns = np.arange(p.num_bins).reshape((1,) * bins.ndim + (-1,))
    shares = np.maximum(0, 1 - abs(columns - bins[..., None] - fractions[..., None].astype(np.float64)))
    return (probs[..., None] * shares).sum(-2)


def pairs_of(p, probs, targets):
    bins, fractions = p.split(targets)
    return bins, probs * (1 - fractions), probs * fractions


@every_way
@given(
    places=hnp.arrays(np.float32, (2, 3, 10), elements=st.floats(-4, 4, width=32)),
    weights=hnp.arrays(np.float32, (2, 3, 10), elements=st.floats(0, 1, width=32)),
)
@settings(max_examples=25)
def test_the_sum_equals_the_dense_form(add, places, weights):
    for p in (kernels.TwoHot(-3.0, 3.0, 7), kernels.IrregularTwoHot.between([-3.0, -1, 0, 0.5, 1, 2, 3])):
        added = np.asarray(add(*pairs_of(p, weights, places), p.num_bins))
        assert added.shape == (2, 3, 7) and added.dtype == np.float32
        np.testing.assert_allclose(added, dense(p, weights, places), atol=2e-6)


@every_way
@pytest.mark.parametrize("discount", [0.0, 0.3, 0.99, 1.0])
def test_float32_is_accurate_if_a_thousand_atoms_fall_into_one_bin(add, discount):
    p, rng = kernels.TwoHot(-10.0, 10.0, 1001), np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(1001), 8).astype(np.float32)
    targets = rng.uniform(-1, 1, (8, 1)) + discount * np.linspace(-10, 10, 1001)
    pairs = pairs_of(p, probs, targets.astype(np.float32))
    added = add(*pairs, 1001)
    np.testing.assert_allclose(added, dense(p, probs, targets.astype(np.float32)), atol=1e-6)


@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf])
def test_a_mass_that_is_not_finite_makes_its_whole_row_nan(spoilt):
    lower = np.full((3, 4), 0.25, np.float32)
    lower[1, 2] = spoilt
    bins, upper = np.zeros((3, 4), np.int32), np.zeros((3, 4), np.float32)
    for add in (mixture.add_pairs, WAYS["chosen"]):
        added = np.asarray(add(bins, lower, upper, 9))
        assert np.isnan(added[1]).all() and np.isfinite(added[[0, 2]]).all()


def test_a_nan_target_makes_its_whole_row_nan():
    p = kernels.TwoHot(-1.0, 1.0, 5)
    targets = np.array([[0.5, np.inf], [np.nan, 0.5], [1e30, -1e30]], np.float32)
    probs = np.full((3, 2), 0.5, np.float32)
    for projected in (p.project(probs, targets), np.asarray(jax.jit(p.project)(probs, targets))):
        assert np.isnan(projected[1]).all()
        np.testing.assert_allclose(projected[[0, 2]], [[0, 0, 0, 0.5, 0.5], [0.5, 0, 0, 0, 0.5]])


def test_jit_vmap_float64_mixed_arguments_and_strict_ranks():
    p, rng = kernels.TwoHot(-3.0, 3.0, 13), np.random.default_rng(0)
    probs, targets = rng.dirichlet(np.ones(6), (4, 5)), rng.uniform(-4, 4, (4, 5, 6))
    expected = p.project(probs, targets)
    assert isinstance(expected, np.ndarray) and expected.dtype == np.float64
    np.testing.assert_allclose(expected, dense(p, probs, targets), atol=1e-15)
    with jax.numpy_rank_promotion("raise"), jax.enable_x64(True):
        for project in (p.project, jax.jit(p.project), jax.jit(jax.vmap(jax.vmap(p.project)))):
            found = project(jnp.asarray(probs), targets)
            chex.assert_trees_all_close(found, expected, atol=1e-15)
            assert found.dtype == jnp.float64
    single = p.project(probs.astype(np.float32), jnp.asarray(targets, jnp.float32))
    assert isinstance(single, jax.Array) and single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, atol=1e-6)


def test_the_gradient_by_a_mass_is_its_histogram():
    p, rng = kernels.TwoHot(-3.0, 3.0, 7), np.random.default_rng(0)
    probs, targets = rng.dirichlet(np.ones(6)).astype(np.float32), rng.uniform(-4, 4, 6).astype(np.float32)
    shares = jax.jit(jax.jacobian(p.project))(probs, targets)
    np.testing.assert_allclose(shares.T, p.encode(targets), atol=1e-6)


def test_projecting_needs_memory_for_the_histograms_only():
    p, shape = kernels.TwoHot(-10.0, 10.0, 1001), jax.ShapeDtypeStruct((64, 1001), jnp.float32)
    compiled = jax.jit(p.project).lower(shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 64 * 1001 * 4
