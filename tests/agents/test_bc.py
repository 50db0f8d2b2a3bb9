"""Behavioural cloning learns the share of each action in the data, and ignores rewards."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls import heads, networks
from rlcls.agents import BC
from rlcls.agents.base import Agent
from rlcls.spec import Spec
from rlcls.transition import Transition

SHARES = np.array([[0.8, 0.2], [0.3, 0.7]])
FRAMES = np.array([[-1.0], [1.0]], np.float32)
SPEC = Spec(jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((), np.int32), 2, None)


def make(spec=SPEC, **options):
    backbone = functools.partial(networks.MLP, hidden=(32,))
    return BC(spec, backbone, heads.make("mse"), learning_rate=3e-2, target_period=20, **options)


def recorded(shares=SHARES):
    """Both actions in both states with weights `shares` [2, 2], and rewards of NaN."""
    states, actions = (a.reshape(-1) for a in np.indices((2, 2)))
    nothing = np.full(4, np.nan, np.float32)
    weights = 2 * shares[states, actions].astype(np.float32)
    return Transition(FRAMES[states], actions.astype(np.int32), nothing, nothing, FRAMES[states], weights)


def learn(agent, batch, updates=300):
    @jax.jit
    def run(key):
        step = lambda state, i: (agent.update(state, batch, key)[0], None)  # noqa: E731
        return jax.lax.scan(step, agent.init(key), jnp.arange(updates))[0]

    return run(jax.random.key(0))


def test_the_softmax_of_the_logits_is_the_share_of_each_action_in_the_data():
    agent = make()
    assert isinstance(agent, Agent)
    state = learn(agent, recorded())
    acting = agent.acting(state)
    np.testing.assert_allclose(jax.nn.softmax(agent.q_values(acting, FRAMES)), SHARES, atol=0.01)
    np.testing.assert_array_equal(agent.act(acting, FRAMES, jax.random.key(0), 0.0), [0, 1])
    many = np.repeat(FRAMES[:1], 10_000, axis=0)
    assert np.mean(jax.jit(agent.act)(acting, many, jax.random.key(0), 0.4)) == pytest.approx(0.2, abs=0.02)
    _, info = jax.jit(agent.update)(state, recorded(), jax.random.key(0))
    entropy = -(SHARES * np.log(SHARES)).sum(axis=1).mean()
    np.testing.assert_allclose(info.metrics["loss"], entropy, atol=1e-3)
    assert info.metrics["accuracy"] == 0.5 and info.priorities is None


def test_each_of_several_games_has_its_own_policy():
    observation = {"frames": SPEC.observation, "game": jax.ShapeDtypeStruct((), np.int32)}
    agent = make(SPEC._replace(observation=observation), games=2)
    one, other = recorded(), recorded(1 - SHARES)
    both = jax.tree.map(lambda *parts: np.concatenate(parts), one, other)
    seen = {"frames": both.observation, "game": np.repeat(np.arange(2, dtype=np.int32), 4)}
    acting = agent.acting(learn(agent, both._replace(observation=seen, next_observation=seen)))
    for game, shares in enumerate((SHARES, 1 - SHARES)):
        observations = {"frames": FRAMES, "game": np.full(2, game, np.int32)}
        np.testing.assert_allclose(jax.nn.softmax(agent.q_values(acting, observations)), shares, atol=0.02)
        np.testing.assert_array_equal(
            agent.act(acting, observations, jax.random.key(0), 0.0), shares.argmax(axis=1)
        )


def test_update_compiles_once_and_runs_under_vmap_over_seeds():
    agent, batch, key = make(), recorded(), jax.random.key(0)
    update = jax.jit(chex.assert_max_traces(agent.update, n=1))
    state = jax.jit(agent.init)(key)
    for _ in range(3):
        state, _ = update(state, batch, key)
    chex.clear_trace_counter()
    states = jax.jit(jax.vmap(agent.init))(jax.random.split(key, 3))
    _, info = jax.jit(jax.vmap(agent.update, in_axes=(0, None, None)))(states, batch, key)
    assert len(set(np.asarray(info.metrics["loss"]).tolist())) == 3
