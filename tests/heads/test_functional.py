"""The heads as functions of arrays equal the heads, the published listing and rlax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from scipy.special import log_softmax
from scipy.stats import norm

from rlcls import heads

EDGES = np.linspace(-10, 10, 52)
BINS = np.linspace(-10, 10, 51)
TARGETS = np.random.default_rng(0).uniform(-9, 9, (4, 3)).astype(np.float32)
LOGITS = np.random.default_rng(1).normal(size=(4, 3, 51)).astype(np.float32)


@pytest.mark.parametrize("edges", [EDGES, EDGES.tolist(), np.asarray(jnp.linspace(-10, 10, 52))], ids=type)
def test_hl_gauss_is_the_published_listing_but_finite_outside_the_support(edges):
    mass = np.diff(norm.cdf(EDGES, TARGETS[..., None].astype(np.float64), 0.3))
    expected = mass / mass.sum(-1, keepdims=True)
    probs = heads.hl_gauss_probs(TARGETS, edges, 0.3)
    assert isinstance(probs, np.ndarray)
    np.testing.assert_allclose(probs, expected, atol=5e-7)
    np.testing.assert_allclose(
        jax.jit(lambda t: heads.hl_gauss_probs(t, edges, 0.3))(TARGETS), expected, atol=5e-7
    )
    loss = jax.jit(lambda x, t: heads.hl_gauss_cross_entropy(x, t, edges=edges, sigma=0.3))(LOGITS, TARGETS)
    np.testing.assert_allclose(loss, -(expected * log_softmax(LOGITS, -1)).sum(-1), rtol=1e-5)
    assert np.isfinite(heads.hl_gauss_probs(np.array([12.0, -1e30]), edges, 0.3)).all()


def test_even_edges_give_the_uniform_support():
    head = heads.HLGauss(heads.Support.uniform(-10, 10, 51), sigma=0.3)
    np.testing.assert_array_equal(heads.hl_gauss_probs(TARGETS, EDGES, 0.3), head.encode(TARGETS))


def test_two_hot_and_back():
    probs = heads.two_hot(TARGETS, BINS)
    np.testing.assert_allclose(heads.from_probs(probs, BINS), TARGETS, atol=2e-6)
    uneven = [-10.0, -2.0, 0.0, 1.0, 10.0]
    np.testing.assert_allclose(heads.from_probs(heads.two_hot(TARGETS, uneven), uneven), TARGETS, atol=2e-6)
    loss = heads.two_hot_cross_entropy(LOGITS, TARGETS, bins=BINS)
    np.testing.assert_allclose(loss, -(probs * log_softmax(LOGITS, -1)).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(
        heads.one_hot(np.array([0.5, 1.0, 2.5]), [0.0, 1, 2, 3]).argmax(-1), [0, 1, 2]
    )


def test_two_hot_equals_rlax_inside_the_support():
    theirs = jax.vmap(jax.vmap(lambda t: rlax.transform_to_2hot(t, -10.0, 10.0, 51)))(TARGETS)
    np.testing.assert_allclose(heads.two_hot(TARGETS, BINS), np.asarray(theirs).reshape(4, 3, 51), atol=1e-4)


@pytest.mark.parametrize("bins", [BINS, np.sort(np.random.default_rng(2).uniform(-10, 10, 30))], ids=len)
def test_the_categorical_projection_equals_rlax(bins):
    rng = np.random.default_rng(3)
    values = np.sort(rng.uniform(-12, 12, (5, 40)), -1).astype(np.float32)
    probs = rng.dirichlet(np.ones(40), 5).astype(np.float32)
    theirs = jax.vmap(lambda z, p: rlax.categorical_l2_project(z, p, jnp.asarray(bins, jnp.float32)))(
        values, probs
    )
    ours = jax.jit(lambda z, p: heads.categorical_l2_project(z, p, bins))(values, probs)
    np.testing.assert_allclose(ours, theirs, atol=5e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: jax.jit(lambda edges: heads.hl_gauss_probs(TARGETS, edges, 0.3))(jnp.linspace(-1, 1, 5)),
            TypeError,
            "edges must be known when a function is traced, not computed inside it",
        ),
        (
            lambda: heads.two_hot(TARGETS, np.zeros((3, 3))),
            ValueError,
            "bins must have one axis, not shape (3, 3)",
        ),
        (lambda: heads.hl_gauss_probs(TARGETS, EDGES, -0.3), ValueError, "sigma must be positive, not -0.3"),
        (
            lambda: heads.hl_gauss_probs(TARGETS, EDGES[::-1], 0.3),
            ValueError,
            "vmin (10.0) must be below vmax (-10.0)",
        ),
        (
            lambda: heads.categorical_l2_project(np.zeros((2, 5)), np.zeros((3, 5)), BINS),
            ValueError,
            "values of shape (2, 5) do not match probs of shape (3, 5)",
        ),
        (lambda: heads.one_hot(np.array(["a"]), EDGES), TypeError, "scalars must be real, not <U1"),
    ],
)
@pytest.mark.untyped
def test_impossible_arguments_are_refused(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


def test_td_losses_are_the_same_under_shard_map():
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("batch")
    for name, options in (("hlgauss", {}), ("c51", {}), ("hlgauss", {"bin_transform": "symlog"})):
        head = heads.make(name, vmin=-3, vmax=3, num_bins=51, **options)

        def td(outputs, rewards, head=head):
            return head.td_loss(outputs, head.td_target(outputs, rewards, 0.9 + 0 * rewards))

        sharded = jax.shard_map(td, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
        np.testing.assert_allclose(jax.jit(sharded)(LOGITS, TARGETS), jax.jit(td)(LOGITS, TARGETS), rtol=1e-6)
