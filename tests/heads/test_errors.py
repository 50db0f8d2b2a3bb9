"""Wrong arrays raise an error when a function is traced. Its message is one line that says what would be right."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls import heads

RANGE = {"vmin": -10, "vmax": 10, "num_bins": 51}
HEADS = [
    heads.MSE(),
    heads.Huber(),
    heads.BCE(),
    heads.Quantile(7),
    *(heads.make(name, **RANGE) for name in ("hlgauss", "two_hot", "c51", "one_hot", "mse_softmax")),
]
pytestmark = [
    pytest.mark.untyped,
    pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name),
]


def refused(error, message, function, *arguments):
    for call in (function, jax.jit(function)):
        with pytest.raises(error) as raised:
            jax.eval_shape(call, *arguments)
        assert str(raised.value) == message


def test_outputs_with_another_last_axis(head):
    n = head.num_outputs
    message = f"outputs of shape (4, 50) do not fit {head.name}: the last axis must be num_outputs = {n}"
    refused(ValueError, message, head.value, jnp.zeros((4, 50)))
    refused(ValueError, message, head.loss, jnp.zeros((4, 50)), jnp.zeros(4))
    refused(ValueError, f"next_{message}", head.td_target, jnp.zeros((4, 50)), jnp.zeros(4), jnp.zeros(4))


def test_integer_outputs(head):
    outputs = jnp.zeros((4, head.num_outputs), jnp.int32)
    refused(TypeError, "outputs must be floating point, not int32", head.loss, outputs, jnp.zeros(4))
    refused(TypeError, "outputs must be floating point, not int32", head.value, outputs)
    refused(TypeError, "outputs must be floating point, not int32", head.td_loss, outputs, jnp.zeros(4))


def test_targets_of_another_rank(head):
    outputs = jnp.zeros((4, head.num_outputs))
    message = (
        f"scalars of shape (4, 1) do not match outputs of shape (4, {head.num_outputs}): "
        "scalars must have shape (4,)"
    )
    refused(ValueError, message, head.loss, outputs, jnp.zeros((4, 1)))
    refused(ValueError, message, head.divergence, outputs, jnp.zeros((4, 1)))


def test_td_targets_that_do_not_fit(head):
    outputs = jnp.zeros((4, head.num_outputs))
    target = jax.eval_shape(head.td_target, outputs, jnp.zeros(4), jnp.zeros(4))
    wrong = jnp.zeros((3, *target.shape[1:]))
    message = (
        f"target of shape (3,) does not match outputs of shape {outputs.shape}: target must have shape (4,)"
    )
    refused(ValueError, message, head.td_loss, outputs, wrong)
    refused(ValueError, message, head.td_divergence, outputs, wrong)
    if target.ndim == 2:
        message = (
            f"target of shape (4,) holds scalars: the td_loss of {head.name} takes the distribution that its "
            f"td_target returns, of shape {outputs.shape}; use loss for scalars"
        )
        refused(ValueError, message, head.td_loss, outputs, jnp.zeros(4))


def test_arrays_that_are_not_real(head):
    outputs = jnp.zeros((4, head.num_outputs))
    refused(TypeError, "scalars must be real, not complex64", head.loss, outputs, jnp.zeros(4, jnp.complex64))
    refused(TypeError, "scalars must be real, not complex64", head.clip_fraction, jnp.zeros(4, jnp.complex64))
    if isinstance(head, heads.CategoricalHead):
        for dtype in (np.complex128, object):
            with pytest.raises(TypeError, match=f"scalars must be real, not {np.dtype(dtype)}"):
                head.encode(np.zeros(4, dtype))
        with pytest.raises(TypeError, match="probs must be floating point, not int64"):
            head.decode(np.zeros((4, head.num_outputs), np.int64))


def test_an_argument_that_is_not_a_support(head):
    if isinstance(head, heads.CategoricalHead):
        with pytest.raises(TypeError) as raised:
            type(head)(51)
        assert str(raised.value) == (
            f"{head.name}: support must be a heads.Support, such as heads.Support.uniform(-10, 10, 51), not 51; "
            f"heads.make({head.name!r}, vmin=-10, vmax=10, num_bins=51) makes both"
        )
        with pytest.raises(TypeError, match=r"heads\.Support, .* not -10; heads\.make"):
            type(head)(-10, 10, 51)
        assert str(inspect.signature(type(head))).startswith("(support: ")


def test_rewards_or_discounts_of_another_shape(head):
    outputs = jnp.zeros((4, head.num_outputs))
    end = f"do not match next_outputs of shape {outputs.shape}: {{}} must have shape (4,)"
    rewards = f"rewards of shape (3,) {end.format('rewards')}"
    discounts = f"discounts of shape () {end.format('discounts')}"
    refused(ValueError, rewards, head.td_target, outputs, jnp.zeros(3), jnp.zeros(4))
    refused(ValueError, discounts, head.td_target, outputs, jnp.zeros(4), jnp.zeros(()))


def test_actions_that_do_not_fit(head):
    outputs = jnp.zeros((4, 3, head.num_outputs))
    refused(TypeError, "actions must be integers, not float32", heads.select, outputs, jnp.zeros(4))
    message = (
        f"actions of shape (4, 1) do not match outputs of shape {outputs.shape}: "
        "outputs [*b, num_actions, n] go with actions [*b]"
    )
    refused(ValueError, message, heads.select, outputs, jnp.zeros((4, 1), jnp.int32))
    refused(
        TypeError,
        "outputs must be floating point, not int32",
        heads.select,
        outputs.astype(int),
        jnp.zeros(4, int),
    )
