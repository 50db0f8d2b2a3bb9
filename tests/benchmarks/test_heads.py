"""The benchmarks of the heads run, and their tables say what their raw data say."""

import json
import os
import statistics
import subprocess
import sys

import pytest


def run(pytestconfig, program, *arguments):
    done = subprocess.run(
        [sys.executable, f"benchmarks/{program}", *map(str, arguments)],
        cwd=pytestconfig.rootpath,
        env=os.environ
        | {"PYTHONPATH": str(pytestconfig.rootpath), "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def columns(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_each_head_costs_relative_to_mse(pytestconfig, tmp_path):
    small = ("--batches", 4, "--bins", 5, 7, "--actions", 2, "--rounds", 9, "--seconds", 0)
    text = run(pytestconfig, "heads.py", *small, "--heads", "hlgauss", "quantile", "--out", tmp_path)
    assert (tmp_path / "heads.md").read_text().strip() == text.strip()
    assert (tmp_path / "heads.png").stat().st_size > 10_000
    data = json.loads((tmp_path / "heads.json").read_text())
    assert [(cell["batch"], cell["bins"]) for cell in data["cells"]] == [(4, 5), (4, 7)]
    times = data["cells"][1]["milliseconds"]
    assert {len(each) for each in times.values()} == {7}  # the least, when there is no time for more
    ratio = statistics.median(a / b for a, b in zip(times["td hlgauss"], times["td mse"], strict=True))
    rows = [columns(line) for line in text.splitlines() if line.startswith("| hlgauss")]
    assert len(rows) == 2 and rows[1][2] == f"{ratio:.2f}"
    assert text.count("| rounds | 7 | 7 |") == 2


def test_pictures_of_heads(pytestconfig, tmp_path):
    run(pytestconfig, "heads_pictures.py", "--heads", "c51", "hlgauss", "huber", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"c51.png", "hlgauss.png", "huber.png"}
    assert min(path.stat().st_size for path in tmp_path.iterdir()) > 10_000


@pytest.mark.slow
def test_what_a_head_costs_in_an_update(pytestconfig, tmp_path):
    small = ("--rounds", 2, "--batch", 4, "--losses", "mse", "quantile", "--out", tmp_path)
    text = run(pytestconfig, "head_cost.py", *small)
    data = json.loads((tmp_path / "head_cost.json").read_text())
    assert set(data["milliseconds"]) == {
        f"{part} {loss}" for part in ("update", "loss", "head", "layer") for loss in ("mse", "quantile")
    }
    (row,) = (columns(line) for line in text.splitlines() if line.startswith("| quantile"))
    times = data["milliseconds"]
    pairs = zip(times["loss quantile"], times["update quantile"], strict=True)
    assert row[5] == f"{statistics.median(100 * a / b for a, b in pairs):.2f} %"
