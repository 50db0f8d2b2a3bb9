"""`python -m rlcls.evaluate` plays the episodes of the run's own evaluation, and films one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from omegaconf import OmegaConf

from rlcls import evaluate, evaluation, runs, train
from rlcls.runs import metrics

TINY = [
    "game=Pong",
    "steps=96",
    "env.num_envs=4",
    "replay.capacity=200",
    "replay.min_size=16",
    "training.batch_size=4",
    "eval.every=96",
    "eval.episodes=2",
    "eval.epsilon=0.25",  # so that the random numbers matter
    "checkpoint.every=48",
    "logging.every=48",
    "logging.tensorboard=false",
]


def python(*arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    assert train.main([*TINY, f"run_dir={folder}"]) == 0
    return folder


def test_the_command_plays_the_episodes_of_the_runs_own_evaluation_and_films_the_first(run_dir):
    done = python("-m", "rlcls.evaluate", f"run={run_dir}", "video=true")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (own,) = [row for row in metrics.read(run_dir) if row["kind"] == "eval"]
    result = json.loads((run_dir / "evaluations" / "96.json").read_text())
    assert result["returns"] == own["returns"]
    assert result["return_mean"] == own["return_mean"] and result["length_mean"] == own["length_mean"]
    assert result["protocol"]["repeat_action_probability"] == 0.25 and result["epsilon"] == 0.25
    assert "episodes  mean return" in done.stdout

    film = run_dir / "videos" / "96.mp4"
    assert [entry.name for entry in film.parent.iterdir()] == ["96.mp4"]
    facts = imageio.immeta(film)
    assert facts["codec"] == "h264" and facts["size"] == (480, 630)
    assert facts["fps"] == 15  # an agent step is four frames of sixty in a second
    count, _ = imageio_ffmpeg.count_frames_and_secs(film)
    assert count == result["lengths"][0] + 1
    early, late = (imageio.imread(film, index=index).astype(int) for index in (100, 300))
    assert np.abs(early - late)[:, :, 0].max() > 50  # something moves
    assert np.ptp(early, axis=2).max() > 50  # in colour


def test_other_options_have_a_result_file_of_their_own(run_dir, capsys):
    own = run_dir / "evaluations" / "96.json"
    before = own.read_bytes() if own.exists() else None
    options = ["eval.episodes=1", "seed=5", "env.protocol=atari100k", "eval.epsilon=1", "device=cpu"]
    assert evaluate.main([f"run={run_dir}", *options]) == 0, capsys.readouterr().err
    path = Path(capsys.readouterr().out.splitlines()[-1])
    result = json.loads(path.read_text())
    assert path.name == "96_seed=5_episodes=1_epsilon=1.0_protocol=atari100k_device=cpu.json"
    assert (result["seed"], result["episodes"], result["epsilon"]) == (5, 1, 1.0)
    assert result["protocol"]["repeat_action_probability"] == 0 and result["protocol"]["name"] == "atari100k"
    assert (own.read_bytes() if own.exists() else None) == before


def test_a_folder_that_cannot_be_written_is_refused_before_an_episode_is_played(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(evaluation.EpisodeEvaluator, "play", lambda *arguments, **more: pytest.fail("played"))
    film = run_dir / "config.yaml" / "film.mp4"
    assert evaluate.main([f"run={run_dir}", "eval.episodes=1", f"video={film}"]) == 2
    assert capsys.readouterr().err == f"error: cannot write to {film.parent}: File exists\n"


def test_what_cannot_be_evaluated_is_one_line_and_exit_code_2(run_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_bytes((run_dir / "config.yaml").read_bytes())
    mistakes = {
        f"run={tmp_path}": f"{tmp_path} is not a run folder: it has no config.yaml; it contains run folders, such as "
        f"{tmp_path / 'empty'}",
        f"run={tmp_path / 'empty'}": f"{tmp_path / 'empty'} has no checkpoint yet",
        f"run={run_dir} checkpoint=7": f"{run_dir} has no checkpoint 7 (latest, 48, 96)",
    }
    # One process runs all commands, because imports take most of the time.
    calls = "; ".join(f"print(main({arguments.split()!r}))" for arguments in mistakes)
    done = python("-c", f"from rlcls.evaluate import main; {calls}")
    assert done.stdout.split() == ["2"] * len(mistakes)
    assert done.stderr.splitlines() == [f"error: {message}" for message in mistakes.values()]
    assert [entry.name for entry in (tmp_path / "empty").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("arguments", [["run=a,b"], ["a", "b"], ["run=a", "b"]])
def test_several_runs_are_one_row_each_of_a_table(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "read_config", lambda run_dir: OmegaConf.create({"env": {}}))
    rows = {"a": {"episodes": "10", "mean return": "-3.50"}, "b": {"episodes": "9", "mean return": "12.25"}}
    monkeypatch.setattr(evaluate, "_evaluate", lambda run_dir, *options: rows[str(run_dir)])
    assert evaluate.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run  episodes  mean return",
        "  a        10        -3.50",
        "  b         9        12.25",
    ]


def test_a_folder_whose_name_has_a_comma_is_one_run(tmp_path):
    folder = tmp_path / "a,b"
    folder.mkdir()
    assert evaluate._run_dirs(str(folder)) == [folder]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a", "b", "video=x.mp4"],
            "video=x.mp4 is one film, and there are 2 runs; video=true films each",
        ),
        (["run=a", "run=b"], "run is given twice: a and b"),
        (["eval.episodes=3"], "name the run folder to evaluate: run=runs/...; --help says more"),
        (
            ["run=a", "vido=true"],
            "unknown option 'vido'; did you mean 'video'? (checkpoint, device, env.protocol, "
            "eval.episodes, eval.epsilon, film, lane, run, seed, video)",
        ),
        (["run=a", "video=a.avi"], "video=a.avi must be true, false or a file that ends in .mp4"),
        (["run=a", "eval.episodes=0"], "eval.episodes=0 must be a whole number between 1 and 1000000000"),
        (["run=a", "seed=-1"], "seed=-1 must be a whole number between 0 and 4294967295"),
        (["run=a", "eval.epsilon=2"], "eval.epsilon=2 must be a number between 0 and 1"),
        (["run=a", "eval.epsilon=low"], "eval.epsilon=low must be a number between 0 and 1"),
        (["run=a", "device=gpus"], "unknown device 'gpus'; did you mean 'gpu'? (cpu, gpu, tpu)"),
        (["run="], "run needs a value: run=..."),
    ],
)
def test_a_mistyped_option_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert evaluate.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_help_is_readable(capsys):
    assert evaluate.main(["--help"]) == 0
    assert "usage: python -m rlcls.evaluate" in capsys.readouterr().out
