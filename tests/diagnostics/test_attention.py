"""The entropy of attention against NumPy, and its lower bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcls import diagnostics

entropy = jax.jit(diagnostics.attention_entropy, static_argnames=("causal", "scale"))
bound = jax.jit(diagnostics.attention_entropy_bound)


def oracle_entropy(queries, keys, causal, scale):
    """The entropy [B, H, T], with loops in float64."""
    batch, length, heads, _ = queries.shape
    found = np.zeros((batch, heads, length))
    for b, h, t in np.ndindex(batch, heads, length):
        last = t + 1 if causal else None
        logits = keys[b, :last, h].astype(np.float64) @ queries[b, t, h].astype(np.float64) * scale
        found[b, h, t] = scipy.stats.entropy(scipy.special.softmax(logits))
    return found


@given(
    causal=st.booleans(),
    size=st.sampled_from([0.01, 1.0, 4.0, 30.0]),
    scale=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_the_entropy_is_that_of_the_softmax(causal, size, scale, seed):
    random = np.random.default_rng(seed)
    queries, keys = (size * random.normal(size=(2, 2, 6, 3, 4))).astype(np.float32)
    found = entropy(queries, keys, causal=causal, scale=scale)
    exact = oracle_entropy(queries, keys, causal, 4**-0.5 if scale is None else scale)
    np.testing.assert_allclose(found, exact, rtol=2e-4, atol=2e-5)
    most = np.log(np.arange(1, 7) if causal else 6)
    assert (np.asarray(found) >= 0).all() and (found <= most + 1e-5).all()


@pytest.mark.parametrize("causal", [False, True])
def test_equal_keys_have_the_entropy_of_a_uniform_distribution(causal):
    queries, keys = np.ones((2, 5, 1, 3), np.float32), np.full((2, 5, 1, 3), 2, np.float32)
    most = np.log(np.arange(1, 6) if causal else np.full(5, 5))
    np.testing.assert_allclose(entropy(queries, keys, causal=causal)[1, 0], most, rtol=1e-6, atol=1e-7)


def test_the_entropy_is_zero_and_not_nan_if_one_key_dominates():
    queries, keys = np.full((4, 1, 2), 1e4, np.float32), np.zeros((3, 1, 2), np.float32)
    keys[1] = 1e4
    np.testing.assert_array_equal(entropy(queries, keys), np.zeros((1, 4)))


def test_queries_and_keys_may_differ_in_number_and_lead_with_any_dimensions():
    random = np.random.default_rng(0)
    queries, keys = random.normal(size=(2, 3, 4, 1, 5)), random.normal(size=(2, 3, 7, 1, 5))
    found = entropy(np.float32(queries), np.float32(keys))
    assert found.shape == (2, 3, 1, 4)
    np.testing.assert_allclose(
        found[1], oracle_entropy(queries[1], keys[1], False, 5**-0.5), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("causal", [False, True])
@given(
    length=st.sampled_from([1, 2, 5, 16]),
    spread=st.floats(0.05, 1.5),
    width=st.sampled_from([3, 8]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_no_entropy_is_below_the_bound_from_spectral_norms(causal, length, spread, width, seed):
    random = np.random.default_rng(seed)
    tokens = random.normal(size=(length, width))
    query_weights, key_weights = spread * random.normal(size=(2, width, 4))
    queries, keys = (tokens @ query_weights)[:, None], (tokens @ key_weights)[:, None]
    norm = np.linalg.norm(query_weights @ key_weights.T, 2) * np.linalg.norm(tokens, 2) ** 2 * 4**-0.5
    found = np.asarray(entropy(np.float32(queries), np.float32(keys), causal=causal))[0]
    num_keys = np.arange(1, length + 1) if causal else np.full(length, length)
    least = np.asarray(bound(np.float32(norm), num_keys))
    assert (found >= least - 1e-5).all()
    # The bound also holds for the smaller norm of the query's own logits minus their mean, where it is higher.
    for t, keys_seen in enumerate(num_keys):
        logits = (queries[t] @ keys[:keys_seen, 0].T)[0] * 4**-0.5
        own = bound(np.float32(np.linalg.norm(logits - logits.mean())), keys_seen)
        assert least[t] - 1e-5 <= own <= found[t] + 1e-5


@given(norm=st.floats(0, 20), num_keys=st.integers(2, 100))
def test_the_bound_is_reached_by_one_logit_above_equal_others(norm, num_keys):
    logits = np.full(num_keys, -1 / (num_keys - 1))
    logits[0] = 1
    logits *= norm / np.linalg.norm(logits)
    least = scipy.stats.entropy(scipy.special.softmax(logits))
    np.testing.assert_allclose(bound(norm, num_keys), least, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "least"), [(0, np.log(64)), (2, 4.0411), (5, 1.8026), (10, 0.0292), (1e6, 0)]
)
def test_the_bound_falls_from_log_n_to_zero_as_the_norm_grows(norm, least):
    np.testing.assert_allclose(bound(norm, 64), least, atol=5e-5)


def test_the_bound_of_a_single_key_is_zero():
    np.testing.assert_array_equal(bound(np.float32([0, 3]), 1), [0, 0])


def test_sown_scalars_are_averaged_by_name():
    sown = {
        "first": {"overlap": (jnp.float32(1), jnp.float32(2)), "map": (jnp.ones((2, 3)),)},
        "second": {"inner": {"overlap": (jnp.float32(6),), "largest": (jnp.bfloat16(0.5),)}},
    }
    found = diagnostics.shown(sown)
    assert {name: float(value) for name, value in found.items()} == {"overlap": 3, "largest": 0.5}
    assert diagnostics.shown({}) == {}


def test_the_dormant_ratio_is_over_the_units_of_all_layers():
    layers = {"first": {"activity": (jnp.array([0.0, 0.09, 1.0, 3.0]), jnp.zeros(1))}}
    found = diagnostics.shown(layers | {"second": {"activity": (jnp.array([10.0, 20.0, 30.0]),)}})
    assert found.keys() == {"dormant_ratio"} and found["dormant_ratio"] == 3 / 8


@pytest.mark.parametrize("causal", [False, True])
def test_attention_entropy_is_the_mean_and_the_lowest_of_the_heads(causal):
    uniform, sure = np.zeros((2, 4, 1, 3), np.float32), np.float32(50 * np.ones((2, 4, 1, 3)))
    keys = np.float32(np.arange(24).reshape(2, 4, 1, 3))
    layers = {0: {"queries": (uniform,), "keys": (keys,)}, 1: {"queries": (sure,), "keys": (keys,)}}
    found = diagnostics.shown({"layers": layers}, causal=causal)
    most = np.log(np.arange(1, 5)).mean() if causal else np.log(4)
    assert found.keys() == {"attention_entropy", "attention_entropy_least"}
    np.testing.assert_allclose(found["attention_entropy"], most / 2, rtol=1e-6)
    np.testing.assert_allclose(found["attention_entropy_least"], 0, atol=1e-6)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("queries", "keys", "causal", "message"),
    [
        ((3, 1, 2), (4, 1, 2), True, "causal attention needs as many queries as keys, not 3 and 4"),
        (
            (3, 1, 2),
            (3, 1, 3),
            False,
            r"queries and keys must have shapes .*, not \(3, 1, 2\) and \(3, 1, 3\)",
        ),
        ((3, 1, 2), (2, 3, 1, 2), False, "queries and keys must have shapes"),
        ((3, 2), (3, 2), False, "queries and keys must have shapes"),
    ],
)
def test_mistakes_are_named(queries, keys, causal, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.attention_entropy(np.ones(queries), np.ones(keys), causal=causal)
