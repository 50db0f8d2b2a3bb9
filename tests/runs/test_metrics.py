"""Metrics survive kills, resumes and unusual numbers."""

import json
import math
import shutil
import struct
import sys
import types

import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.runs import Metrics, metrics


def open_metrics(run_dir, position=None, **options):
    return Metrics(run_dir, **{"tensorboard": False, "wandb": None, "position": position, **options})


def write_train(log, step, **values):
    log.write("train", counts(step), **values)


def counts(step):
    return {"agent_steps": step, "frames": 4 * step, "updates": step // 4}


def tensorboard_points(run_dir):
    """{tag: [(step, value)]} as TensorBoard shows them, from files in the order of their names, with purges."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    points = {}
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4
            if event.session_log.status == SessionLog.START:
                points = {tag: [p for p in old if p[0] < event.step] for tag, old in points.items()}
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def test_a_line_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    log = open_metrics(tmp_path)
    values = {"return_mean": 1.5, "returns": [1.0, 2.0]}
    log.write("eval", counts(8), **values)
    (row,) = metrics.read(tmp_path)
    assert row.pop("seconds") >= 0
    assert row == {"kind": "eval", **counts(8), **values}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan"), np.array(np.inf)])
def test_a_number_that_json_cannot_say_is_null_and_the_line_stays_json(tmp_path, bad):
    write_train(open_metrics(tmp_path, tensorboard=True), 4, loss=bad, returns=np.array([1.0, bad]))

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row["loss"] is None and row["returns"] == [1.0, None]
    assert "train/loss" not in tensorboard_points(tmp_path)


def test_numbers_of_numpy_and_jax_become_plain_numbers_with_the_same_value(tmp_path):
    import jax.numpy as jnp

    values = {"a": np.float32(0.1), "b": jnp.float32(0.1), "c": np.int64(3), "d": np.bool_(True), "e": None}
    write_train(open_metrics(tmp_path), 4, **values)
    (row,) = metrics.read(tmp_path)
    assert np.float32(row["a"]) == np.float32(row["b"]) == np.float32(0.1)
    assert (row["c"], row["d"], row["e"]) == (3, True, None)


def test_lines_after_the_position_are_cut_at_a_resume(tmp_path):
    log = open_metrics(tmp_path, tensorboard=True)
    for step in (4, 8):
        write_train(log, step, loss=step / 2)
    position = json.loads(json.dumps(log.position()))
    for step in (12, 16):
        write_train(log, step, loss=-1.0)  # the process dies here
    resumed = open_metrics(tmp_path, position, tensorboard=True)
    assert resumed.position()["lines"] == position["lines"] == 2
    write_train(resumed, 12, loss=6.0)
    assert [(row["agent_steps"], row["loss"]) for row in metrics.read(tmp_path)] == [(4, 2), (8, 4), (12, 6)]
    assert tensorboard_points(tmp_path)["train/loss"] == [(4, 2), (8, 4), (12, 6)]


def test_a_run_resumed_anywhere_leaves_the_same_lines_as_one_that_never_was(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    log = open_metrics(whole)
    for step in range(0, 40, 4):
        write_train(log, step, loss=math.sin(step))
    position = None
    # Each kill loses the work since the last checkpoint.
    for begin, saved, end in [(0, 12, 16), (12, 20, 36), (20, 28, 40)]:
        log = open_metrics(broken, position)
        for step in range(begin, end, 4):
            if step == saved:
                position = log.position()
            write_train(log, step, loss=math.sin(step))
    assert metrics.same(whole, broken)
    write_train(log, 40, loss=0.0)
    assert not metrics.same(whole, broken)


def test_without_a_position_a_folder_starts_clean(tmp_path):
    for loss in (1.0, 2.0):
        write_train(open_metrics(tmp_path, tensorboard=True), 4, loss=loss)
    assert [row["loss"] for row in metrics.read(tmp_path)] == [2.0]
    assert tensorboard_points(tmp_path)["train/loss"] == [(4, 2.0)]


def test_a_checkpoint_that_counts_on_missing_lines_is_refused(tmp_path):
    log = open_metrics(tmp_path)
    write_train(log, 4)
    position = log.position()
    write_train(log, 8)
    position = log.position()
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text[:-1])
    for use in (open_metrics, metrics.check):
        with pytest.raises(UserError, match=r"metrics.jsonl has 1 lines, but the checkpoint needs 2"):
            use(tmp_path, position)
    assert (tmp_path / "metrics.jsonl").read_text() == text[:-1]


def test_the_clock_goes_on_where_the_position_left_it(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    log = open_metrics(tmp_path)
    now += 10
    write_train(log, 1000)
    now += 5
    position = log.position()
    now += 3600  # an hour passes before the resume
    resumed = open_metrics(tmp_path, position)
    assert resumed.seconds() == 15
    now += 5
    write_train(resumed, 1500)
    first, second = metrics.read(tmp_path)
    assert (first["seconds"], first["steps_per_second"], first["frames_per_second"]) == (10, 100, 400)
    assert (second["seconds"], second["steps_per_second"], second["frames_per_second"]) == (20, 50, 200)


def test_a_torn_last_line_is_passed_over_and_a_bad_one_before_it_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = '{"kind": "train", "agent_steps": 4, "seconds": 1.5}'
    path.write_text(line + '\n{"kind": "ev')
    assert metrics.read(tmp_path) == [json.loads(line)]
    path.write_text('{"kind": "tr\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1: not a JSON object"):
        metrics.read(tmp_path)


def test_lines_that_an_editor_ended_in_crlf_are_read_and_gone_on_from(tmp_path):
    log, path = open_metrics(tmp_path), tmp_path / "metrics.jsonl"
    for step in (4, 8, 12):
        write_train(log, step, loss=1.0)
        if step == 8:
            position = log.position()
    log.close()
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [row["agent_steps"] for row in metrics.read(tmp_path)] == [4, 8, 12]
    metrics.check(tmp_path, position)
    write_train(open_metrics(tmp_path, position), 16)
    assert [row["agent_steps"] for row in metrics.read(tmp_path)] == [4, 8, 16]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{}", "kind must be a text, not null"),
        ("[1]", "not a JSON object"),
        ('{"kind": "train", "loss": 1.0, "seconds": 1}', "agent_steps must be a number, not null"),
        ('{"kind": "train", "agent_steps": 8}', "seconds must be a number, not null"),
        ('{"kind": "train", "agent_steps": "8", "seconds": 1}', 'agent_steps must be a number, not "8"'),
        (
            '{"kind": "train", "agent_steps": 8, "seconds": 1, "loss": "low"}',
            'loss must be a number, not "low"',
        ),
        (
            '{"kind": "eval", "updates": 8, "seconds": 1, "return_mean": []}',
            "return_mean must be a number, not []",
        ),
        (
            '{"kind": "diagnostics", "updates": 8, "seconds": 1, "rank": "?"}',
            'rank must be a number, not "?"',
        ),
    ],
)
def test_a_line_that_is_none_of_a_run_is_named_with_its_number(line, problem, tmp_path):
    log = open_metrics(tmp_path)
    write_train(log, 4, loss=math.nan)
    position = log.position() | {"lines": 2}
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    for read in (lambda: metrics.read(tmp_path), lambda: metrics.check(tmp_path, position)):
        with pytest.raises(UserError) as error:
            read()
        assert str(error.value) == f"{tmp_path}/metrics.jsonl, line 2: {problem}"


def test_a_position_has_all_that_a_resume_needs(tmp_path):
    position = open_metrics(tmp_path).position()
    assert metrics.is_position(position)
    assert not metrics.is_position({"bytes": 80, "step": 4}) and not metrics.is_position(None)


def test_a_value_may_have_any_name_that_no_line_has_already(tmp_path):
    (log := open_metrics(tmp_path)).write("eval", counts(4), counts=[1, 2], self=3)
    (row,) = metrics.read(tmp_path)
    assert (row["counts"], row["self"]) == ([1, 2], 3)
    log.close()
    for values, line in (
        ({"kind": "x"}, "the evaluator eval returned kind, a name that every line of metrics already has"),
        (
            {"frames": math.nan},
            "the evaluator eval returned frames, a name that every line of metrics already has",
        ),
        ({"return_mean": [1.0]}, "the evaluator eval returned return_mean=[1.0]; it must be a number"),
    ):
        with pytest.raises(UserError) as error:
            metrics.check_values("eval", counts(4), values)
        assert str(error.value) == line
    metrics.check_values("eval", counts(4), {"return_mean": math.inf, "returns": [1.0]})


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        metrics.read(tmp_path / "nowhere")


def test_a_full_disk_is_one_clear_line(tmp_path):
    log = open_metrics(tmp_path)
    log._file = open("/dev/full", "ab")  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        write_train(log, 4)
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        log.position()
    log.close()


@pytest.mark.parametrize(
    "harm",
    [
        shutil.rmtree,
        lambda run_dir: run_dir.rename(run_dir.with_name("moved")),
        lambda run_dir: (run_dir / "metrics.jsonl").unlink(),
        lambda run_dir: shutil.copy(run_dir / "metrics.jsonl", run_dir / "new").replace(
            run_dir / "metrics.jsonl"
        ),
    ],
    ids=["removed", "moved", "without metrics", "replaced"],
)
def test_a_run_folder_that_goes_while_the_run_writes_is_one_clear_line(harm, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    log = open_metrics(run_dir)
    write_train(log, 4)
    harm(run_dir)
    line = f"cannot write to the run folder {run_dir}: its metrics.jsonl was removed, moved or replaced"
    for write in (lambda: write_train(log, 8), log.position):
        with pytest.raises(UserError, match=line):
            write()
    log.close()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: Is a directory"):
        open_metrics(tmp_path)


def open_wandb(run_dir, run_id=None):
    return metrics.WandB(run_dir, "mine", unit="agent_steps", run_id=run_id, config={"game": "Pong"})


def test_a_missing_wandb_is_one_clear_line_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"logging\.wandb=mine: wandb is not installed"):
        open_wandb(tmp_path)
    assert not list(tmp_path.iterdir())


def test_wandb_gets_the_scalars_and_a_resume_goes_on_in_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        id = "abc"

        def __getattr__(self, name):
            return lambda *args, **kwargs: calls.append((name, args, kwargs))

    def init(**options):
        calls.append(("init", (), options))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    log = open_metrics(tmp_path, wandb=(wandb := open_wandb(tmp_path)))
    log.write("eval", counts(4), return_mean=2.0, returns=[2.0])
    position = log.position()
    log.close(), wandb.close()
    without = open_metrics(tmp_path, position)  # a resume without W&B keeps the id of the W&B run
    position = without.position()
    without.close()
    open_metrics(tmp_path, position, wandb=open_wandb(tmp_path, position["wandb"]))
    names = [name for name, _, _ in calls]
    assert names == ["init", "define_metric", "log", "finish", "init", "define_metric"]
    first, second = calls[0][2], calls[4][2]
    assert first["config"] == {"game": "Pong"}
    assert first["id"] is None and second["id"] == "abc"
    (logged,) = calls[2][1]
    assert (logged["eval/return_mean"], logged["agent_steps"]) == (2.0, 4)
    assert "eval/returns" not in logged


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text, 3),
        (lambda text: text + '{"kind', 3),
        (lambda text: text[:-3], 3),
        (lambda text: text.replace("episode", "\n"), 0),
        (lambda text: "", 0),
    ],
)
def test_lines_after_a_moment_are_cut_and_the_others_counted(damage, expected, tmp_path):
    log = open_metrics(tmp_path)
    log.write("episode", counts(4), length=4)
    log.write("diagnostics", counts(12), updates=2)
    log.write("train", counts(12), loss=1.0)
    log.write("train", counts(16), loss=1.0)
    path = tmp_path / metrics.FILE
    text = damage(path.read_text())
    path.write_text(text)
    assert metrics.cut(tmp_path, counts(12)) == expected
    assert path.read_text() == "".join(text.splitlines(keepends=True)[:expected])


def test_a_folder_without_metrics_has_no_lines_to_cut(tmp_path):
    assert metrics.cut(tmp_path, counts(12)) == 0 and not (tmp_path / metrics.FILE).exists()
