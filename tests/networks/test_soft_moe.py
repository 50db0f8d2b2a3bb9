"""SoftMoE against its equations written with loops, and the networks around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import networks
from rlcls.networks.impala import encode

ATARI = (4, 84, 84)


def by_loops(params, tokens):
    """The equations of Puigcerver et al. 2023 with loops over single elements, in float64."""
    phi, scale = np.float64(params["phi"]), float(params["scale"])
    first, first_bias, second, second_bias = (
        np.float64(params["experts"][name]) for name in ("first", "first_bias", "second", "second_bias")
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


def soft_moe(num_tokens, size, num_experts, **options):
    """A function that makes a SoftMoE."""
    return lambda: networks.SoftMoE(
        num_tokens, size, num_experts=num_experts, hidden=7, rngs=nnx.Rngs(0), **options
    )


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(1, 1), (1, 8), (6, 1), (6, 4), (7, 3)])
def test_a_soft_moe_equals_its_equations(num_tokens, num_experts, drawn):
    make = soft_moe(num_tokens, 5, num_experts)
    apply = jax.jit(drawn(make)[0], static_argnames="train")
    for seed in range(10):
        _, params, _ = drawn(make, seed)
        params["scale"] *= 4
        tokens = np.random.default_rng(seed).normal(0, 10.0 ** (seed - 5), (2, num_tokens, 5))
        tokens = tokens.astype(np.float32)
        expected = by_loops(params, tokens)
        outputs, *_ = apply(params, {}, tokens, train=True)
        np.testing.assert_allclose(outputs, expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("tokens", "num_experts", "slots"), [(121, 8, 16), (1, 8, 1), (121, 1, 121)])
def test_slots_are_tokens_over_experts_rounded_up(tokens, num_experts, slots):
    assert nnx.eval_shape(soft_moe(tokens, 32, num_experts)).phi.shape == (32, num_experts, slots)


@pytest.fixture(scope="module")
def layer():
    return soft_moe(6, 4, 2)()


def test_experts_are_initialised_like_dense_layers_and_differ(layer):
    assert float(layer.scale[...]) == 1 and (layer.experts.first_bias[...] == 0).all()
    limit = np.sqrt(6 / (4 + 7))
    for weights in (layer.experts.first[...], layer.experts.second[...]):
        assert 0.8 * limit < np.abs(weights).max() < limit
        assert not np.allclose(weights[0], weights[1])


def test_the_routing_does_not_depend_on_the_length_of_tokens(layer):
    tokens = jax.random.normal(jax.random.key(0), (1, 6, 4)) + 1
    for one, other in zip(layer.routing(tokens), layer.routing(tokens * 100), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_weights_sum_to_one_over_tokens_and_over_slots(layer):
    dispatch, combine = layer.routing(jax.random.normal(jax.random.key(0), (2, 6, 4)))
    np.testing.assert_allclose(dispatch.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(combine.sum(axis=(2, 3)), 1, atol=1e-6)


def test_random_slots_are_state_and_not_parameters(drawn):
    apply, params, state = drawn(soft_moe(5, 4, 2, learned_slots=False))
    learned, every, nothing = drawn(soft_moe(5, 4, 2))
    assert "phi" not in params and set(every) == {"phi", *params} and nothing == {}
    tokens = jnp.linspace(-1, 1, 20).reshape(1, 5, 4)
    outputs, after, _ = apply(params, state, tokens, train=True)
    np.testing.assert_array_equal(after["phi"], state["phi"])
    np.testing.assert_array_equal(outputs, learned(params | state, {}, tokens, train=True)[0])


def test_captured_similarities_show_a_collapse(drawn):
    apply, params, state = drawn(soft_moe(6, 4, 2))
    tokens = jax.random.normal(jax.random.key(1), (3, 6, 4))
    layer = soft_moe(6, 4, 2)()
    layer.phi[...], layer.scale[...] = params["phi"], params["scale"]
    dispatch, combine = (np.asarray(weights).reshape(3, 6, 6) for weights in layer.routing(tokens))
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
    alone = drawn(soft_moe(1, 4, 1))
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


def test_the_dense_control_with_the_width_of_impala_is_impala(drawn):
    observations = np.random.default_rng(0).integers(0, 256, (2, 2, 20, 21), dtype=np.uint8)
    _, control, _ = drawn(lambda: networks.IMPALATokens((2, 20, 21), penultimate="dense", rngs=nnx.Rngs(0)))
    apply, impala, _ = drawn(lambda: networks.IMPALA((2, 20, 21), rngs=nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, control["stacks"]) == jax.tree.map(jnp.shape, impala["stacks"])
    features, *_ = jax.jit(apply, static_argnames="train")(
        {"stacks": control["stacks"], "dense": control["layer"]}, {}, observations, train=False
    )
    apply, *_ = drawn(lambda: networks.IMPALATokens((2, 20, 21), penultimate="dense", rngs=nnx.Rngs(0)))
    same, *_ = jax.jit(apply, static_argnames="train")(control, {}, observations, train=False)
    np.testing.assert_array_equal(same, features)


@pytest.mark.parametrize("penultimate", ["per_token", "average"])
def test_the_other_controls_equal_their_definitions(penultimate, drawn):
    make = lambda: networks.IMPALATokens(  # noqa: E731
        (2, 16, 24), penultimate=penultimate, hidden=7, rngs=nnx.Rngs(0)
    )
    apply, params, _ = drawn(make)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 24), dtype=np.uint8)
    quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    features = quick(lambda params: apply(params, {}, pictures, train=False)[0])(params)
    graphdef, _, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    nhwc = jnp.moveaxis(jnp.asarray(pictures), 1, -1).astype(jnp.float32) / 255
    encoded = quick(lambda params: encode(nnx.merge(graphdef, params, rest), nhwc))
    tokens = np.float64(encoded(params)).reshape(2, 6, 32)
    layer = jax.tree.map(np.float64, params["layer"])
    if penultimate == "average":
        expected = np.maximum(tokens.mean(axis=1) @ layer["kernel"] + layer["bias"], 0)
    else:
        hidden = np.maximum(tokens @ layer["first"][0] + layer["first_bias"], 0)
        expected = (hidden @ layer["second"][0] + layer["second_bias"]).reshape(2, -1)
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("tokens", ["per_conv", "per_feat", "per_samp"])
def test_tokens_are_positions_channels_or_samples(tokens):
    make = lambda: networks.IMPALATokens((2, 16, 24), tokens=tokens, rngs=nnx.Rngs(0))  # noqa: E731
    network = nnx.eval_shape(make)
    encoded = np.arange(2 * 2 * 3 * 32, dtype=np.float32).reshape(2, 2, 3, 32)  # 2 x 3 positions, 32 channels
    found = np.asarray(network._tokenise(jnp.asarray(encoded)))
    if tokens == "per_conv":
        np.testing.assert_array_equal(found[1, 4], encoded[1, 1, 1])
    elif tokens == "per_feat":
        np.testing.assert_array_equal(found[1, 7], encoded[1, :, :, 7].ravel())
    else:
        np.testing.assert_array_equal(found[1, 0], encoded[1].ravel())
    apply, *variables = networks.functional(network)
    pictures = jax.ShapeDtypeStruct((2, 2, 16, 24), jnp.uint8)
    features, *_ = jax.eval_shape(lambda inputs: apply(*inputs, train=False), (*variables, pictures))
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
