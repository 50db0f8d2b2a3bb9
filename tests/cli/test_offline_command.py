"""`python -m rlcls.train` learns from recorded data, stops, and resumes to the same bits."""

import contextlib
import json
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlcls import evaluate, trained
from rlcls._errors import UserError
from rlcls.cli import build, evaluators
from rlcls.cli.compose import compose
from rlcls.evaluation.scores import SCORES
from rlcls.runs import checkpoint, metrics
from rlcls.train import main

# A data set of both actions in both states of `probe/policy`. STOP_AT is no option, because signals are not options.
MODULE = """
import signal

import jax
import numpy as np

from rlcls.envs.probe import PROBES
from rlcls.spec import Spec
from rlcls.transition import Transition

PROBE, STOP_AT = PROBES["probe/policy"], None


class Recorded:
    identity = {"probe": "4 rows"}

    def __init__(self, games=0):
        self._games, self.spec = games, PROBE.spec
        if games:
            frames, game = self.spec.observation, jax.ShapeDtypeStruct((), np.int32)
            self.spec = self.spec._replace(observation={"frames": frames, "game": game})

    def sample(self, size, seed, number):
        if number == STOP_AT:
            signal.raise_signal(signal.SIGTERM)
        states, actions, game = np.random.default_rng([seed, number]).integers(0, 2, (3, size), np.int32)
        return self.at(states, actions, game), (states,)

    def held_out(self, most):
        return np.divmod(np.arange(4, dtype=np.int32), 2) + (np.zeros(4, np.int32),)

    def at(self, states, actions, game):
        frames, rewards = PROBE.observations()[states], np.array(PROBE.rewards, np.float32)[states, actions]
        if self._games == ["probe/policy", "probe/action"]:
            frames = np.where(game == 0, frames[:, 0], 0.0).astype(np.float32)[:, None]
            rewards = np.where(game == 0, rewards, 2.0 * actions - 1).astype(np.float32)
        elif self._games:  # the rewards of the second game are the negated ones of the first
            rewards = np.where(game == 0, rewards, -rewards)
        if self._games:
            frames = {"frames": frames, "game": game}
        ones = np.ones(len(states), np.float32)
        return Transition(frames, actions, rewards, 0 * ones, frames, ones)
"""
COMMAND = ["agent=cql", "loss=hlgauss", "data._target_=recorded.Recorded", "env=probe", "game=probe/policy"]
COMMAND += [
    "recipe=vector",
    "backbone.hidden=[16]",
    "returns.low=-2",
    "returns.high=2",
    "training.batch_size=16",
]
COMMAND += ["logging.every=20", "logging.tensorboard=false", "checkpoint.every=1000", "eval.episodes=4"]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    (tmp_path / "recorded.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import recorded

    yield recorded
    sys.modules.pop("recorded")


def lines(run_dir, kind):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def leaves(run_dir):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore((checkpoint.load(run_dir)[0].folder / "tree").resolve())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_cql_learns_from_data_and_a_stopped_run_resumes_to_the_same_bits(recorded, tmp_path, capsys):
    held_out = "rlcls.evaluation.HeldOutEvaluator"
    command = [
        *COMMAND,
        "steps=60",
        "eval.every=30",
        f"+evals.held_out._target_={held_out}",
        "+evals.held_out.every=30",
    ]
    assert main([*command, "run_dir=through"]) == 0, capsys.readouterr().err
    recorded.STOP_AT = 35
    assert main([*command, "run_dir=broken"]) == 128 + 15
    recorded.STOP_AT = None
    before, recorded.Recorded.identity = recorded.Recorded.identity, {"probe": "5 rows"}
    capsys.readouterr()
    assert main([*command, "run_dir=broken"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: the data has changed since the checkpoint: probe was 4 rows and is 5 rows; "
    )
    assert len(error.splitlines()) == 1
    recorded.Recorded.identity = before
    assert main([*command, "run_dir=broken"]) == 0
    assert "resuming broken at update 40" in capsys.readouterr().out
    through, broken = tmp_path / "through", tmp_path / "broken"
    assert metrics.same(through, broken)
    for one, other in zip(leaves(through), leaves(broken), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["updates"] for row in lines(broken, "train")] == [20, 40, 60]
    assert {"loss", "cql_gap", "td_divergence"} <= lines(broken, "train")[0].keys()
    assert len(lines(broken, "eval")) == len(lines(broken, "held_out")) == 2
    assert lines(broken, "held_out")[0].keys() >= {"td_error", "cql_gap", "agreement", "transitions"}


def test_a_signal_during_the_last_update_stops_nothing(recorded, capsys):
    recorded.STOP_AT = 19
    assert main([*COMMAND, "steps=20", "eval.every=0", "run_dir=run"]) == 0
    assert "finished 20 of 20 updates" in capsys.readouterr().out


def test_an_environment_that_differs_from_the_data_is_reported_before_the_backbone(recorded, capsys):
    command = [option for option in COMMAND if not option.startswith(("env", "game", "backbone"))]
    assert main([*command, "env=gymnasium", "backbone=data_efficient", "run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: the data has observations ") and "and CartPole-v1 has observations" in error
    )
    assert error.endswith(": choose env= as the data, or eval.every=0\n") and error.count("\n") == 1


@pytest.mark.parametrize("game", [0, 1])
def test_one_of_several_games_is_played_by_its_number(game, recorded, tmp_path, capsys):
    games = ["agent.games=2", "+data.games=2", f"+env.number={game}", "steps=200", "eval.every=200"]
    assert main([*COMMAND, *games, "run_dir=run"]) == 0, capsys.readouterr().err
    assert lines(tmp_path / "run", "eval")[-1]["return_mean"] == (1, -1)[game]


def test_each_of_several_games_is_played_in_one_run(recorded, tmp_path, capsys):
    games = ["agent.games=2", "+data.games=[probe/policy,probe/action]", "steps=200", "eval.every=200"]
    assert main([*COMMAND, *games, "run_dir=run", "checkpoint.keep_best=true"]) == 2
    assert (
        "checkpoint.keep_best=true compares one return, and 2 games have one each" in capsys.readouterr().err
    )
    assert main([*COMMAND, *games, "run_dir=run"]) == 0, capsys.readouterr().err
    for game in ("probe/policy", "probe/action"):
        assert lines(tmp_path / "run", f"eval.{game}")[-1]["return_mean"] == 1
    assert evaluate.main(["run=run", "device=cpu"]) == 0, capsys.readouterr().err
    assert (
        capsys.readouterr().out.count("probe/action") >= 2
    )  # above its own result, and in the table of both
    names = sorted(path.name for path in (tmp_path / "run" / "evaluations").iterdir())
    assert names == [f"200_game=probe-{name}_device=cpu.json" for name in ("action", "policy")]


@pytest.mark.parametrize("several", [False, True])
def test_the_evaluate_command_plays_the_episodes_of_an_offline_run(several, recorded, tmp_path, capsys):
    games = ["agent.games=2", "+data.games=2", "+env.number=1"] if several else []
    assert main([*COMMAND, *games, "steps=40", "eval.every=40", "run_dir=run"]) == 0, capsys.readouterr().err
    assert evaluate.main(["run=run", "device=cpu"]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "evaluations" / "40_device=cpu.json").read_text())
    (own,) = lines(tmp_path / "run", "eval")
    assert (result["returns"], result["updates"]) == (own["returns"], 40)


def test_the_evaluate_command_normalises_by_the_recorded_returns_without_opening_the_data(
    recorded, monkeypatch, capsys
):
    monkeypatch.setitem(SCORES, "probe/policy", (0.0, 1.0, 1.0))  # random, human, DQN
    monkeypatch.setattr(recorded.Recorded, "behaviour_returns", {"probe/policy": 0.5}, raising=False)
    assert main([*COMMAND, "steps=200", "eval.every=200", "run_dir=run"]) == 0, capsys.readouterr().err
    monkeypatch.setattr(recorded.Recorded, "__init__", None)
    capsys.readouterr()
    assert evaluate.main(["run=run", "device=cpu"]) == 0, capsys.readouterr().err
    names, values = (line.split("  ") for line in capsys.readouterr().out.splitlines()[-3:-1])
    shown = dict(zip(filter(None, map(str.strip, names)), filter(None, map(str.strip, values)), strict=True))
    assert shown["mean return"] == "1.00" and shown["behaviour normalised"] == "2.00"


def test_a_run_whose_data_differs_from_its_environment_is_loaded_with_the_spec_of_the_data(
    recorded, tmp_path, capsys
):
    options = ["agent.games=2", "+data.games=2", "steps=10", "eval=held_out", "eval.every=10", "run_dir=run"]
    command = [option for option in COMMAND if option != "eval.episodes=4"]
    assert main([*command, *options]) == 0, capsys.readouterr().err
    agent, acting, spec = trained.load(tmp_path / "run")
    assert spec == recorded.Recorded(games=2).spec
    observations = jax.tree.map(lambda leaf: np.zeros((3, *leaf.shape), leaf.dtype), spec.observation)
    assert agent.act(acting, observations, jax.random.key(0), 0.0).shape == (3,)
    assert evaluate.main(["run=run"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: run cannot be evaluated in its environment: the data has "
    )
    assert not (tmp_path / "run" / "evaluations").exists()


REFUSED = {
    "agent.target=sarsa": "agent: target=sarsa needs batches with next_action, but these have none: ",
    "agent=bc env=gymnasium": "the data has observations float32 [1] and actions 2, and CartPole-v1 has observations "
    "float32 [4] and actions 2: choose env= as the data, or eval.every=0",
    "+data.games=2 +env.number=1": "agent: CQL needs the option games, the number of games, for observations with "
    "frames and game",
    "+data.games=2 agent.games=2": "the data has observations ['frames'] float32 [1], ['game'] int32 [] and actions 2, "
    "and probe/policy has observations float32 [1] and actions 2: +env.number=K makes it the K-th of several games",
    "agent.games=2": "agent: games=2 needs observations with frames and game, not one array",
    "agent.alpha=-1": "agent: alpha must be at least 0, not -1.0",
}


@pytest.mark.untyped
@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_fit_is_one_line_and_writes_nothing(options, recorded, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    command = [
        option for option in COMMAND if not ("env=gymnasium" in options and option.startswith("game="))
    ]
    assert main([*command, *options.split(), "run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {REFUSED[options]}") and len(error.splitlines()) == 1, error
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.parametrize("options", [[], ["eval.every=0"]])
def test_data_of_another_game_with_equal_actions_is_refused_where_evaluations_play(recorded, options):
    config = compose([*COMMAND, *options])
    env, data = build.one_environment(config), recorded.Recorded()
    env.name, data.identity = "SpaceInvaders", {"Pong": "500,000 rows"}
    message = "the data is of Pong, and evaluations play SpaceInvaders: choose game=Pong, or eval.every=0"
    with contextlib.nullcontext() if options else pytest.raises(UserError, match=message):
        evaluators.check_task(config, {env.name: env}, data)
    data.identity = {"SpaceInvaders": "500,000 rows"}
    evaluators.check_task(config, {env.name: env}, data)
