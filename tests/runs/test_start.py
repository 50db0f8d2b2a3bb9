"""A run continues from whole files, names damaged ones, and loses no results."""

import json
import os
import re
import shutil
import signal
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from rlcls import evaluate, plot, train, trained
from rlcls._errors import UserError
from rlcls.runs import Checkpoints, Metrics, Start, checkpoint, folder, metrics
from rlcls.training import Online, Saved

SHORT = [
    "env=probe",
    "game=probe/two_step",
    "backbone=mlp",
    "backbone.hidden=[8]",
    "steps=600",
    "env.num_envs=4",
    "replay.capacity=1000",
    "replay.min_size=100",
    "training.batch_size=4",
    "training.update_period=8",
    "eval.every=300",
    "eval.episodes=2",
    "checkpoint.every=200",
    "logging.every=100",
    "logging.tensorboard=false",
]
PROMISED = "the checkpoints of run are gone; the last one was 600"
RESTART = "resume=restart (all results are set aside, and the run starts again)"


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """A function that runs a command in this process, in the test's folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments):
        code = command.main(list(arguments))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 600 agent steps, with checkpoints at 400 and 600."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert train.main([*SHORT, f"run_dir={path}"]) == 0
    return path


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of the finished run, as `run` in the test's folder."""
    return shutil.copytree(finished, tmp_path / "run")


def resume(call, *overrides):
    return call(train, *SHORT, "run_dir=run", "steps=800", *overrides)


def contents(run_dir):
    return {
        str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()
    }


def steps_of(run_dir, kind="train"):
    return [row["agent_steps"] for row in metrics.read(run_dir) if row["kind"] == kind]


def refused(result, line):
    code, out, err = result
    assert code == 2 and err == f"error: {line}\n" and not out


def test_a_run_without_its_replay_is_refused_evaluated_and_goes_on_from_its_weights(call, run_dir):
    shutil.rmtree(run_dir / "replay")
    before = contents(run_dir)
    segment = json.loads((run_dir / f"checkpoints/{600:012d}/manifest.json").read_text())["segments"][0]
    weights = "resume=weights (continues from the weights at 600 and fills the replay again)"
    damage = f"checkpoint run/checkpoints/{600:012d} is damaged ({segment} is missing)"
    refused(resume(call), f"{damage}; put the files back, or give {weights} or {RESTART}")
    assert contents(run_dir) == before
    assert call(evaluate, "run=run")[0] == 0

    code, out, err = resume(call, "resume=weights")
    assert code == 0 and "resuming run at agent step 600" in out
    goes_on = f"the run continues from the weights of run/checkpoints/{600:012d}; the replay is filled again"
    assert err.splitlines() == [f"note: {damage}", f"note: {goes_on}"]
    assert steps_of(run_dir) == [100, 200, 300, 400, 500, 600, 700, 800] and steps_of(run_dir, "refill") == [
        600
    ]
    assert checkpoint.load(run_dir)[0].steps == 800
    updates = {row["agent_steps"]: row["updates"] for row in metrics.read(run_dir)}
    assert updates[600] == updates[700] == (600 - 100) // 8 and updates[800] == updates[600] + 100 // 8
    code, out, err = resume(call, "resume=weights", "steps=900")
    assert code == 0 and err == f"note: resume=weights is not needed: run/checkpoints/{800:012d} is whole\n"
    assert steps_of(run_dir)[-2:] == [800, 900]


def test_a_run_without_its_checkpoints_is_refused_and_begins_again_with_its_results_set_aside(call, run_dir):
    lines = (run_dir / "metrics.jsonl").read_bytes()
    shutil.rmtree(run_dir / "checkpoints")
    shutil.rmtree(run_dir / "replay")
    (run_dir / "notes.txt").write_text("mine")
    before = contents(run_dir)
    for overrides in ([], ["resume=weights"]):
        refused(resume(call, *overrides), f"{PROMISED}; put the files back, or give {RESTART}")
    assert contents(run_dir) == before
    code, out, err = resume(call, "resume=restart", "steps=200")
    assert code == 0 and "resuming" not in out
    again = "the run starts again; run/set_aside_1 holds its old results"
    assert err.splitlines() == [f"note: {PROMISED}", f"note: {again}"]
    assert steps_of(run_dir) == [100, 200]
    aside = run_dir / "set_aside_1"
    assert (aside / "metrics.jsonl").read_bytes() == lines and (run_dir / "notes.txt").exists()
    assert call(plot, "run/set_aside_1")[0] == 0
    assert (aside / "run.json").exists() and (run_dir / "run.json").exists()
    code, out, err = resume(call, "resume=restart", "steps=300")
    assert code == 0 and "resuming" in out and "resume=restart is not needed" in err
    assert not (run_dir / "set_aside_2").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(call, run_dir):
    for name in ("checkpoints", "replay"):
        shutil.rmtree(run_dir / name)
    (run_dir / "last_checkpoint.json").unlink()
    code, _, err = resume(call, "steps=200")
    assert code == 0 and not err and steps_of(run_dir) == [100, 200]


def test_a_checkpoint_that_is_gone_while_the_one_before_is_whole_is_a_note(call, run_dir):
    shutil.rmtree(run_dir / f"checkpoints/{600:012d}")
    code, out, err = resume(call, "steps=600")
    assert code == 0 and "resuming run at agent step 400" in out
    assert err == "note: checkpoint 600 is gone; falling back to the one before\n"
    assert steps_of(run_dir) == [100, 200, 300, 400, 500, 600]


def test_a_newer_checkpoint_that_is_damaged_is_set_aside_once_nothing_refuses_the_run(call, run_dir):
    newest = run_dir / f"checkpoints/{600:012d}"
    segment = json.loads((newest / "manifest.json").read_text())["segments"][-1]
    (run_dir / segment).unlink()
    lines, results = (run_dir / "metrics.jsonl").read_bytes(), contents(newest)
    (run_dir / "metrics.jsonl").write_text("{}\n")
    before = contents(run_dir)
    assert resume(call, "steps=700")[0] == 2 and contents(run_dir) == before
    (run_dir / "metrics.jsonl").write_bytes(lines)
    code, _, err = resume(call, "steps=700")
    damage = f"checkpoint run/checkpoints/{600:012d} is damaged ({segment} is missing)"
    assert code == 0 and err.splitlines() == [
        f"note: {damage}; falling back to the one before",
        f"note: run/set_aside_1 holds checkpoints/{600:012d}",
    ]
    assert contents(run_dir / f"set_aside_1/checkpoints/{600:012d}") == results
    assert checkpoint.load(run_dir)[0].steps == 700 and call(evaluate, "run=run/set_aside_1")[0] == 0


def test_a_checkpoint_of_another_version_is_one_line(call, run_dir, monkeypatch):
    monkeypatch.setitem(metrics._BEGINNING, "new", 0)
    refused(
        resume(call),
        f"another version of rlcls wrote run/checkpoints/{600:012d}; continue with that version, or give {RESTART}",
    )


def test_the_best_checkpoint_is_carried_on_as_long_as_it_exists(run_dir):
    newest = checkpoint.load(run_dir)[0]
    for steps, carried in ((400, True), (500, False)):
        best = {"steps": steps, "return_mean": 1.0}
        saved = newest._replace(counters=newest.counters | {"best": best})
        assert Start(saved, True, None, []).best == (best if carried else None)


@pytest.mark.untyped
def test_a_loop_that_cannot_deal_says_how_many_processes_can_go_on():
    loop = types.SimpleNamespace(save=lambda: Saved({}, {}, {}))
    newest = types.SimpleNamespace(hosts=2)
    message = (
        r"SimpleNamespace has no `deal`, so only as many processes as wrote the checkpoint \(2\) can continue"
    )
    with pytest.raises(UserError, match=message):
        begun = Start(newest, True, None, [], is_dealt=True)
        train._restore(types.SimpleNamespace(loop=loop), begun, newest, lambda: False)


def test_a_signal_while_actions_are_played_again_ends_the_resume_and_changes_no_result(
    call, run_dir, monkeypatch
):
    play = Online._replay_actions

    def interrupted(self, tick):
        os.kill(os.getpid(), signal.SIGTERM)
        play(self, tick)

    monkeypatch.setattr(Online, "_replay_actions", interrupted)
    before = contents(run_dir)
    code, out, _ = resume(call)
    assert code == 128 + signal.SIGTERM
    assert out.endswith(
        "stopped by SIGTERM before training continued; the same command continues from there\n"
    )
    assert contents(run_dir) | {"config.yaml": b""} == before | {"config.yaml": b""}


def garbled(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(["{}\n", *lines[1:]]))
    return "run/metrics.jsonl, line 1: kind must be a text, not null"


def shortened(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:5]))
    return f"run/metrics.jsonl has 5 lines, but the checkpoint needs {len(lines)}"


def deleted(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    return "run/metrics.jsonl is missing"


def replaced_by_a_folder(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "metrics.jsonl").mkdir()
    return "cannot read run/metrics.jsonl: Is a directory"


@pytest.mark.parametrize("harm", [garbled, shortened, deleted, replaced_by_a_folder])
def test_damaged_metrics_are_named_at_the_start_with_the_ways_to_go_on(harm, call, run_dir):
    damage = harm(run_dir)
    before = contents(run_dir)
    ways = f"resume=weights (it is set aside, and new lines begin) or {RESTART}"
    refused(resume(call), f"{damage}; repair it or put it back, or give {ways}")
    assert contents(run_dir) == before
    assert call(evaluate, "run=run")[0] == 0


def test_damaged_metrics_are_set_aside_and_the_run_goes_on(call, run_dir):
    damage = garbled(run_dir)
    lines = (run_dir / "metrics.jsonl").read_bytes()
    code, _, err = resume(call, "resume=weights")
    aside = "run/set_aside_1 holds metrics.jsonl"
    assert code == 0 and err == f"note: {damage}; new lines begin\nnote: {aside}\n"
    assert steps_of(run_dir) == [700, 800] and (run_dir / "set_aside_1/metrics.jsonl").read_bytes() == lines
    assert not steps_of(run_dir, "refill")  # the replay is whole


def test_missing_metrics_are_not_said_to_be_set_aside(call, run_dir):
    (run_dir / "metrics.jsonl").unlink()
    code, _, err = resume(call, "resume=weights")
    assert code == 0 and "set_aside" not in err and err.endswith("; new lines begin\n")
    assert not (run_dir / "set_aside_1").exists() and steps_of(run_dir) == [700, 800]


def test_a_run_that_began_again_after_damaged_metrics_can_be_resumed(call, run_dir):
    damage = garbled(run_dir)
    code, _, err = resume(call, "resume=restart", "steps=700")
    assert code == 0 and err.startswith(f"note: {damage}\n")
    code, out, err = resume(call)
    assert code == 0 and not err and "resuming run at agent step 700" in out
    assert steps_of(run_dir) == [100, 200, 300, 400, 500, 600, 700, 800]


@pytest.mark.parametrize("text", ["", "[]", '{"python": '])
def test_a_damaged_record_of_versions_is_named_at_the_start(text, call, run_dir):
    (run_dir / "run.json").write_text(text)
    for result in (resume(call), call(plot, "run")):
        code, _, err = result
        assert code == 2 and len(err.splitlines()) == 1
        assert err.startswith("error: cannot read run/run.json: ")
        assert err.endswith("; remove it, and the next training in this folder writes it again\n")
    (run_dir / "run.json").unlink()
    assert resume(call)[0] == 0 and folder.read_facts(run_dir)["environment"] == "probe/two_step"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda config: config.pop("env"), "run/config.yaml: env is missing"),
        (
            lambda config: config.update(choices=None),
            "run/config.yaml: choices must be a group of options, not null",
        ),
        (lambda config: config.update(seed="abc"), "run/config.yaml: seed must be a whole number, not abc"),
        (
            lambda config: config.update(steps="${nope}"),
            "run/config.yaml: steps: Interpolation key 'nope' not found",
        ),
        (
            lambda config: "agent:\n  a: [1\n",
            "cannot read run/config.yaml: while parsing a flow sequence (line 2)",
        ),
    ],
)
def test_a_damaged_configuration_is_named_by_every_command(change, problem, call, run_dir):
    path = run_dir / "config.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    text = change(config)
    path.write_text(text if isinstance(text, str) else OmegaConf.to_yaml(config))
    for result in (resume(call), call(evaluate, "run=run"), call(plot, "run")):
        refused(result, f"{problem}; the command that began the run prints its contents, with --config")


def test_changed_sizes_in_a_configuration_are_named(call, run_dir):
    path = run_dir / "config.yaml"
    path.write_text(path.read_text().replace("hidden:\n  - 8", "hidden:\n  - 9"))
    code, _, err = call(evaluate, "run=run")
    assert code == 2 and len(err.splitlines()) == 1
    assert f"run/checkpoints/{600:012d} does not fit the run's configuration: acting.params" in err
    assert "backbone.hidden is [9] there and [8] here" in resume(call)[2]


def test_a_run_that_has_nothing_to_do_writes_nothing(call, run_dir):
    before = contents(run_dir)
    for steps in (600, 300):
        code, out, _ = call(train, *SHORT, "run_dir=run", f"steps={steps}")
        assert code == 0 and "is finished" in out
    assert contents(run_dir) == before
    shutil.rmtree(run_dir / "replay")
    assert "is finished" in call(train, *SHORT, "run_dir=run")[1]


def test_every_name_that_can_be_printed_is_a_run_folder(call, tmp_path):
    name = "my [2026] work/~a*b?%41#"
    for steps in (200, 400):
        assert call(train, *SHORT, f"run_dir='{name}'", f"steps={steps}", "logging.tensorboard=true")[0] == 0
    path = tmp_path / name
    assert steps_of(path) == [100, 200, 300, 400] and (path / "learning_curve.png").exists()
    assert call(evaluate, f"run={name}")[0] == 0 and (path / "evaluations/400.json").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["my [2026] work"]
    with pytest.raises(UserError, match=r"the run folder '.*\\n.*' has characters that cannot be printed"):
        folder.RunFolder(tmp_path / "a\nb", {}, environment="", protocol={})
    assert not (tmp_path / "a\nb").exists()


FOREIGN = (".DS_Store", ".nfs0001", "notes.txt~", "#notes.txt#", "lost+found")


def test_foreign_entries_are_left_alone(call, tmp_path):
    for place in (tmp_path / "run", tmp_path / "run/checkpoints", tmp_path / "run/replay"):
        place.mkdir(exist_ok=True)
        for name in FOREIGN:
            (place / name).mkdir() if name == "lost+found" else (place / name).write_text(name)
        if place.name == "run":
            assert call(train, *SHORT, "run_dir=run", "steps=200")[0] == 0
    assert resume(call)[0] == 0
    assert all(
        (tmp_path / "run" / place / name).exists()
        for place in ("", "checkpoints", "replay")
        for name in FOREIGN
    )


def test_wandb_without_an_account_leaves_no_folder_that_blocks(call, tmp_path, monkeypatch):
    def init(dir, **options):
        (tmp_path / dir / "wandb").mkdir(exist_ok=True)
        raise RuntimeError("\nno API key\nmore")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    arguments = [*SHORT, "run_dir=run", "steps=200"]
    refused(call(train, *arguments, "logging.wandb=mine"), "logging.wandb=mine: no API key")
    refused(call(train, *arguments, "logging.wandb=mine", "seed=4"), "logging.wandb=mine: no API key")
    shutil.rmtree(tmp_path / "run/wandb")
    refused(call(train, *arguments, "run_dir=other", "logging.wandb=mine"), "logging.wandb=mine: no API key")
    assert not (tmp_path / "other/lock").exists()
    assert call(train, *arguments, "seed=5")[0] == 0


def test_a_signal_at_a_checkpoint_saves_once_and_ends_the_run(call, tmp_path, monkeypatch):
    saves, save, write = [], Checkpoints.save, Metrics.write

    def counted(self, steps, *arguments, **options):
        saves.append(steps)
        return save(self, steps, *arguments, **options)

    def interrupting(self, kind, counts, **values):
        written = write(self, kind, counts, **values)
        if kind == "train" and counts["agent_steps"] == stop_at:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # the signal comes twice, as from a closing terminal
        return written

    monkeypatch.setattr(Checkpoints, "save", counted)
    monkeypatch.setattr(Metrics, "write", interrupting)
    for number, stop_at, checkpoints in ((signal.SIGHUP, 200, [200]), (signal.SIGUSR1, 300, [200, 300])):
        code, out, _ = call(train, *SHORT, "run_dir=run")
        assert code == 128 + number and f"stopped by {number.name} at agent step {stop_at} and saved" in out
        assert saves == checkpoints and checkpoint.load(tmp_path / "run")[0].steps == stop_at


def test_the_best_checkpoint_and_every_so_many_stay(call, tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0, 2.5])
    from rlcls.evaluation import EpisodeEvaluator

    score = lambda *_: {"return_mean": next(scores), "return_std": 0.0, "returns": []}  # noqa: E731
    monkeypatch.setattr(EpisodeEvaluator, "__call__", score)
    options = ["run_dir=run", "checkpoint.keep=1", "checkpoint.keep_best=true", "checkpoint.keep_every=400"]
    options += ["eval.every=100", "checkpoint.every=1000", "steps=400"]
    assert call(train, *SHORT, *options)[0] == 0
    present = [int(path.name) for path in checkpoint.folders(tmp_path / "run")]
    assert present == [200, 400]
    scores = iter([1.0, 2.0, 4.0])
    assert call(train, *SHORT, *options, "steps=700")[0] == 0
    assert [int(path.name) for path in checkpoint.folders(tmp_path / "run")] == [400, 700]
    assert checkpoint.load(tmp_path / "run")[0].counters["best"] == {"steps": 700, "return_mean": 4.0}


def test_evaluations_with_other_options_stand_side_by_side(call, run_dir):
    for options in (
        [],
        ["eval.episodes=3"],
        ["seed=7"],
        ["eval.episodes=3", "checkpoint=400"],
        ["eval.episodes=3"],
    ):
        assert call(evaluate, "run=run", *options)[0] == 0
    results = {path.name: json.loads(path.read_text()) for path in (run_dir / "evaluations").iterdir()}
    assert results.keys() == {"600.json", "600_episodes=3.json", "600_seed=7.json", "400_episodes=3.json"}
    assert results["600.json"]["episodes"] == 2 and results["600_episodes=3.json"]["episodes"] == 3
    assert call(evaluate, "run=run", "eval.episodes=2", "seed=0", "device=cpu")[1].endswith(
        "600_device=cpu.json\n"
    )
    only = "only Atari games have protocols, and this is none"
    refused(call(evaluate, "run=run", "env.protocol=nature"), f"env.protocol=nature: {only}")


def test_trained_weights_are_loaded_in_three_lines_of_python(run_dir, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/runs.md").read_text()
    (lines,) = re.findall(r"^(?:    .*\n)*    agent, acting, spec = .*\n(?:    .*\n)*", page, flags=re.M)
    monkeypatch.chdir(run_dir.parent)
    observations = np.zeros((5, 1), np.float32)
    names = {"observations": observations}
    exec(re.sub(r'"runs/[^"]*"', '"run"', textwrap.dedent(lines)), names)
    actions, spec = names["actions"], names["spec"]
    assert actions.shape == (5, *spec.action.shape) and observations.shape[1:] == spec.observation.shape
    saved = checkpoint.load(run_dir)[0].tree({"acting": names["acting"]})["acting"]
    values = names["agent"].q_values(saved, observations)
    np.testing.assert_array_equal(actions, np.argmax(values, axis=-1))
    with pytest.raises(UserError, match=r"run has no checkpoint 7 \(latest, 400, 600\)"):
        trained.load("run", 7)
