"""SoftMoE against its equations written with loops, and the networks around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import networks

ATARI = (4, 84, 84)


def by_loops(layer, tokens):
    """Puigcerver et al. 2023: dispatch, experts, combine; in float64, an element at a time."""
    phi, scale = np.float64(layer.phi[...]), float(layer.scale[...])
    first, first_bias, second, second_bias = (
        np.float64(getattr(layer.experts, name)[...])
        for name in ("first", "first_bias", "second", "second_bias")
    )
    size, num_experts, slots = phi.shape
    phi = phi.reshape(size, -1)
    outputs = np.zeros(tokens.shape)
    for row, x in enumerate(np.float64(tokens)):
        logits = np.zeros((len(x), num_experts * slots))
        for i, token in enumerate(x):
            for j, slot in enumerate(phi.T):
                lengths = np.sqrt((token @ token + 1e-6) * (slot @ slot + 1e-6))
                logits[i, j] = scale * (token @ slot) / lengths
        results = []
        for j in range(num_experts * slots):
            weights = np.exp(logits[:, j]) / sum(np.exp(logits[i, j]) for i in range(len(x)))
            slot = sum(weight * token for weight, token in zip(weights, x, strict=True))
            expert = j // slots
            hidden = np.maximum(slot @ first[expert] + first_bias[expert], 0)
            results.append(hidden @ second[expert] + second_bias[expert])
        for i in range(len(x)):
            weights = np.exp(logits[i]) / sum(np.exp(logits[i, j]) for j in range(len(results)))
            outputs[row, i] = sum(weight * result for weight, result in zip(weights, results, strict=True))
    return outputs


def soft_moe(num_tokens, size, num_experts, seed=0, **options):
    make = lambda: networks.SoftMoE(  # noqa: E731
        num_tokens, size, num_experts=num_experts, hidden=7, rngs=nnx.Rngs(seed), **options
    )
    layer = nnx.jit(make)()
    # Biases and a scale that are not the neutral ones they start as.
    random = np.random.default_rng(seed)
    for parameter in (layer.experts.first_bias, layer.experts.second_bias):
        parameter[...] = jnp.asarray(random.normal(size=parameter.shape), jnp.float32)
    layer.scale[...] = jnp.asarray(random.uniform(0.5, 5), jnp.float32)
    return layer


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(1, 1), (1, 8), (6, 1), (6, 4), (7, 3)])
def test_it_is_the_three_equations(num_tokens, num_experts):
    forward = nnx.jit(lambda layer, tokens: layer(tokens))
    for seed in range(10):
        layer = soft_moe(num_tokens, 5, num_experts, seed)
        tokens = np.random.default_rng(seed).normal(0, 10.0 ** (seed - 5), (2, num_tokens, 5))
        tokens = tokens.astype(np.float32)
        expected = by_loops(layer, tokens)
        np.testing.assert_allclose(
            forward(layer, tokens), expected, atol=1e-5 * max(1, np.abs(expected).max())
        )


def test_slots_are_tokens_over_experts_rounded_up():
    assert soft_moe(121, 32, 8).phi.shape == (32, 8, 16)
    assert soft_moe(1, 32, 8).phi.shape == (32, 8, 1)
    assert soft_moe(121, 32, 1).phi.shape == (32, 1, 121)


def test_the_routing_does_not_depend_on_the_length_of_tokens():
    layer, tokens = soft_moe(5, 4, 2), jax.random.normal(jax.random.key(0), (1, 5, 4)) + 1
    for one, other in zip(layer.routing(tokens), layer.routing(tokens * 100), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_weights_sum_to_one_over_tokens_and_over_slots():
    dispatch, combine = soft_moe(5, 4, 3).routing(jax.random.normal(jax.random.key(0), (2, 5, 4)))
    np.testing.assert_allclose(dispatch.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(combine.sum(axis=(2, 3)), 1, atol=1e-6)


def test_random_slots_are_state_and_no_parameter():
    apply, params, state = networks.functional(soft_moe(5, 4, 2, learned_slots=False))
    assert "phi" not in params and state["phi"].shape == (4, 2, 3)
    learned = networks.functional(soft_moe(5, 4, 2))
    np.testing.assert_array_equal(learned[1]["phi"], state["phi"])
    assert learned[2] == {}
    tokens = jnp.linspace(-1, 1, 20).reshape(1, 5, 4)
    outputs, after, _ = apply(params, state, tokens, train=True)
    np.testing.assert_array_equal(after["phi"], state["phi"])
    np.testing.assert_array_equal(outputs, learned[0](learned[1], {}, tokens, train=True)[0])


def test_what_is_captured_tells_a_collapse():
    layer, tokens = soft_moe(6, 4, 2), jax.random.normal(jax.random.key(1), (3, 6, 4))
    dispatch, combine = (np.asarray(weights).reshape(3, 6, 6) for weights in layer.routing(tokens))
    apply, params, state = networks.functional(layer)
    assert apply(params, state, tokens, train=False)[2] == {}
    captured = apply(params, state, tokens, train=False, capture=True)[2]
    for name, rows in {"dispatch": dispatch.swapaxes(1, 2), "combine": combine}.items():
        pairs = [
            one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            for sample in rows
            for i, one in enumerate(sample)
            for j, other in enumerate(sample)
            if i != j
        ]
        (mean,), (largest,) = captured[f"{name}_similarity_mean"], captured[f"{name}_similarity_max"]
        np.testing.assert_allclose([mean, largest], [np.mean(pairs), np.max(pairs)], atol=1e-5)
        np.testing.assert_allclose(captured[f"{name}_weight_max"][0], rows.max(axis=-1).mean(), atol=1e-6)
    same = params | {"phi": jnp.ones_like(params["phi"])}
    collapsed = apply(same, state, tokens, train=False, capture=True)[2]
    assert collapsed["dispatch_similarity_mean"][0] == pytest.approx(1, abs=1e-5)
    alone = networks.functional(soft_moe(1, 4, 1))
    shown = alone[0](*alone[1:], tokens[:, :1], train=False, capture=True)[2]
    assert shown["dispatch_similarity_mean"] == shown["combine_similarity_max"] == (1.0,)


def parameters(**options):
    make = lambda: networks.IMPALATokens(ATARI, rngs=nnx.Rngs(0), **options)  # noqa: E731
    return nnx.eval_shape(make), nnx.state(nnx.eval_shape(make), nnx.Param)


STACKS = sum(
    (inputs * 9 + 1) * outputs + 4 * (outputs * 9 + 1) * outputs
    for inputs, outputs in ((4, 16), (16, 32), (32, 32))
)


def expert(size, hidden=512):
    return size * hidden + hidden + hidden * size + size


@pytest.mark.parametrize(
    ("options", "features", "layer"),
    [
        ({"num_experts": 8}, 3872, 8 * 33_312 + 32 * 8 * 16 + 1),
        ({"num_experts": 1}, 3872, 33_312 + 32 * 121 + 1),
        ({"num_experts": 8, "learned_slots": False}, 3872, 8 * 33_312 + 1),
        ({"tokens": "per_feat"}, 3872, 4 * expert(121) + 121 * 4 * 8 + 1),
        ({"tokens": "per_samp"}, 3872, 4 * expert(3872) + 3872 * 4 + 1),
        ({"penultimate": "per_token"}, 3872, 33_312),
        ({"penultimate": "average"}, 512, 33 * 512),
        ({"penultimate": "dense", "hidden": 4096}, 4096, 3873 * 4096),
    ],
)
def test_parameters_of_the_placements_and_controls(options, features, layer):
    network, params = parameters(**options)
    assert network.num_features == features
    assert networks.count_parameters(params) == STACKS + layer


@pytest.mark.parametrize("dense", [{"penultimate": "dense"}])
def test_the_dense_control_as_wide_as_impala_is_impala(dense):
    observations = np.random.default_rng(0).integers(0, 256, (2, 2, 20, 21), dtype=np.uint8)
    control, impala = (
        make((2, 20, 21), rngs=nnx.Rngs(0), **options)
        for make, options in ((networks.IMPALATokens, dense), (networks.IMPALA, {}))
    )
    forward = nnx.jit(lambda network, x: network(x))
    np.testing.assert_array_equal(forward(control, observations), forward(impala, observations))


@pytest.mark.parametrize("tokens", ["per_conv", "per_feat", "per_samp"])
def test_what_a_token_is(tokens):
    shape = (2, 16, 24)  # 2 x 3 positions, 32 channels
    network = networks.IMPALATokens(shape, tokens=tokens, num_experts=2, hidden=4, rngs=nnx.Rngs(0))
    encoded = np.arange(2 * 2 * 3 * 32, dtype=np.float32).reshape(2, 2, 3, 32)
    found = np.asarray(network._tokenise(jnp.asarray(encoded)))
    if tokens == "per_conv":
        np.testing.assert_array_equal(found[1, 4], encoded[1, 1, 1])
    elif tokens == "per_feat":
        np.testing.assert_array_equal(found[1, 7], encoded[1, :, :, 7].ravel())
    else:
        np.testing.assert_array_equal(found[1, 0], encoded[1].ravel())
    features = jax.jit(lambda x: network(x))(np.zeros((2, *shape), np.uint8))
    assert features.shape == (2, network.num_features) and features.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tokens": "per_pixel"},
            "tokens must be one of per_conv, per_feat, per_samp, not per_pixel",
        ),
        (
            {"penultimate": "moe"},
            "penultimate must be one of soft_moe, per_token, average, dense, not moe",
        ),
        ({"num_experts": 0}, "num_experts must be a positive integer, not 0"),
        ({"hidden": 1.5}, "hidden must be a positive integer, not 1.5"),
        ({"dtype": "bf16"}, "dtype must be float32 or bfloat16, not 'bf16'"),
    ],
)
@pytest.mark.untyped
def test_an_option_out_of_range_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError) as raised:
        networks.IMPALATokens(ATARI, rngs=nnx.Rngs(0), **options)
    assert str(raised.value) == message
