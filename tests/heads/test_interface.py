"""Facts that hold for every head."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls import heads

QUICK = {"xla_backend_optimization_level": 0}  # every compiled program runs a few times
RANGE = {"vmin": -10, "vmax": 10, "num_bins": 51}
ALL_HEADS = [
    heads.make("mse"),
    heads.make("huber", delta=2.0),
    heads.make("two_hot", **RANGE),
    heads.make("hlgauss", **RANGE),
    heads.make(
        "hlgauss", vmin=-10, vmax=10, num_bins=101
    ),  # a CPU uses another implementation from 65 bins on
    heads.make("hlgauss", vmin=-3, vmax=8, num_bins=20, sigma_ratio=2.0, on="centers"),
    heads.make("c51", **RANGE),
    heads.make("mse_softmax", **RANGE),
    heads.make("one_hot", **RANGE),
    heads.make("bce", vmin=-10, vmax=10),
    heads.make("quantile", num_quantiles=7),
    heads.make("hlgauss", **RANGE, sigma=0.5, criterion="ordinal"),
    heads.make("two_hot", **RANGE, criterion="generalised", q=0.5),
    heads.make("c51", **RANGE, label_smoothing=0.1),
    heads.make("c51", vmin=-3, vmax=3, num_bins=41, scalar_transform="signed_hyperbolic"),
    heads.make("hlgauss", vmin=-3, vmax=3, num_bins=41, scalar_transform="symlog"),
    heads.make("hlgauss", vmin=-3, vmax=3, num_bins=41, bin_transform="symlog"),
    heads.make("two_hot", vmin=-3, vmax=3, num_bins=41, bin_transform="arcsinh"),
    heads.make("hlgauss", points=[-10.0, -3, -1, 0, 1, 4, 10], sigma=1.0),
    heads.make("one_hot", points=[-10.0, -3, -1, 0, 1, 4, 10]),
]
CATEGORICAL = [head for head in ALL_HEADS if isinstance(head, heads.CategoricalHead)]
every_head = pytest.mark.parametrize(
    "head", ALL_HEADS, ids=lambda head: "-".join(map(str, head.to_dict().values()))
)


def batch(head, shape=(8, 8), seed=0):
    rng = np.random.default_rng(seed)
    outputs, next_outputs = (
        jnp.asarray(rng.normal(size=(*shape, head.num_outputs)), jnp.float32) for _ in range(2)
    )
    rewards = jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
    discounts = jnp.asarray(rng.choice([0, 0.99], shape), jnp.float32)
    return outputs, next_outputs, rewards, discounts


def everything(head, outputs, next_outputs, rewards, discounts):
    target = head.td_target(next_outputs, rewards, discounts)
    results = {
        "value": head.value(outputs),
        "loss": head.loss(outputs, rewards),
        "divergence": head.divergence(outputs, rewards),
        "td_loss": head.td_loss(outputs, target),
        "td_divergence": head.td_divergence(outputs, target),
    }
    if isinstance(head, heads.CategoricalHead):
        probs, log_probs, results["variance"] = (
            f(outputs) for f in (head.probs, head.log_probs, head.variance)
        )
        results |= {
            "decode": head.decode(probs),
            "variance": head.variance(outputs),
            "entropy": -(probs * log_probs).sum(-1),
        }
        results |= {"decode_encode": head.decode(head.encode(rewards))}
    return results


compute = jax.jit(everything, static_argnums=0, compiler_options=QUICK)


@every_head
def test_any_leading_dimensions_under_jit_vmap_and_strict_ranks(head):
    arguments, one = batch(head), functools.partial(everything, head)
    with jax.numpy_rank_promotion("raise"):
        shapes = jax.eval_shape(one, *arguments)
        mapped = jax.jit(jax.vmap(jax.vmap(one)), compiler_options=QUICK)(*arguments)
    assert {key: x.shape for key, x in shapes.items()} == dict.fromkeys(mapped, (8, 8))
    chex.assert_trees_all_close(compute(head, *arguments), mapped, atol=2e-6)


@every_head
def test_gradients_and_targets_are_traced_under_strict_ranks(head):
    outputs, next_outputs, rewards, discounts = batch(head, (2, 3))

    def loss(outputs):
        target = head.td_target(next_outputs, rewards, discounts)
        return (head.td_loss(outputs, target) + head.loss(outputs, rewards)).sum(), head.clip_fraction(
            rewards
        )

    with jax.numpy_rank_promotion("raise"):
        gradient, share = jax.eval_shape(jax.grad(loss, has_aux=True), outputs)
    assert gradient.shape == outputs.shape and share.shape == ()


@every_head
def test_targets_get_no_gradient(head):
    outputs, next_outputs, rewards, discounts = batch(head)

    def loss(next_outputs, rewards):
        target = head.td_target(next_outputs, rewards, discounts)
        td = head.td_loss(outputs, target) + head.td_divergence(outputs, target)
        return (td + head.loss(outputs, rewards) + head.divergence(outputs, rewards)).sum()

    chex.assert_trees_all_equal(
        jax.jit(jax.grad(loss, (0, 1)), compiler_options=QUICK)(next_outputs, rewards),
        (jnp.zeros_like(next_outputs), jnp.zeros_like(rewards)),
    )


@every_head
def test_bfloat16_outputs_are_computed_on_in_float32(head):
    outputs, *rest = batch(head)
    outputs = outputs.astype(jnp.bfloat16)
    low = compute(head, outputs, *rest)
    high = compute(head, outputs.astype(jnp.float32), *rest)
    # The last bits differ, because XLA fuses the conversion and then contracts other operations.
    chex.assert_trees_all_close(low, high, rtol=1e-6, atol=1e-6)
    gradient = jax.eval_shape(jax.grad(lambda o: head.loss(o, rest[1]).sum()), outputs)
    assert gradient.dtype == jnp.bfloat16


@every_head
def test_float64_stays_float64(head):
    arguments = [np.asarray(x, np.float64) for x in batch(head)]
    with jax.enable_x64(True):
        results = compute(head, *map(jnp.asarray, arguments))
    assert {x.dtype for x in results.values()} == {np.dtype("float64")}
    single = compute(head, *(x.astype(np.float32) for x in arguments))
    chex.assert_trees_all_close(single, results, rtol=1e-5, atol=1e-5)


@every_head
def test_the_td_target_of_a_terminal_is_the_reward(head):
    outputs, next_outputs, rewards, _ = batch(head)
    results = compute(head, outputs, next_outputs, rewards, jnp.zeros_like(rewards))
    np.testing.assert_allclose(results["td_loss"], results["loss"], atol=2e-6)
    np.testing.assert_allclose(results["td_divergence"], results["divergence"], atol=2e-6)


@every_head
def test_a_divergence_is_not_negative_and_not_above_a_categorical_loss(head):
    results = compute(head, *batch(head))
    divergence, loss = results["td_divergence"], results["td_loss"]
    assert (divergence >= 0).all()
    if isinstance(head, heads.CategoricalHead) and head.name != "mse_softmax":
        assert (loss >= divergence - 1e-6).all()
    elif head.name in ("mse", "huber"):
        np.testing.assert_array_equal(np.argsort(loss, None), np.argsort(divergence, None))


@every_head
def test_a_perfect_prediction_has_no_divergence_and_no_gradient(head):
    scalars = jnp.array([0.3, -1.0, 2.0])
    if isinstance(head, heads.CategoricalHead):
        smoothing = getattr(head, "label_smoothing", 0)
        target = (1 - smoothing) * head.encode(np.asarray(scalars)) + smoothing / head.num_outputs
        outputs = np.log(np.maximum(target, 1e-30))
    elif head.name == "bce":
        outputs = jax.scipy.special.logit((scalars[:, None] - head.vmin) / (head.vmax - head.vmin))
    else:
        outputs = jnp.tile(scalars[:, None], head.num_outputs)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(outputs):
        return head.divergence(outputs, scalars), jax.grad(lambda o: head.loss(o, scalars).sum())(outputs)

    divergence, gradient = both(outputs)
    np.testing.assert_allclose(divergence, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@every_head
def test_a_head_is_a_static_argument_and_traces_once(head):
    chex.clear_trace_counter()

    @chex.assert_max_traces(1)
    def loss(head, outputs, rewards):
        return head.loss(outputs, rewards)

    jitted = jax.jit(loss, static_argnums=0)
    outputs, _, rewards, _ = batch(head)
    for _ in range(2):
        jitted(heads.make(**head.to_dict()), outputs, rewards)


@every_head
def test_a_head_is_made_again_from_its_dict(head):
    options = head.to_dict()
    assert options["name"] == head.name
    assert all(isinstance(x, (str, int, float, list)) for x in options.values())
    assert heads.make(**options) == head
    assert hash(heads.make(**options)) == hash(head)


@every_head
def test_the_whole_interface_is_documented(head):
    for name in ("value", "loss", "divergence", "clip_fraction", "td_target", "td_loss", "td_divergence"):
        assert inspect.getdoc(getattr(type(head), name))


@every_head
def test_nan_and_huge_scalars_affect_only_their_own_rows(head):
    outputs = batch(head, (4,))[0]
    scalars = jnp.array([0.5, jnp.nan, 1e30, -1e30])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(outputs):
        losses, pullback = jax.vjp(lambda o: head.loss(o, scalars), outputs)
        return losses, *pullback(jnp.ones(4))

    losses, gradient = both(outputs)
    assert np.isnan(losses[1]) and np.isfinite(losses[0])
    assert np.isnan(gradient[1]).any() and np.isfinite(gradient[jnp.array([0, 2, 3])]).all()
    if head.name != "mse":  # the square overflows
        assert np.isfinite(losses[2:]).all()


@pytest.mark.parametrize("head", CATEGORICAL, ids=lambda head: "-".join(map(str, head.to_dict().values())))
def test_numpy_in_is_numpy_out(head):
    k = head.num_outputs
    for dtype, kept in (
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.int64, np.float64),
    ):
        for shape in ((), (3,), (2, 3)):
            encoded = head.encode(np.zeros(shape, dtype))
            assert isinstance(encoded, np.ndarray) and encoded.dtype == kept and encoded.shape == (*shape, k)
            decoded = head.decode(encoded)
            assert isinstance(decoded, (np.ndarray, np.generic)) and decoded.dtype == kept
            assert decoded.shape == shape
    encoded = head.encode(np.zeros(2))
    np.testing.assert_array_equal(head.transform_to_probs(np.zeros(2)), encoded)
    np.testing.assert_array_equal(head.transform_from_probs(encoded), head.decode(encoded))


@pytest.mark.parametrize("head", CATEGORICAL, ids=lambda head: "-".join(map(str, head.to_dict().values())))
def test_every_encoding_is_a_distribution_that_moves_with_its_target(head):
    targets = np.sort(np.random.default_rng(0).uniform(-25, 25, 200))
    encoded = head.encode(np.r_[targets, 1e30, -1e30, np.inf, -np.inf])
    assert (encoded >= 0).all()
    np.testing.assert_allclose(encoded.sum(-1), 1, atol=1e-12)
    cumulative = np.cumsum(encoded[:200], -1)
    assert (np.diff(cumulative, axis=0) <= 1e-12).all()
    assert (np.diff(head.decode(encoded[:200])) >= -1e-9).all()


@pytest.mark.parametrize("head", CATEGORICAL, ids=lambda head: "-".join(map(str, head.to_dict().values())))
def test_the_variance_is_that_of_the_values_of_the_bins(head):
    outputs = np.random.default_rng(0).normal(size=(5, head.num_outputs)).astype(np.float32)
    probs = np.exp(outputs.astype(np.float64))
    probs /= probs.sum(-1, keepdims=True)
    values = head.support.values
    expected = probs @ values**2 - (probs @ values) ** 2
    np.testing.assert_allclose(head.variance(outputs), expected, rtol=1e-5)


def test_a_perfect_hl_gauss_prediction_has_the_variance_of_its_target():
    head = heads.make("hlgauss", **RANGE)
    outputs = np.log(np.maximum(head.encode(np.linspace(-1, 1, 9)), 1e-30))
    np.testing.assert_allclose(head.variance(outputs) / head.support.width**2, 0.75**2 + 1 / 12, rtol=1e-3)


@every_head
def test_float16_outputs_are_computed_on_in_float32(head):
    outputs, scalars = jax.ShapeDtypeStruct((4, head.num_outputs), jnp.float16), jnp.zeros(4)
    value_and_grad = jax.value_and_grad(lambda o: head.loss(o, scalars).sum())
    loss, gradient = jax.eval_shape(value_and_grad, outputs)
    assert loss.dtype == jax.eval_shape(head.value, outputs).dtype == jnp.float32
    assert gradient.dtype == jnp.float16


def test_different_heads_are_not_equal():
    assert len(set(ALL_HEADS)) == len(ALL_HEADS)
    assert heads.make("two_hot", **RANGE) != heads.make("c51", **RANGE)


def test_the_share_of_clipped_scalars():
    scalars = jnp.array([-11.0, -10, 0, 10, 10.1, jnp.inf, 9, 9])
    for head in (heads.make(name, **RANGE) for name in ("two_hot", "hlgauss", "c51")):
        assert head.clip_fraction(scalars) == 3 / 8
        assert head.clip_fraction(scalars.reshape(2, 4)) == 3 / 8
    assert heads.MSE().clip_fraction(scalars) == 0


def test_select_takes_the_outputs_of_the_actions():
    outputs = jnp.arange(2 * 3 * 4 * 5, dtype=jnp.float32).reshape(2, 3, 4, 5)
    actions = np.array([[0, 1, 2], [3, 0, 3]])
    expected = np.take_along_axis(np.asarray(outputs), actions[..., None, None], -2)[..., 0, :]
    np.testing.assert_array_equal(heads.select(outputs, actions), expected)
    gradient = jax.grad(lambda o: heads.select(o, actions).sum())(outputs)
    np.testing.assert_array_equal(gradient.sum((-1, -2)), 5)
    beyond = np.isnan(heads.select(outputs, actions + 1))
    np.testing.assert_array_equal(beyond.all(-1), actions == 3)
    np.testing.assert_array_equal(beyond.any(-1), actions == 3)
    assert np.isnan(heads.select(outputs, actions - 4)).all()
    many = jnp.zeros((1, 300, 1))
    assert np.isnan(heads.select(many, jnp.array([-1], jnp.int8))).all()


def test_mse_and_huber_equal_their_formulas():
    outputs, scalars = jnp.array([[0.0], [1.0], [5.0]]), jnp.array([0.5, 1.0, 1.0])
    np.testing.assert_allclose(heads.MSE().loss(outputs, scalars), [0.25, 0, 16])
    np.testing.assert_allclose(heads.Huber().loss(outputs, scalars), [0.125, 0, 3.5])
    np.testing.assert_allclose(heads.Huber(delta=2.0).loss(outputs, scalars), [0.125, 0, 6])
    np.testing.assert_allclose(heads.MSE().divergence(outputs, scalars), [0.5, 0, 4])
    gradient = jax.grad(lambda o: heads.Huber(delta=2.0).loss(o, scalars).sum())(outputs)
    np.testing.assert_allclose(gradient[:, 0], [-0.5, 0, 2])
