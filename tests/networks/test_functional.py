"""Networks as pure functions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import heads, networks

HEAD = heads.make("hlgauss", vmin=-10, vmax=10, num_bins=11)


def q_network(seed=0, **options):
    rngs = nnx.Rngs(seed)
    return networks.QNetwork(networks.MLP((3,), hidden=(8,), rngs=rngs), HEAD, 2, rngs=rngs, **options)


class Stateful(nnx.Module):
    """A module with variables that are not parameters: statistics, random streams and intermediates."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


@pytest.mark.parametrize("dueling", [False, True])
def test_the_function_equals_the_module(dueling):
    network = q_network(dueling=dueling)
    observations = jnp.linspace(-1, 1, 12).reshape(4, 3)
    apply, params, network_state = networks.functional(network)
    outputs, network_state, intermediates = jax.jit(apply, static_argnames="train")(
        params, network_state, observations, train=True
    )
    np.testing.assert_allclose(outputs, network(observations), atol=1e-6)
    assert network_state == {} and intermediates == {}


def test_parameters_are_nested_dicts_of_arrays():
    _, params, _ = networks.functional(q_network())
    assert {type(leaf) for leaf in jax.tree.leaves(params)} <= {jax.Array, type(jnp.zeros(()))}
    assert set(params) == {"backbone", "q_head"} and type(params) is dict
    assert networks.count_parameters(params) == (3 + 1) * 8 + (8 + 1) * 2 * 11


def test_the_function_differentiates_maps_over_seeds_and_traces_once():
    apply, params, network_state = networks.functional(q_network())
    population = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, networks.functional(q_network(1))[1])
    observations = jnp.ones((4, 3))
    chex.clear_trace_counter()

    @jax.jit
    @jax.vmap
    @chex.assert_max_traces(1)
    def gradients(params):
        return jax.grad(
            lambda params: HEAD.loss(
                heads.select(
                    apply(params, network_state, observations, train=True)[0], jnp.zeros(4, jnp.int32)
                ),
                jnp.ones(4),
            ).mean()
        )(params)

    for _ in range(2):
        chex.assert_trees_all_equal_shapes(gradients(population), population)
    assert not np.allclose(*gradients(population)["backbone"]["layers"][0]["kernel"])


def test_variables_that_are_not_parameters_are_returned_as_state():
    apply, params, start = networks.functional(Stateful(nnx.Rngs(0)))
    x = jnp.linspace(-1, 3, 24).reshape(8, 3)
    assert set(params) == {"linear", "norm"}
    jitted = jax.jit(apply, static_argnames="train")
    outputs, state, _ = jitted(params, start, x, train=True)
    assert not np.allclose(state["norm"]["mean"], start["norm"]["mean"])
    chex.assert_trees_all_equal_structs(state, start)
    # The same state gives the same dropout; the new state gives another one.
    chex.assert_trees_all_equal(jitted(params, start, x, train=True)[0], outputs)
    assert not np.allclose(jitted(params, state, x, train=True)[0], outputs)
    # Evaluation changes no state and drops nothing.
    evaluated, same, _ = jitted(params, start, x, train=False)
    np.testing.assert_array_equal(same["norm"]["mean"], start["norm"]["mean"])
    assert (evaluated != 0).all()
