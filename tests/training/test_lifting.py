"""`lift` makes one function of several that differ only in numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls.training.lifting import lift

X = jnp.linspace(-1.0, 1.0, 5)


@functools.partial(jax.custom_jvp)
def doubled(x):
    return 2.0 * x


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2.0 * tangents[0]))


def literal(number):
    return lambda x: number * x + 1.0


def array(number):
    table = np.arange(5, dtype=np.float32) * number
    return lambda x: x + table


def inside_a_call(number):
    return lambda x: jax.jit(lambda y: jnp.where(y > number, y, number))(x)


def twice(number):
    return lambda x: x * number + jnp.cos(x * number)


def with_custom_derivative(number):
    return lambda x: jax.nn.relu(doubled(x) - number)


def in_a_branch(number):
    return lambda x: jax.lax.cond(x.sum() > number, lambda y: y * number, lambda y: y - number, x)


def in_a_scan(number):
    return lambda x: jax.lax.scan(lambda c, y: (c * number + y, c), number, x)[1]


def in_a_loop(number):
    return lambda x: jax.lax.while_loop(
        lambda c: c[0] < 3 + number, lambda c: (c[0] + 1, c[1] * number), (0.0, x)
    )[1]


def with_a_key(number):
    key = jax.random.key(number)
    return lambda x: x + jax.random.normal(key, x.shape)


def gradient(number):
    return jax.grad(lambda x: jnp.sum(jax.nn.softmax(x * number) ** 2))


@pytest.mark.parametrize(
    "make",
    [
        literal,
        array,
        inside_a_call,
        twice,
        with_custom_derivative,
        in_a_branch,
        in_a_scan,
        in_a_loop,
        gradient,
    ],
    ids=lambda make: make.__name__,
)
def test_the_lifted_function_equals_each_function(make):
    functions = [make(number) for number in (0.25, 0.5, 3.0)]
    lifted = lift(functions, X)
    assert lifted is not None and len(lifted.values[0]) > 0
    for function, values in zip(functions, lifted.values, strict=True):
        np.testing.assert_allclose(lifted.function(values, X), function(X), rtol=1e-5)
    stacked = [jnp.stack(each) for each in zip(*lifted.values, strict=True)]
    together = jax.jit(jax.vmap(lifted.function, in_axes=(0, None)))(stacked, X)
    np.testing.assert_allclose(together, [function(X) for function in functions], rtol=1e-5)


def test_equal_functions_have_no_values():
    lifted = lift([literal(2.0), literal(2.0)], X)
    assert lifted.values == [[], []]
    np.testing.assert_array_equal(lifted.function([], X), literal(2.0)(X))


def test_trees_and_several_results_keep_their_structure():
    functions = [lambda tree, n=n: ({"a": tree["x"] * n}, tree["k"]) for n in (1.5, 2.5)]
    tree = {"x": X, "k": jax.random.key(0)}
    lifted = lift(functions, tree)
    result, key = lifted.function(lifted.values[1], tree)
    np.testing.assert_allclose(result["a"], X * 2.5)
    assert jax.random.key_data(key).tolist() == jax.random.key_data(jax.random.key(0)).tolist()


@pytest.mark.parametrize(
    "functions",
    [
        [with_a_key(0), with_a_key(1)],
        [lambda x: x + 1.0, lambda x: x * 1.0],
        [lambda x: jnp.sum(x, keepdims=True), lambda x: x],
        [lambda x: x**2, lambda x: x**3],
        [lambda x: jnp.pad(x, (0, 1)), lambda x: jnp.pad(x, (1, 0))],
        [lambda x: x[0] - x, lambda x: x - x[0]],
        [lambda x, n=n: jax.lax.fori_loop(0, n, lambda _, y: y * 2.0, x) for n in (3, 4)],
    ],
)
def test_functions_that_differ_in_more_than_numbers_have_no_common_function(functions):
    assert lift(functions, X) is None
