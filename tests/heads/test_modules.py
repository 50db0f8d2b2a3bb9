"""The last layer as a module of each framework."""

import subprocess
import sys
import types

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from rlcls import heads

HEAD = heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51)
FEATURES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
FRAMEWORKS = ("nnx", "linen", "haiku")
every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)
dueling_or_not = pytest.mark.parametrize("dueling", [False, True])


def make(framework, module, *arguments, seed=0, features=FEATURES, **options):
    """`apply(weights, features)` and the initial `weights`, {layer: {"kernel", "bias"}}, in any framework."""
    if framework == "nnx":
        made = getattr(heads.nnx, module)(
            arguments[0], features.shape[-1], *arguments[1:], **options, rngs=nnx.Rngs(seed)
        )
        graph, state = nnx.split(made)
        return types.SimpleNamespace(
            weights=nnx.to_pure_dict(state),
            apply=lambda weights, x: nnx.merge(graph, _replaced(state, weights))(x),
        )
    if framework == "linen":
        made = getattr(heads.linen, module)(*arguments, **options)
        return types.SimpleNamespace(
            weights=made.init(jax.random.key(seed), features)["params"],
            apply=lambda weights, x: made.apply({"params": weights}, x),
        )
    made = hk.without_apply_rng(
        hk.transform(lambda x: getattr(heads.haiku, module)(*arguments, **options, name="head")(x))
    )
    return types.SimpleNamespace(
        weights={
            name.removeprefix("head/"): {"kernel": layer["w"], "bias": layer["b"]}
            for name, layer in made.init(jax.random.key(seed), features).items()
        },
        apply=lambda weights, x: made.apply(
            {f"head/{name}": {"w": w["kernel"], "b": w["bias"]} for name, w in weights.items()}, x
        ),
    )


def _replaced(state, weights):
    nnx.replace_by_pure_dict(state, weights)
    return state


@dueling_or_not
@pytest.mark.parametrize("head", [HEAD, heads.MSE()], ids=lambda head: head.name)
def test_equal_weights_give_equal_outputs_in_every_framework(head, dueling):
    made = [make(name, "QHead", head, 3, dueling=dueling) for name in FRAMEWORKS]
    random = np.random.default_rng(1)
    weights = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), made[0].weights
    )
    for other in made[1:]:
        assert jax.tree.map(jnp.shape, other.weights) == jax.tree.map(jnp.shape, weights)
    outputs = [each.apply(weights, FEATURES) for each in made]
    assert outputs[0].shape == (2, 5, 3, head.num_outputs)
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(outputs[2], outputs[0], rtol=1e-6, atol=1e-5)


def test_equal_weights_give_equal_values_of_a_state_in_every_framework():
    made = [make(name, "ValueHead", HEAD) for name in FRAMEWORKS]
    outputs = [each.apply(made[0].weights, FEATURES) for each in made]
    assert outputs[0].shape == (2, 5, 51)
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)
    np.testing.assert_allclose(outputs[2], outputs[0], atol=1e-5)


@every_framework
@dueling_or_not
def test_outputs_for_every_action_and_any_leading_dimensions(framework, dueling):
    made = make(framework, "QHead", HEAD, 3, dueling=dueling)
    assert made.apply(made.weights, FEATURES[0, 0]).shape == (3, 51)
    with jax.numpy_rank_promotion("allow"):
        mapped = jax.vmap(lambda x: made.apply(made.weights, x))(FEATURES)
    np.testing.assert_allclose(mapped, made.apply(made.weights, FEATURES), atol=1e-5)


@every_framework
@dueling_or_not
@pytest.mark.parametrize("bias_slope", [0.0, 0.2])
def test_a_head_initialised_with_zeros_has_value_exactly_zero(framework, dueling, bias_slope):
    options = {"init_scale": 0.0, "bias_slope": bias_slope}
    q_head = make(framework, "QHead", HEAD, 3, dueling=dueling, **options)
    value_head = make(framework, "ValueHead", HEAD, **options)
    np.testing.assert_array_equal(HEAD.value(q_head.apply(q_head.weights, FEATURES)), np.zeros((2, 5, 3)))
    np.testing.assert_array_equal(
        HEAD.value(value_head.apply(value_head.weights, FEATURES)), np.zeros((2, 5))
    )


@every_framework
@dueling_or_not
def test_a_bias_slope_puts_the_first_predictions_near_zero(framework, dueling):
    support = heads.Support.uniform(-15, 25, 80)
    head = heads.HLGauss(support)
    flat, sloped = (
        make(framework, "QHead", head, 3, dueling=dueling, init_scale=0.0, bias_slope=slope)
        for slope in (0.0, 2.0)
    )
    probs = head.probs(sloped.apply(sloped.weights, FEATURES))
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    near = np.abs(support.centers) < 3
    assert (probs[..., near].sum(-1) > 0.99).all()
    np.testing.assert_allclose(head.value(flat.apply(flat.weights, FEATURES)), 5, atol=1e-5)
    np.testing.assert_allclose(head.value(sloped.apply(sloped.weights, FEATURES)), 0, atol=0.01)


@pytest.mark.parametrize("transform", ["scalar_transform", "bin_transform"])
def test_a_bias_slope_counts_squashed_units(transform):
    support = heads.Support.uniform(-20, 20, 255, on="centers", **{transform: "symlog"})
    bias = make("nnx", "ValueHead", heads.TwoHot(support), bias_slope=0.2).weights["state"]["bias"]
    np.testing.assert_allclose(bias, -0.2 * np.abs(np.linspace(-20, 20, 255)), atol=1e-5)


@every_framework
def test_a_head_without_bins_starts_without_bias(framework):
    made = make(framework, "QHead", heads.MSE(), 3, bias_slope=0.2)
    np.testing.assert_array_equal(made.weights["advantage"]["bias"], 0)


@every_framework
def test_the_mean_of_a_dueling_head_over_actions_is_the_state_output(framework):
    made = make(framework, "QHead", HEAD, 3, dueling=True, bias_slope=0.2)
    outputs = made.apply(made.weights, FEATURES)
    state, advantage = (FEATURES @ made.weights[name]["kernel"] for name in ("state", "advantage"))
    np.testing.assert_allclose(outputs.mean(-2), state + made.weights["state"]["bias"], atol=1e-5)
    advantage = advantage.reshape(2, 5, 3, 51)
    difference = outputs[..., 0, :] - outputs[..., 1, :]
    np.testing.assert_allclose(difference, advantage[..., 0, :] - advantage[..., 1, :], atol=1e-5)


@every_framework
def test_weights_are_drawn_within_dopamine_s_bound(framework):
    made = make(framework, "QHead", HEAD, 18, features=jnp.zeros((1, 512)))
    kernel, bound = made.weights["advantage"]["kernel"], np.sqrt(3 / np.sqrt(3) / 512)
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_array_equal(made.weights["advantage"]["bias"], 0)


def test_a_linen_module_is_hashable_and_traces_as_a_static_argument():
    module = heads.linen.QHead(HEAD, 3)
    assert isinstance(module, linen.Module) and hash(module) == hash(heads.linen.QHead(HEAD, 3))


@every_framework
@pytest.mark.untyped
def test_impossible_sizes_are_refused(framework):
    for arguments, options, message in (
        ((0,), {}, "num_actions must be at least 1, not 0"),
        ((2,), {"init_scale": -1.0}, "init_scale must not be negative, not -1.0"),
        ((2,), {"bias_slope": -0.2}, "bias_slope must not be negative, not -0.2"),
    ):
        with pytest.raises(ValueError, match=message):
            make(framework, "QHead", HEAD, *arguments, **options)
    for arguments, options, message in (
        ((HEAD, 2.0), {}, "num_actions must be an integer, not 2.0"),
        ((HEAD, 2), {"bias_slope": "steep"}, "bias_slope must be a number, not 'steep'"),
        (("hlgauss", 2), {}, "head must be a heads.Head, such as heads.make gives, not 'hlgauss'"),
    ):
        with pytest.raises(TypeError, match=message):
            make(framework, "QHead", *arguments, **options)


@pytest.mark.parametrize(("framework", "other"), [("haiku", "rlax"), ("linen", "haiku"), ("nnx", "haiku")])
def test_a_framework_is_imported_alone_and_at_its_first_use(framework, other, pytestconfig):
    program = f"""
import sys
from rlcls import heads
assert "flax" not in sys.modules and "haiku" not in sys.modules
heads.{framework}.QHead, heads.{framework}.ValueHead
assert {other!r} not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=pytestconfig.rootpath, check=True)
