"""`python -m rlcls.compare` prints what a statistician would."""

import numpy as np
import pytest
from omegaconf import OmegaConf

from rlcls import compare, statistics
from rlcls.cli.compose import compose
from rlcls.runs import Metrics


def make_run(folder, *overrides, returns=()):
    folder.mkdir()
    OmegaConf.save(compose(list(overrides)), folder / "config.yaml")
    log = Metrics(folder, tensorboard=False, wandb=None)
    for number, value in enumerate(returns, 1):
        counts = {"agent_steps": 1000 * number, "frames": 4000 * number, "updates": 250 * number}
        log.write("eval", counts, return_mean=value, return_std=0.5, returns=[value])
    log.close()
    return str(folder)


def table_rows(text, *beginnings):
    return [line.split() for line in text.splitlines() if line.startswith(beginnings)]


def test_settings_are_compared_with_intervals(tmp_path, capsys):
    scores = {"hlgauss": [15.0, 17.0, 16.0], "mse": [3.0, 4.0, 5.0], "c51": [14.0, 18.0, 15.5]}
    folders = [
        make_run(tmp_path / f"{loss}{seed}", f"loss={loss}", f"seed={seed}", returns=[0.0, value])
        for loss, values in scores.items()
        for seed, value in enumerate(values)
    ]
    assert compare.main(folders) == 0
    out = capsys.readouterr().out
    assert out.startswith("Pong\nsetting ")
    (row,) = table_rows(out, "mse ")
    low, high = statistics.interval(np.array(scores["mse"])[:, None], statistics.mean)
    assert row == ["mse", "3", "4", f"{low:.4g}", "to", f"{high:.4g}", "3", "5"]
    (clear,) = table_rows(out, "hlgauss - mse")
    assert clear[3] == "12" and clear[-2:] == ["1.00", "these"]
    (unclear,) = table_rows(out, "c51 - hlgauss")
    assert unclear[3].startswith("-0.16") and unclear[-3:] == ["more", "than", "1,000"]

    assert compare.main([*folders, "last=2"]) == 0
    (row,) = table_rows(capsys.readouterr().out, "mse ")
    assert row[2] == "2"


def test_two_seeds_have_no_interval_and_runs_without_evaluations_are_named(tmp_path, capsys):
    folders = [
        make_run(tmp_path / f"{loss}{seed}", f"loss={loss}", f"seed={seed}", returns=[seed])
        for loss in ("mse", "c51")
        for seed in range(2)
    ]
    folders.append(make_run(tmp_path / "other", "game=Breakout"))
    assert compare.main(folders) == 0
    out, err = capsys.readouterr()
    (row,) = table_rows(out, "mse ")
    assert row == ["mse", "2", "0.5", "-", "0", "1"]
    (pair,) = table_rows(out, "c51 - mse")
    assert pair[3:] == ["0", "-", "0.50", "at", "least", "3"]
    assert err == "note: no run of Breakout has 1 evaluations yet\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the run folders to compare, such as runs/*; --help says more"),
        (["nowhere"], "nowhere is not a run folder"),
        (["nowhere", "last=0"], "last=0 must be a whole number between 1 and"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert compare.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
