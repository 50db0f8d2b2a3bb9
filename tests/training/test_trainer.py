"""The loop: what it computes does not depend on which thread was quicker."""

import random
import time
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.agents.dqn import DQN
from rlcls.envs.probe import PROBES
from rlcls.training import build
from rlcls.training.checkpoint import Checkpoints
from rlcls.training.config import compose
from rlcls.training.evaluation import evaluate
from rlcls.training.player import Player
from rlcls.training.trainer import Trainer

PROBE = [
    "env=probe",
    "backbone=mlp",
    "backbone.hidden=[32]",
    "env.num_envs=4",
    "replay.capacity=4000",
    "replay.min_size=100",
    "replay.gamma=0.5",
    "replay.n_step=1",
    "exploration.epsilon_end=0.5",
    "training.batch_size=16",
    "agent.learning_rate=0.02",
    "agent.target_period=20",
    "agent.target_tau=1",
    "training.act_with_target=false",
]
SUPPORT = ["loss.vmin=-2", "loss.vmax=2", "loss.num_bins=21"]


def make(*overrides, game="probe/two_step", **patches) -> Trainer:
    config = compose([*PROBE, f"game={game}", *overrides])
    env = build.environment(config)
    agent, _ = build.agent(config, env)
    for name, value in patches.items():
        setattr(agent, name, value(getattr(agent, name)))
    return Trainer(config, agent, env)


def run(trainer: Trainer, steps: int) -> Trainer:
    for _ in range(steps):
        trainer.step()
    return trainer


@pytest.mark.parametrize("loss", [["loss=mse"], ["loss=hlgauss", *SUPPORT]])
@pytest.mark.parametrize("game", ["probe/two_step", "probe/policy"])
def test_the_loop_learns_the_exact_values_of_a_probe(loss, game):
    trainer = run(make(*loss, game=game), 700)
    tree, _, _ = trainer.get_state()
    state, probe = tree["state"], PROBES[game]
    values = trainer._agent.q_values(state.params, state.network_state, probe.observations())
    np.testing.assert_allclose(values, probe.q_values(0.5), atol=0.1)
    trainer.close()


@pytest.mark.parametrize("lag", [0, 1, 4])
def test_a_run_gives_the_same_bits_whichever_thread_is_slow(lag):
    def ending(slow_update: float, slow_env: float):
        trainer = make("loss=mse", f"training.lag={lag}", "replay.prioritized=true")
        dice = random.Random(lag)
        update, recv = trainer._learner._update, trainer._env.recv
        trainer._learner._update = lambda *a: (time.sleep(dice.random() * slow_update), update(*a))[1]
        trainer._env.recv = lambda: (time.sleep(dice.random() * slow_env), recv())[1]
        tree, arrays, counters = run(trainer, 60).get_state()
        trainer.close()
        return jax.tree.map(np.asarray, tree), arrays, counters, trainer.replay.priorities.weights.copy()

    even = ending(0, 0)
    chex.assert_trees_all_equal(even, ending(0.02, 0), ending(0, 0.02))


@pytest.mark.parametrize("network", ["params", "target_params"])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_acting_uses_the_parameters_of_a_fixed_number_of_steps_ago(lag, network):
    target = f"training.act_with_target={network == 'target_params'}"
    trainer = make("loss=mse", f"training.lag={lag}", "training.update_period=4", target)
    after_step, acted_with = [], []
    for _ in range(40):
        acted_with.append(trainer._learner.acting.params)
        trainer.step()
        after_step.append(jax.tree.map(np.array, getattr(trainer.get_state()[0]["state"], network)))
    for step in range(lag + 1, 40):
        chex.assert_trees_all_equal(acted_with[step], after_step[step - 1 - lag])
    trainer.close()


def test_an_agent_without_a_target_network_cannot_act_with_it(monkeypatch):
    class OnlineOnly(NamedTuple):
        params: Any
        network_state: Any

    init = DQN.init

    def online_only(self, key):
        state = init(self, key)
        return OnlineOnly(state.params, state.network_state)

    monkeypatch.setattr(DQN, "init", online_only)
    config = compose([*PROBE, "game=probe/two_step"])
    build.agent(config, env := build.environment(config))
    config.training.act_with_target = True
    with pytest.raises(UserError, match="needs an agent with a target network"):
        build.agent(config, env)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_updates_sample_what_was_known_lag_steps_before(lag):
    trainer = make("loss=mse", f"training.lag={lag}", "training.update_period=4", "replay.n_step=2")
    sample, newest = trainer.replay.sample, []

    def spy(*arguments):
        batch, sampled = sample(*arguments)
        newest.append((trainer.steps, int(sampled.rows.max())))
        return batch, sampled

    trainer.replay.sample = spy
    run(trainer, 60)
    # At lag 0 step s samples after adding row s; every step of lag takes one row away, the n-step return n.
    assert all(row <= step - lag - 2 for step, row in newest)
    assert any(row == step - lag - 2 for step, row in newest)
    trainer.close()


def test_the_loop_compiles_each_function_once():
    trainer = make("loss=mse", "training.batch_size=8", update=lambda f: chex.assert_max_traces(f, n=2))
    trainer.warm_up()
    run(trainer, 80)
    assert trainer._update._cache_size() == trainer._act._cache_size() == 1
    trainer.close()
    chex.clear_trace_counter()


def test_a_result_that_is_not_finite_stops_the_run_and_names_the_update():
    trainer = make("loss=mse", "agent.learning_rate=1e30")
    with pytest.raises(UserError, match=r"(loss|td_divergence|q_mean) is (nan|inf) at update \d"):
        run(trainer, 100)
    with pytest.raises(UserError, match=r"(at|after) update \d"):  # nor can such a moment be saved
        trainer.get_state()
    trainer.close()


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 26, 49, 50, 51])
def test_a_checkpoint_of_any_step_goes_on_to_the_same_bits(lag, steps, tmp_path):
    overrides = ("loss=mse", f"training.lag={lag}", "training.reseed_every=200", "replay.capacity=160")
    first = run(make(*overrides), steps)
    tree, arrays, counters = first.get_state()
    Checkpoints(tmp_path, 2).save(
        first.agent_steps, tree=tree, arrays=arrays, counters={"trainer": counters}, replay=first.replay
    )
    second = make(*overrides)
    second.set_state(Checkpoints(tmp_path, 2).resume()[0])
    ends = []
    for trainer in (first, second):
        tree, arrays, counters = run(trainer, 40).get_state()
        ends.append((jax.tree.map(np.asarray, tree), arrays, counters, trainer.replay.priorities.weights))
        trainer.close()
    chex.assert_trees_all_equal(*ends)


def test_a_segment_goes_only_when_no_kept_checkpoint_names_it(tmp_path):
    trainer, checkpoints = make("loss=mse", "replay.capacity=160"), Checkpoints(tmp_path, 2)
    for _ in range(8):
        tree, arrays, counters = run(trainer, 15).get_state()
        checkpoints.save(
            trainer.agent_steps,
            tree=tree,
            arrays=arrays,
            counters={"trainer": counters},
            replay=trainer.replay,
        )
        saved = [Checkpoints(tmp_path, 2).resume()[0]]
        named = {path for each in saved for _, path in each.segments}
        assert named <= set((tmp_path / "replay").iterdir())
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert len(list((tmp_path / "replay").iterdir())) <= 5  # 40 rows a ring, 15 a segment, two checkpoints
    trainer.close()


def test_evaluation_is_a_function_of_the_moment_and_leaves_no_trace_in_the_run():
    one, other = make("loss=mse"), make("loss=mse")
    run(one, 30), run(other, 30)
    arena, _ = build.evaluation_environment(other._config, other._env)
    player = Player(other._config, other._agent, epsilon=0.3)
    play = lambda: evaluate(  # noqa: E731
        player.policy(other.acting, 30), arena, episodes=6, seed=player.seed(30)
    )
    np.testing.assert_array_equal(play().returns, play().returns)
    run(one, 30), run(other, 30)
    chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, t.get_state()[0]) for t in (one, other)))
    one.close(), other.close()
