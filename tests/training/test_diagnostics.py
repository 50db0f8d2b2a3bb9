"""Diagnostics measure what they define, at their period, and do not change the training."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlcls import diagnostics, heads, networks
from rlcls.agents import DQN, UpdateInfo
from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.runs import Checkpoints, metrics
from rlcls.runs.checkpoint import load
from rlcls.spec import Spec
from rlcls.training import Learner, Online
from rlcls.transition import Transition

ROOT = Path(__file__).parents[2]
PROBE = [
    "env=probe",
    "game=probe/two_step",
    "loss=mse",
    "backbone=mlp",
    "backbone.hidden=[8]",
    "env.num_envs=4",
    "replay.capacity=400",
    "replay.min_size=100",
    "training.batch_size=16",
    "agent.target_period=5",
    "agent.target_tau=1",
    "diagnostics.batch_size=32",
]


def make(*overrides, without=()) -> Online:
    config = compose([*PROBE, *overrides])
    env = build.environment(config)
    agent = build.agent(config, env.spec)
    for name in without:
        agent = _Without(agent, name)
    return build.loop(config, agent, env)


class _Without:
    """An agent that lacks a method."""

    def __init__(self, agent, name):
        self._agent, self._name = agent, name

    def init(self, key):
        return self._agent.init(key)

    def acting(self, state, *, target=False):
        return self._agent.acting(state, target=target)

    def act(self, *arguments):
        return self._agent.act(*arguments)

    def update(self, *arguments):
        return self._agent.update(*arguments)

    def __getattr__(self, name):
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._agent, name)


def run(loop, steps):
    lines = [line for _ in range(steps) for line in loop.advance()]
    return [values for kind, values in lines if kind == "diagnostics"]


def ending(loop):
    """A copy of everything that the loop saves, except diagnoses."""
    saved = loop.save()
    loop.close()
    arrays = {name: value.copy() for name, value in saved.arrays.items() if "/diagnostics/" not in name}
    return jax.tree.map(np.array, saved.tree), arrays, saved.counters


OVERRIDES = ("training.lag=3", "replay.prioritized=true")


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    """A run with diagnostics: a checkpoint with a pending diagnosis, the lines before and after it, and the end."""
    loop, folder = make(*OVERRIDES, "diagnostics.every=4"), tmp_path_factory.mktemp("through")
    seen = run(loop, 42)  # update 16 is made in the last of these steps
    saved = loop.save()
    assert any("/diagnostics/" in name for name in saved.arrays)
    Checkpoints(folder, 2).save(loop.number, saved)
    return load(folder)[0], seen, run(loop, 30), ending(loop)


def test_training_with_and_without_diagnostics_gives_the_same_bits(through):
    _, seen, rest, end = through
    assert [line["updates"] for line in seen + rest] == list(range(4, 44, 4))
    without = make(*OVERRIDES, "diagnostics.every=0")
    assert run(without, 72) == []
    chex.assert_trees_all_equal(ending(without), end)


def test_a_resumed_run_has_the_same_diagnostics(through):
    checkpoint, _, rest, end = through
    resumed = make(*OVERRIDES, "diagnostics.every=4")
    fresh = resumed.save()
    resumed.restore(checkpoint.saved(fresh.tree, fresh.rows))
    assert run(resumed, 30) == rest
    chex.assert_trees_all_equal(ending(resumed), end)


def test_an_agent_without_diagnose_trains_without_diagnostics():
    loop = make("diagnostics.every=5", without=["diagnose"])
    loop.warm_up(1000)
    assert run(loop, 60) == [] and loop.counts["updates"] > 5
    loop.close()


@pytest.mark.parametrize(("every", "compiled"), [(5, 1), (10_000_000, 0)])
def test_the_program_is_compiled_before_the_first_step_if_it_will_run(every, compiled):
    loop = make(f"diagnostics.every={every}")
    loop.warm_up(1_500_000)
    assert loop._learner._diagnose._cache_size() == compiled
    run(loop, 50)
    assert loop._learner._diagnose._cache_size() == compiled
    loop.close()


class _Blind:
    """An agent whose diagnoses are not finite."""

    def init(self, key):
        return {"step": jnp.zeros((), jnp.int32)}

    def acting(self, state, *, target=False):
        return state

    def act(self, acting, observations, key, epsilon):
        return jnp.zeros(len(observations), jnp.int32)

    def update(self, state, batch, key):
        step = state["step"] + 1
        return {"step": step}, UpdateInfo({"loss": step.astype(jnp.float32)}, None)

    def diagnose(self, state, batch, held_out):
        return {"rankme": jnp.float32(jnp.nan), "srank": jnp.int32(3)}


def test_a_diagnosis_that_is_not_finite_is_reported_and_stops_nothing():
    learner, batch = Learner(_Blind(), jax.random.key(0), jax.random.key(1)), transitions(2, 0)
    for held_out, number in ((batch, 0), (None, None), (batch, 2)):
        learner.submit(batch, (np.zeros(2, np.int64),), held_out)
        (result,) = learner.end_round()
        assert result.metrics["loss"] > 0 and result.priorities is None
        if number is None:
            assert result.diagnostics == {}
        else:
            assert result.number == number
            assert np.isnan(result.diagnostics["rankme"]) and result.diagnostics["srank"] == 3
    learner.close()


def spec(shape, num_actions=2, dtype=np.float32):
    return Spec(jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((), np.int32), num_actions, None)


def transitions(size, seed):
    random = np.random.default_rng(seed)
    observation, next_observation = random.normal(size=(2, size, 3)).astype(np.float32)
    return Transition(
        observation,
        random.integers(0, 2, size, np.int32),
        random.normal(size=size).astype(np.float32),
        np.where(random.random(size) < 0.3, 0, 0.9).astype(np.float32),
        next_observation,
        random.random(size, np.float32),
    )


@pytest.mark.parametrize(
    ("name", "options"), [("mse", {}), ("c51", {"double": True, "max_gradient_norm": 1e-3})]
)
def test_the_diagnostics_of_an_agent_equal_their_definitions(name, options):
    bounded = {} if name == "mse" else {"vmin": -3, "vmax": 3, "num_bins": 11}
    head = heads.make(name, **bounded)

    agent = DQN(spec((3,)), functools.partial(networks.MLP, hidden=(9, 8)), head, **options)
    init, batch, held_out = jax.jit(agent.init), transitions(6, 0), transitions(20, 1)
    state = init(jax.random.key(0))._replace(target_params=init(jax.random.key(1)).params)
    apply, _, _ = networks.functional(agent._make_network(nnx.Rngs(0)))

    def chosen(params, transitions):
        return heads.select(apply(params, {}, transitions.observation, train=True)[0], transitions.action)

    def chosen_next(transitions):
        outputs = apply(state.target_params, {}, transitions.next_observation, train=False)[0]
        chooser = state.params if options else state.target_params
        values = head.value(apply(chooser, {}, transitions.next_observation, train=False)[0])
        return heads.select(outputs, jnp.argmax(values, axis=-1))

    def loss(params):
        target = head.td_target(chosen_next(batch), batch.reward, batch.discount)
        return jnp.mean(batch.weight * head.td_loss(chosen(params, batch), target))

    @jax.jit
    def expected():
        errors = [
            head.value(chosen(state.params, x)) - x.reward - x.discount * head.value(chosen_next(x))
            for x in (batch, held_out)
        ]
        layers, x = state.params["backbone"]["layers"], [held_out.observation]
        for number in range(2):
            x.append(jnp.maximum(x[-1] @ layers[number]["kernel"] + layers[number]["bias"], 0))
        dormant = [len(units.T) * diagnostics.dormant_ratio(units) for units in x[1:]]
        metrics = diagnostics.feature_metrics(x[-1]) | {"dormant_ratio": sum(dormant) / (9 + 8)}
        return jax.grad(loss)(state.params), errors, metrics

    look = jax.jit(agent.diagnose)
    seen, (gradients, errors, metrics) = look(state, batch, held_out), expected()
    norm = np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients)]))
    np.testing.assert_allclose(seen["gradient_norm"], norm, rtol=1e-5)
    for key, error, x in zip(("td_error", "held_out_td_error"), errors, (batch, held_out), strict=True):
        np.testing.assert_allclose(seen[key], np.average(np.abs(error), weights=x.weight), rtol=1e-4)
    for key, value in metrics.items():
        np.testing.assert_allclose(seen[key], value, rtol=1e-3, err_msg=key)
    none = look(state, batch, held_out._replace(weight=0 * held_out.weight))
    assert none["held_out_td_error"] == np.inf and none["rankme"] == seen["rankme"]


class _Shows(networks.MLP):
    """A backbone that sows the queries and keys of an attention, and a number."""

    capture, causal = False, True

    def __call__(self, observations):
        x = super().__call__(observations)
        if self.capture:
            self.sow(nnx.Intermediate, "queries", x.reshape(len(x), 2, 1, -1))
            self.sow(nnx.Intermediate, "keys", 3 * x.reshape(len(x), 2, 1, -1))
            self.sow(nnx.Intermediate, "sine", jnp.sin(jnp.sum(x)))
        return x


def test_what_a_backbone_sows_is_reported_and_is_not_computed_in_an_update():
    head = heads.make("mse")

    agent = DQN(spec((3,)), functools.partial(_Shows, hidden=(8,)), head)
    state = agent.init(jax.random.key(0))
    seen = jax.jit(agent.diagnose)(state, transitions(6, 0), transitions(20, 1))
    # The first of two causal queries attends to one key only, so its entropy is 0.
    assert 0 < seen["attention_entropy_least"] <= seen["attention_entropy"] < np.log(2) / 2
    assert -1 <= seen["sine"] <= 1
    program = jax.jit(agent.update).lower(state, transitions(6, 0), jax.random.key(0)).as_text()
    assert "sine" not in program


@pytest.mark.parametrize(
    ("make_backbone", "names"),
    [
        (
            functools.partial(networks.IMPALATokens, num_experts=2, hidden=4),
            ["dispatch_similarity_mean", "combine_similarity_mean"],
        ),
        (
            functools.partial(networks.Transformer, layers=1, width=8, heads=2, patch=6),
            ["attention_entropy", "attention_entropy_least"],
        ),
    ],
    ids=["soft_moe", "transformer"],
)
def test_the_routing_and_the_attention_of_the_backbones_are_reported(make_backbone, names):
    agent = DQN(spec((1, 12, 12), dtype=np.uint8), make_backbone, heads.make("mse"))
    frames = np.random.default_rng(0).integers(0, 256, (5, 1, 12, 12), dtype=np.uint8)
    batch = transitions(5, 0)._replace(observation=frames, next_observation=frames)
    seen = jax.jit(agent.diagnose)(agent.init(jax.random.key(0)), batch, batch)
    assert all(0 <= seen[name] <= np.log(4) for name in names)


@pytest.mark.slow
def test_the_command_writes_diagnostics_to_metrics_tensorboard_and_the_picture(tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    short = [
        "steps=900",
        "diagnostics.every=50",
        "logging.every=200",
        "eval.episodes=1",
        "checkpoint.every=900",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "rlcls.train", *PROBE, *short, "run_dir=run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = [row for row in metrics.read(tmp_path / "run") if row["kind"] == "diagnostics"]
    assert [row["updates"] for row in rows] == [50, 100, 150]
    names = {"gradient_norm", "td_error", "held_out_td_error", "rankme", "srank", "alpha_req"}
    for row in rows:
        assert names | {"dormant_ratio", "feature_norm"} <= row.keys()
        assert row["frames"] == row["agent_steps"] > 100 + 4 * row["updates"]
        assert row["gradient_norm"] > 0 and row["held_out_td_error"] > 0
        assert json.dumps(row, allow_nan=False)
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"diagnostics/rankme" in events.read_bytes()
    assert (tmp_path / "run" / "learning_curve.png").stat().st_size > 10_000
