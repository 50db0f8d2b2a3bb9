"""Many seeds in one run, from the command line to the pictures."""

import json

import numpy as np
import pytest

from rlcls import collect, compare, evaluate, plot, train, trained
from rlcls._errors import UserError
from rlcls.cli import build, config_file, evaluators, resources, run_config
from rlcls.cli.compose import compose
from rlcls.datasets import Mixture, Recording
from rlcls.plotting import load, load_each
from rlcls.runs import metrics
from rlcls.runs.folder import read_config
from rlcls.runs.lanes import lanes, settings

pytest.importorskip("gymnax")

PROBE = ["env=probe", "game=probe/policy", "loop=compiled", "recipe=minatar", "loss=mse", "env.num_envs=4"]
PROBE += ["replay.capacity=2000", "replay.min_size=200", "logging.every=400", "logging.tensorboard=false"]
PROBE += [
    "eval.every=800",
    "eval.episodes=4",
    "checkpoint.every=800",
    "backbone.hidden=[16]",
    "agent.learning_rate=1e-2",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled") / "run"
    assert train.main([*PROBE, "seeds=3", "steps=1600", f"run_dir={folder}"]) == 0
    return folder


def test_a_run_of_three_seeds_writes_their_mean_and_each(finished):
    lines = metrics.read(finished)
    assert [line["agent_steps"] for line in lines if line["kind"] == "train"] == [400, 800, 1200, 1600]
    evaluation = [line for line in lines if line["kind"] == "eval"][-1]
    assert evaluation["return_mean"] == pytest.approx(np.mean(evaluation["return_mean_each"]))
    assert np.shape(evaluation["returns_each"]) == (3, 4)


def test_a_run_that_is_extended_equals_one_that_was_not(finished, tmp_path):
    folder = tmp_path / "run"
    assert train.main([*PROBE, "seeds=3", "steps=800", f"run_dir={folder}"]) == 0
    assert train.main([*PROBE, "seeds=3", "steps=1600", f"run_dir={folder}"]) == 0
    assert metrics.same(finished, folder)


def test_a_seed_of_three_is_the_run_of_that_seed(finished, tmp_path):
    folder = tmp_path / "alone"
    assert train.main([*PROBE, "seed=2", "steps=1600", f"run_dir={folder}"]) == 0
    kept = ("kind", "agent_steps", "loss", "episode_return", "return_mean", "q_mean")
    ours, theirs = (
        [{name: row[name] for name in kept if name in row} for row in each.rows]
        for each in (load(folder), load_each(finished)[2])
    )
    assert ours == theirs


def test_each_seed_is_evaluated_loaded_compared_and_drawn(finished, tmp_path, capsys):
    assert evaluate.main([str(finished), "eval.episodes=3"]) == 0
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].split()[:3] == ["run", "lane", "episodes"]
    assert [row.split()[1] for row in table[1:]] == ["0", "1", "2"]
    assert evaluate.main([str(finished), "eval.episodes=2", "lane=1"]) == 0
    stored = json.loads((finished / "evaluations" / "1600_lane=1_episodes=2.json").read_text())
    assert stored["seed"] == 1 and stored["episodes"] == 2
    agent, acting, spec = trained.load(finished, lane=2)
    assert agent.q_values(acting, np.zeros((1, *spec.observation.shape), np.float32)).shape == (1, 2)
    assert compare.main([str(finished)]) == 0
    assert "mse          3     1" in capsys.readouterr().out
    assert plot.main([str(finished), f"out={tmp_path / 'c.png'}"]) == 0
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_lists_make_settings_that_train_together(tmp_path):
    folder = tmp_path / "settings"
    lists = ["agent.learning_rate=[1e-3,1e-2]", "returns.high=[5,9]"]
    options = [option for option in PROBE if not option.startswith(("agent", "loss"))]
    assert train.main([*options, "loss=hlgauss", *lists, "seeds=2", "steps=800", f"run_dir={folder}"]) == 0
    config = read_config(folder)
    made = [(each.agent.learning_rate, each.loss.vmax) for each in settings(config)]
    assert made == [(1e-3, 5.0), (1e-3, 9.0), (1e-2, 5.0), (1e-2, 9.0)]
    assert [each.seed for each in lanes(config)] == [0, 1] * 4
    lines = metrics.read(folder)
    assert len(lines[-1]["return_mean_each"]) == 8
    assert compare.main([str(folder)]) == 0


def test_the_last_value_of_an_option_given_twice_wins():
    options = ["env=minatar", "game=Breakout", "agent.learning_rate=[1e-4,1e-3]"]
    assert "settings" in compose(options)
    assert "settings" not in compose([*options, "agent.learning_rate=1e-2"])


def test_settings_can_be_named_one_by_one():
    config = compose(
        [*PROBE, "loss=hlgauss", "settings=[{agent.learning_rate:1e-4,loss.num_bins:21},{loss.num_bins:31}]"]
    )
    made = [(each.agent.learning_rate, each.loss.num_bins) for each in settings(config)]
    assert made == [(1e-4, 21), (1e-2, 31)]


def test_the_default_folder_names_the_seeds():
    config = compose(["env=minatar", "game=Breakout", "seeds=10", "seed=5"])
    assert run_config.run_dir(config, "Breakout-MinAtar").name.startswith(
        "dqn-hlgauss-Breakout-MinAtar-s5-14-"
    )


OFFLINE = ["agent=cql", "env=probe", "game=probe/policy", "recipe=minatar", "loop=compiled", "data=recording"]
OFFLINE += ["backbone.hidden=[16]", "agent.learning_rate=1e-2", "eval.every=20", "eval.episodes=4"]
OFFLINE += ["logging.every=20", "logging.tensorboard=false", "checkpoint.every=20", "seeds=2"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "rows"
    probe = ["env=probe", "game=probe/policy", "env.num_envs=4"]
    assert collect.main([*probe, "policy=random", "steps=400", f"out={folder}"]) == 0
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["loss=hlgauss", "agent.target=sarsa", "data.reward_noise=0.3"],
        ["loss=mse", "agent.target=monte_carlo", "agent.alpha=[0,0.1]"],
        ["agent=dqn", "loss=mse"],
        ["agent=bc"],
    ],
    ids=" ".join,
)
def test_seeds_learn_from_a_recording_and_resume_to_the_same_metrics(options, recorded, tmp_path):
    command = [*OFFLINE, *options, f"data.path={recorded}"]
    command += ["data.held_out=0.2"] if "agent.target=sarsa" in options else []
    if "data.held_out=0.2" in command:
        command += ["+evals.held_out._target_=rlcls.evaluation.HeldOutEvaluator", "+evals.held_out.every=20"]
    assert train.main([*command, "steps=40", f"run_dir={tmp_path / 'whole'}"]) == 0
    for steps in (20, 40):
        assert train.main([*command, f"steps={steps}", f"run_dir={tmp_path / 'halves'}"]) == 0
    assert metrics.same(tmp_path / "whole", tmp_path / "halves")
    lines = metrics.read(tmp_path / "whole")
    assert [(line["kind"], line["updates"]) for line in lines if line["kind"] == "train"] == [
        ("train", 20),
        ("train", 40),
    ]
    lanes_of_run = 4 if "agent.alpha=[0,0.1]" in options else 2
    assert np.shape(lines[-1]["return_mean_each" if "return_mean" in lines[-1] else "td_error_each"]) == (
        lanes_of_run,
    )
    config = config_file.overrides(tmp_path / "whole" / "config.yaml", [])
    assert compose(config) == read_config(tmp_path / "whole")
    assert trained.load(tmp_path / "whole", lane=1).spec.num_actions == 2


def test_each_seed_has_the_noise_and_the_held_out_episodes_of_a_run_of_its_own(recorded):
    options = [*OFFLINE, f"data.path={recorded}", "data.reward_noise=0.5", "data.held_out=0.3", "seed=4"]
    config = compose(options)
    of_seeds = build._data_of_seeds(config, config, build.dataset(config))
    alone = build.dataset(lanes(config)[1])
    assert list(of_seeds) == [4, 5] and alone.seed == 5
    for name, column in of_seeds[5].arrays().items():
        np.testing.assert_array_equal(column, alone.arrays()[name])


def test_evaluators_read_the_data_of_the_loop(recorded):
    held_out = ["+evals.held_out._target_=rlcls.evaluation.HeldOutEvaluator", "+evals.held_out.every=20"]
    config = compose([*OFFLINE, f"data.path={recorded}", "data.held_out=0.3", *held_out])
    data, env = build.dataset(config), build.environment(config)
    agent = build.agent(config, data.spec)
    loop = build.loop(config, agent, env, data)
    *_, last = evaluators.make(config, loop, agent, {"": env}, data)
    (program,) = loop.settings
    for evaluator, seed in zip(last.evaluator._evaluators, (0, 1), strict=True):
        assert evaluator._data is program.data[seed]


def test_a_lane_is_recorded_with_noise(finished, tmp_path, capsys):
    made = []
    for lane, epsilon in ((0, 0.0), (2, 0.0), (2, 1.0)):
        out = tmp_path / f"{lane}-{epsilon}"
        command = ["policy=run", f"run={finished}", f"lane={lane}", f"epsilon={epsilon}", "steps=200"]
        assert collect.main([*command, f"out={out}"]) == 0
        made.append(Recording(out))
        source = made[-1].manifest.source
        assert (source["lane"], source["epsilon"]) == (lane, epsilon)
    assert made[0].manifest.source["seed"] == 0 and made[0].manifest.rows == 200
    share = [(np.asarray(each.columns.rewards) > 0).mean() for each in made]
    assert share[2] < share[1]
    capsys.readouterr()
    assert collect.main([f"run={finished}", f"out={tmp_path / 'replay'}"]) == 2
    assert "the replays of loop=compiled cannot be recorded; policy=run lane=K" in capsys.readouterr().err
    assert collect.main(["policy=run", f"run={finished}", "lane=3", "steps=9", f"out={tmp_path / 'no'}"]) == 2
    assert "lane=3: the run has 3, 0 to 2" in capsys.readouterr().err


MISFITS_OF_DATA = {
    "replay.n_step=3": "replay.n_step: loop=compiled with data= plays nothing and has no replay; there "
    "it is data.n_step",
    "training.update_period=4": "training.update_period: rlcls.training.OfflineProgram takes no 'update_period'",
    "data.sampling=epochs": "data.sampling=epochs needs loop=offline; loop=compiled draws with replacement",
    "data.held_out=[0.1,0.2] eval.every=[1,2]": "eval.every: expected one number, not [1, 2]",
    "data.games=[probe/policy,probe/policy]": "rows/probe/policy is not a recording",
    "data.successes_only=true data.held_out=0.999999": "has no transition",
    "agent.target=monte": "target must be one of q_learning, sarsa, monte_carlo, not monte",
}


@pytest.mark.untyped
@pytest.mark.parametrize("options", MISFITS_OF_DATA)
def test_what_does_not_fit_data_is_one_line(options, recorded, tmp_path, capsys):
    command = [*OFFLINE, f"data.path={recorded}", "steps=40", f"run_dir={tmp_path / 'run'}"]
    assert train.main([*command, *options.split()]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and MISFITS_OF_DATA[options] in error[0], error


@pytest.mark.untyped
def test_a_recording_that_does_not_fit_into_the_memory_is_one_line(recorded, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(resources, "_ROW", 10**8)
    monkeypatch.setattr(resources, "available", lambda: 2**31)
    command = [*OFFLINE, f"data.path={recorded}", "steps=40", f"run_dir={tmp_path / 'run'}"]
    assert train.main(command) == 2
    error = capsys.readouterr().err
    assert (
        "a recording of 400 rows needs 37.3 GiB of memory, the whole run" in error and "13 would fit" in error
    )


COIN = """
import jax
import numpy as np
from rlcls.spec import Spec
from rlcls.transition import Transition


class Coin:
    spec = Spec(jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((), np.int32), 2, None)

    def sample(self, size, seed, number):
        zeros = np.zeros(size, np.float32)
        return Transition(zeros[:, None], zeros.astype(int), zeros, zeros, zeros[:, None], zeros), ()
"""


@pytest.mark.untyped
def test_data_that_is_not_one_recording_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "coin_for_lanes.py").write_text(COIN)
    monkeypatch.syspath_prepend(tmp_path)
    command = [each for each in OFFLINE if each != "data=recording"] + ["data._target_=coin_for_lanes.Coin"]
    assert train.main([*command, "steps=40", f"run_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith(
        "error: data: loop=compiled samples one recording, as of data=recording, minari, dqn_replay or rl_unplugged"
    )
    with pytest.raises(UserError, match="samples one recording, not a mixture of games, as of"):
        build._check_is_on_device(Mixture.__new__(Mixture))


MISFITS = {
    "env=minatar game=Breakout seeds=0": "seeds: expected at least 1, not 0",
    "seeds=10": "seeds belongs to loop=compiled, not to loop=online",
    "agent.learning_rate=[1e-4,1e-3]": "agent.learning_rate: a list of values needs loop=compiled; --multirun "
    "agent.learning_rate=0.0001,0.001 makes runs one after another",
    "env=minatar game=Breakout seed=[1,2]": "seed: expected a whole number, not [1, 2]",
    "env=minatar game=Breakout agent.learning_rate=[1e-4,yes]": "agent.learning_rate: expected different numbers in "
    "the list, not [0.0001, 'yes']",
    "env=minatar game=Breakout agent.learning_rate=[1e-4,1e-4]": "agent.learning_rate: expected different numbers in "
    "the list, not [0.0001, 0.0001]",
    "env=minatar game=Breakout logging.every=[1000,2000]": "logging.every: expected one number, not [1000, 2000]; all "
    "that train together share it",
    "env=minatar game=Breakout seed=4294967295 seeds=2": "seeds must be different numbers below 2**32",
    "env=minatar game=Breakout settings=[]": "settings: expected options and their numbers, [{agent.",
    "env=minatar game=Breakout settings=[{agent.lr:1}]": "unknown option 'agent.lr'",
    "env=minatar game=Breakout settings=[{loss:mse}]": "settings: expected options and their numbers",
    "env=minatar game=Pong": "unknown game 'Pong' of MinAtar",
    "env=gymnasium env.id=CartPole-v1 loop=compiled": "loop=compiled needs an environment of pure functions",
    "env=minatar game=Breakout env.num_envs=[4,8]": "settings that train together must have equal env.num_envs",
    "env=minatar game=Breakout seeds=100000": "100000 times a network of 71,065 parameters needs",
}


@pytest.mark.untyped
@pytest.mark.parametrize("options", MISFITS)
def test_what_does_not_fit_is_one_line(options, tmp_path, capsys):
    assert train.main([*options.split(), "steps=1000", f"run_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and MISFITS[options] in error[0], error
    assert not (tmp_path / "run").exists()
