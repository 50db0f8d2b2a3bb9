"""Many seeds in one run, from the command line to the pictures."""

import json

import numpy as np
import pytest

from rlcls import compare, evaluate, plot, train, trained
from rlcls.cli.compose import compose
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


def test_of_an_option_given_twice_the_last_one_holds():
    options = ["env=minatar", "game=Breakout", "agent.learning_rate=[1e-4,1e-3]"]
    assert "settings" in compose(options)
    assert "settings" not in compose([*options, "agent.learning_rate=1e-2"])


def test_the_default_folder_names_the_seeds():
    from rlcls.cli import build

    config = compose(["env=minatar", "game=Breakout", "seeds=10", "seed=5"])
    assert build.run_dir(config, "Breakout-MinAtar").name.startswith("dqn-hlgauss-Breakout-MinAtar-s5-14-")


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
