"""The online loop gives the same bits whichever of its threads is faster."""

import random
import time

import chex
import jax
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.agents import DQN
from rlcls.cli import build, run_config
from rlcls.cli.compose import compose
from rlcls.envs.probe import PROBES
from rlcls.evaluation import EpisodeEvaluator
from rlcls.runs import Checkpoints, checkpoint
from rlcls.runs import segments as segments_
from rlcls.training import Online, online

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


def make(*overrides, game="probe/two_step", **patches) -> Online:
    config = compose([*PROBE, f"game={game}", *overrides])
    env = build.environment(config)
    agent = build.agent(config, env.spec)
    for name, value in patches.items():
        setattr(agent, name, value(getattr(agent, name)))
    return build.loop(config, agent, env)


def run(loop: Online, steps: int) -> Online:
    for _ in range(steps):
        loop.advance()
    return loop


def ending(loop: Online):
    """A copy of everything that the loop saves."""
    saved = loop.save()
    loop.close()
    return jax.tree.map(np.array, saved.tree), dict(saved.arrays), saved.counters


@pytest.mark.parametrize("loss", [["loss=mse"], ["loss=hlgauss", *SUPPORT]])
@pytest.mark.parametrize("game", ["probe/two_step", "probe/policy"])
def test_the_loop_learns_the_exact_values_of_a_probe(loss, game):
    loop, probe = run(make(*loss, game=game), 700), PROBES[game]
    values = loop._agent.q_values(loop.save().tree["state"].online, probe.observations())
    np.testing.assert_allclose(values, probe.q_values(0.5), atol=0.1)
    loop.close()


@pytest.mark.parametrize("lag", [0, 1, 4])
def test_a_run_gives_the_same_bits_whichever_thread_is_slow(lag):
    def slowed(slow_update: float, slow_env: float):
        loop = make("loss=mse", f"training.lag={lag}", "replay.prioritized=true")
        dice = random.Random(lag)
        update, recv = loop._learner.update, loop._env.recv
        loop._learner.update = lambda *a: (time.sleep(dice.random() * slow_update), update(*a))[1]
        loop._env.recv = lambda: (time.sleep(dice.random() * slow_env), recv())[1]
        return ending(run(loop, 60))

    even = slowed(0, 0)
    chex.assert_trees_all_equal(even, slowed(0.02, 0), slowed(0, 0.02))


@pytest.mark.parametrize("network", ["params", "target_params"])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_acting_uses_the_parameters_of_a_fixed_number_of_steps_ago(lag, network):
    target = f"training.act_with_target={network == 'target_params'}"
    loop = make("loss=mse", f"training.lag={lag}", "training.update_period=4", target)
    after_step, acted_with = [], []
    for _ in range(40):
        acted_with.append(loop.acting().params)
        loop.advance()
        after_step.append(jax.tree.map(np.array, getattr(loop.save().tree["state"], network)))
    for step in range(lag + 1, 40):
        chex.assert_trees_all_equal(acted_with[step], after_step[step - 1 - lag])
    loop.close()


def test_an_agent_without_a_target_network_cannot_act_with_it(monkeypatch):
    def online_only(self, state, *, target=False):
        if target:
            raise ValueError("this agent has no target network: give training.act_with_target=false")
        return state.online

    monkeypatch.setattr(DQN, "acting", online_only)
    config = compose([*PROBE, "game=probe/two_step"])
    build.agent(config, (env := build.environment(config)).spec)
    config.training.act_with_target = True
    with pytest.raises(UserError, match="agent: this agent has no target network"):
        build.agent(config, env.spec)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_updates_sample_what_the_replay_had_lag_steps_before(lag):
    loop = make("loss=mse", f"training.lag={lag}", "training.update_period=4", "replay.n_step=2")
    sample, newest = loop.replay.sample, []

    def spy(*arguments):
        batch, sampled = sample(*arguments)
        newest.append((loop.number, int(sampled.rows.max())))
        return batch, sampled

    loop.replay.sample = spy
    run(loop, 60)
    # At lag 0, step s samples after row s is added. Each step of lag leaves out a row, and n-step returns leave out n.
    assert all(row <= step - lag - 2 for step, row in newest)
    assert any(row == step - lag - 2 for step, row in newest)
    loop.close()


def test_the_loop_compiles_each_function_once():
    loop = make("loss=mse", "training.batch_size=8", update=lambda f: chex.assert_max_traces(f, n=2))
    loop.warm_up(2000)
    run(loop, 80)
    assert loop._learner.update._cache_size() == loop._act._cache_size() == 1
    loop.close()
    chex.clear_trace_counter()


def test_a_warm_up_changes_nothing():
    warm, cold = make("loss=hlgauss", *SUPPORT), make("loss=hlgauss", *SUPPORT)
    seconds = warm.warm_up(2000)
    assert 0 < seconds < 1 and warm.number == 0 and warm.counts["updates"] == 0
    assert len(warm.save().arrays["sent"]) == 0
    chex.assert_trees_all_equal(ending(run(warm, 40)), ending(run(cold, 40)))


def test_a_result_that_is_not_finite_stops_the_run_and_names_the_update():
    loop = make("loss=mse", "agent.learning_rate=1e30")
    with pytest.raises(UserError, match=r"(loss|td_divergence|q_mean) is (nan|inf) at update \d"):
        run(loop, 100)
    with pytest.raises(RuntimeError, match="the last step ended halfway"):  # this state cannot be saved
        loop.save()
    loop.close()


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_loop_resumed_at_any_step_ends_in_the_same_bits(lag, tmp_path):
    overrides = ("loss=mse", f"training.lag={lag}", "training.reseed_every=7", "replay.capacity=160")
    whole, moments = make(*overrides), (1, 26, 49, 50, 51)
    for steps in moments:
        (folder := tmp_path / str(steps)).mkdir()
        Checkpoints(folder, 2).save(steps, run(whole, steps - whole.number).save())
    end = ending(run(whole, 40))
    for steps in moments:
        resumed = make(*overrides)
        fresh = resumed.save()
        resumed.restore(checkpoint.load(tmp_path / str(steps))[0].saved(fresh.tree, fresh.rows))
        chex.assert_trees_all_equal(ending(run(resumed, 91 - steps)), end)


@pytest.mark.parametrize(
    ("call", "steps", "lag"),
    [("recv", 26, 0), ("recv", 26, 1), ("recv", 50, 3), ("recv", 0, 1), ("send", 26, 1), ("nan", 26, 1)],
)
def test_a_step_in_which_an_environment_failed_is_saved_and_repeated_with_the_same_bits(
    call, steps, lag, tmp_path
):
    overrides = ("loss=mse", f"training.lag={lag}", "replay.capacity=160", "replay.prioritized=true")
    first, second, whole = run(make(*overrides), steps), make(*overrides), run(make(*overrides), steps + 30)

    def fail(*arguments):
        raise ZeroDivisionError

    def give_nan():
        observations, rewards, *rest = recv()
        return observations, rewards * np.float32(np.nan), *rest

    recv = first._env.recv
    name, method = ("recv", give_nan) if call == "nan" else (call, fail)
    with pytest.raises((ZeroDivisionError, UserError)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(first._env, name, method)
        first.advance()
    assert first.number == steps
    Checkpoints(tmp_path, 2).save(steps, first.save())
    fresh = second.save()
    second.restore(checkpoint.load(tmp_path)[0].saved(fresh.tree, fresh.rows))
    chex.assert_trees_all_equal(ending(run(second, 30)), ending(whole))
    first.close()


def test_a_step_that_failed_after_the_environments_stepped_cannot_be_saved(monkeypatch):
    loop = run(make("loss=mse"), 30)
    monkeypatch.setattr(loop.replay, "add", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.advance()
    with pytest.raises(RuntimeError, match="the last step ended halfway"):
        loop.save()
    loop.close()


def test_an_episode_longer_than_reseed_every_is_replayed_from_its_start(tmp_path):
    options = ["game=Pong", "env.num_envs=2", "replay.capacity=400", "replay.min_size=360", "loss=mse"]
    options += ["training.reseed_every=10", "training.batch_size=2", "training.update_period=40"]
    config = compose(options)

    def make_pong() -> Online:
        env = build.environment(config)
        return build.loop(config, build.agent(config, env.spec), env)

    first, second, ticks = run(make_pong(), 190), make_pong(), []
    Checkpoints(tmp_path, 1).save(190, first.save())
    fresh = second.save()
    saved = checkpoint.load(tmp_path)[0].saved(fresh.tree, fresh.rows)
    second.restore(saved, lambda *tick: ticks.append(tick))
    assert ticks == [(number, 190) for number in range(1, 191)]
    chex.assert_trees_all_equal(*(ending(run(loop, 20)) for loop in (first, second)))


def shares(count, *overrides):
    """A loop for each of `count` processes. Each makes its own updates, because JAX runs as a single process here."""
    config = compose([*PROBE, "game=probe/two_step", "loss=mse", "training.reseed_every=9", *overrides])
    loops = []
    for host in range(count):
        own = run_config.share(config, host, count)
        env = build.environment(own)
        loops.append(build.loop(own, build.agent(own, env.spec), env))
        loops[-1]._host, loops[-1]._hosts = host, count
    return loops


def restored(loops, parts, folder):
    """The loops, restored from the parts that other loops have saved."""
    for host, loop in enumerate(loops):
        segments = [segments_.write(folder / str(number), part.rows, []) for number, part in enumerate(parts)]
        segments_.read_share(segments, loop.replay, host)
        tree = jax.tree.map(jax.numpy.copy, parts[0].tree)  # an update donates its state
        loop.restore(loop.deal([part._replace(tree=tree, rows=loop.replay) for part in parts]))
    return loops


def test_the_state_of_two_processes_is_dealt_to_one_and_back_to_two_without_loss(tmp_path):
    options = ["training.lag=2", "replay.prioritized=true", "env.num_envs=4"]
    two = [run(loop, 61) for loop in shares(2, *options)]
    parts = [loop.save() for loop in two]
    (one,) = restored(shares(1, *options), parts, tmp_path / "two")
    for name in ("frames", "actions", "rewards", "terminals", "starts", "drawn"):
        np.testing.assert_array_equal(
            getattr(one.replay, name), np.concatenate([getattr(each.replay, name) for each in two])
        )
    np.testing.assert_array_equal(
        one.replay.priorities.weights, np.concatenate([each.replay.priorities.weights for each in two])
    )
    np.testing.assert_array_equal(one._observations, np.concatenate([each._observations for each in two]))
    assert one.counts == two[0].counts
    again = restored(shares(2, *options), [one.save()], tmp_path / "one")
    for before, after in zip(parts, (loop.save() for loop in again), strict=True):
        assert before.arrays.keys() == after.arrays.keys()
        for name, values in before.arrays.items():
            np.testing.assert_array_equal(values, after.arrays[name], err_msg=name)
        for name in ("number", "observations", "filled_from"):
            assert before.counters[name] == after.counters[name]
        for name in ("returns", "lengths"):
            assert before.counters["returns"][name] == after.counters["returns"][name]
    finished = [part.counters["returns"]["finished"] for part in parts]
    assert [each._returns.finished for each in again] == [sum(finished), 0]
    for loop in (*two, one, *again):
        loop.close()


def test_a_checkpoint_with_another_number_of_environments_is_refused():
    (one,), (few,) = shares(1), shares(1, "env.num_envs=2")
    with pytest.raises(UserError, match="the checkpoint has 4 environments, and 1 processes have 2"):
        few.deal([one.save()])
    one.close(), few.close()


def test_digests_differ_if_any_leaf_of_an_observation_differs():
    one = {"frames": np.arange(4).reshape(2, 2), "game": np.zeros(2)}
    same, other = {name: leaf.copy() for name, leaf in one.items()}, one | {"game": np.ones(2)}
    assert online._digests(one) == online._digests(same)
    assert [a == b for a, b in zip(online._digests(one), online._digests(other), strict=True)] == [False] * 2


def test_a_new_seed_cuts_no_episode():
    loop = make("loss=mse", "training.reseed_every=3")
    lengths = [values["length"] for _ in range(60) for kind, values in loop.advance() if kind == "episode"]
    saved = loop.save()
    assert set(lengths) == {2} and saved.arrays["seedings"].min() > 5
    # An episode takes three steps, so an environment takes at most five steps after a seed.
    assert len(saved.arrays["sent"]) <= 6
    loop.close()


def test_the_seeds_of_an_environment_do_not_depend_on_the_number_of_environments(monkeypatch):
    given: list[np.ndarray] = []

    def seeds_of(num_envs: int) -> list[np.ndarray]:
        loop = make("loss=mse", f"env.num_envs={num_envs}", "training.reseed_every=1", "seed=5")
        given.clear()
        reset = loop._env.reset
        monkeypatch.setattr(
            loop._env, "reset", lambda **options: (given.append(options["seed"]), reset(**options))[1]
        )
        run(loop, 13).close()
        return list(given)

    few, many = seeds_of(2), seeds_of(4)
    for one, other in zip(few, many, strict=True):
        np.testing.assert_array_equal(one, other[:2])
    assert len({int(seed) for seeds in many for seed in seeds}) == 4 * len(many) == 20


def test_the_reset_with_a_new_seed_says_which_observations_start_an_episode():
    loop = make("loss=mse", "training.reseed_every=3")
    reset, marks = loop._env.reset, []

    def marked(**arguments):
        observations, info = reset(**arguments)
        if arguments.get("options"):
            marks.append(info["episode_start"].copy())
            info = info | {"episode_start": marks[-1]}
        return observations, info

    loop._env.reset = marked
    while not marks:
        loop.advance()
    assert loop._starts is marks[-1]
    loop.close()


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_without_rows_a_loop_continues_from_its_weights_and_learns_once_the_replay_is_filled(lag, tmp_path):
    overrides = (
        "loss=mse",
        f"training.lag={lag}",
        "replay.prioritized=true",
        "exploration.epsilon_decay=800",
    )
    first, again = run(make(*overrides), 60), make(*overrides)
    saved = first.save()
    steps, updates, tree = 240, first.counts["updates"], jax.tree.map(np.array, saved.tree)
    assert first.counts["agent_steps"] == steps and updates == (steps - 100) // 4
    epsilon = first._epsilon()
    # The saved observations have no effect, because every environment starts an episode with its next seed.
    lost = {**saved.counters, "observations": "0" * 64}
    again.restore(saved._replace(rows=None, counters=lost), lambda *_: pytest.fail("an action is replayed"))
    np.testing.assert_array_equal(again._seedings, first._seedings + 1)
    assert again.counts == first.counts and again._epsilon() == epsilon and again.replay.size == 0
    chex.assert_trees_all_equal(jax.tree.map(np.array, again.save().tree), tree)
    run(again, 25)
    assert again.replay.size == 100 and again.counts["updates"] == updates
    chex.assert_trees_all_equal(jax.tree.map(np.array, again.save().tree["state"]), tree["state"])
    run(again, 10)
    assert again.counts["updates"] == updates + 10 == int(again.save().tree["state"].step)
    Checkpoints(tmp_path, 2).save(again.number, again.save())
    resumed = make(*overrides)
    fresh = resumed.save()
    resumed.restore(checkpoint.load(tmp_path)[0].saved(fresh.tree, fresh.rows))
    chex.assert_trees_all_equal(*(ending(run(loop, 20)) for loop in (again, resumed)))
    first.close()


def test_a_segment_is_removed_only_when_no_kept_checkpoint_lists_it(tmp_path):
    loop, checkpoints = make("loss=mse", "replay.capacity=160"), Checkpoints(tmp_path, 2)
    for _ in range(8):
        checkpoints.save(run(loop, 15).number, loop.save())
        newest = checkpoint.load(tmp_path)[0]
        assert {segment.path for segment in newest.segments} <= set((tmp_path / "replay").iterdir())
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert (
        len(list((tmp_path / "replay").iterdir())) <= 5
    )  # two checkpoints of 40 rows, with 15 rows in a segment
    loop.close()


def test_evaluation_is_a_function_of_the_loops_state_and_does_not_change_the_run():
    one, other = run(make("loss=mse"), 30), run(make("loss=mse"), 30)
    evaluator = EpisodeEvaluator(other._agent, other._env, episodes=6, epsilon=0.3)
    play = lambda: evaluator(other.acting(), other.number, lambda done, total: None)  # noqa: E731
    assert play() == play()
    chex.assert_trees_all_equal(*(ending(run(loop, 30)) for loop in (one, other)))


def test_an_option_out_of_range_is_one_line_that_names_it():
    for option, message in {
        "training.batch_size=0": "training: batch_size must be at least 1, not 0",
        "training.lag=-1": "training: lag must be at least 0, not -1",
        "training.reseed_every=0": "training: reseed_every must be at least 1, not 0",
        "replay.min_size=12": r"training: replay.min_size \(12\) must be at least batch_size \(16\)",
        "replay.capacity=100 replay.min_size=120": r"replay: capacity \(100\) must be at least min_size \(120\)",
        "replay.n_step=40": r"training: replay.min_size \(100\) must be at least 164: 40-step returns",
        "exploration.epsilon_end=2": "exploration: epsilon_end must be between 0 and 1, not 2.0",
    }.items():
        with pytest.raises(UserError, match=f"^{message}"):
            make("loss=mse", *option.split())


def test_a_long_run_holds_no_more_arrays_than_a_short_one():
    loop = run(make("loss=mse", "diagnostics.every=10"), 100)
    before = len(jax.live_arrays())
    run(loop, 300)
    assert (
        len(jax.live_arrays()) <= before + 100
    )  # the values of pending updates; one array per step would be 300
    loop.close()
