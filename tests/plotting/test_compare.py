"""`python -m rlcls.compare` prints tables of scores with intervals."""

import csv

import numpy as np
import pytest
from omegaconf import OmegaConf

from rlcls import compare, plot, statistics
from rlcls.cli.compose import compose
from rlcls.evaluation.scores import SCORES
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


def test_seeds_that_learn_from_data_are_one_setting_unless_the_seed_of_the_data_is_given(tmp_path, capsys):
    data = ["agent=cql", "data=recording", "data.path=recorded"]
    folders = [make_run(tmp_path / f"run{seed}", *data, f"seed={seed}", returns=[seed]) for seed in range(3)]
    folders.append(make_run(tmp_path / "other", *data, "seed=0", "data.seed=7", returns=[9.0]))
    assert compare.main(folders) == 0
    rows = table_rows(capsys.readouterr().out, "hlgauss, ")
    assert sorted(row[1:3] for row in rows if row[2] != "-") == [["seed=0", "3"], ["seed=7", "1"]]


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


def make_runs_of_two_games(tmp_path, drop=()):
    """Three seeds of two losses on two games, and their scores by loss, [seeds, games]."""
    scores = {
        "hlgauss": np.array([[10.0, 100.0], [12.0, 150.0], [14.0, 200.0]]),
        "mse": np.array([[-5.0, 20.0], [0.0, 40.0], [5.0, 60.0]]),
    }
    folders = [
        make_run(
            tmp_path / f"{loss}{game}{seed}",
            f"loss={loss}",
            f"game={game}",
            f"seed={seed}",
            returns=[values[seed, {"Breakout": 1, "Pong": 0}[game]]],
        )
        for loss, values in scores.items()
        for game in ("Breakout", "Pong")
        for seed in range(3)
        if (loss, game, seed) not in drop
    ]
    return folders, {
        label: values[:, ::-1] for label, values in scores.items()
    }  # games in their order by name


def test_games_are_compared_together_in_human_scores(tmp_path, capsys):
    folders, scores = make_runs_of_two_games(tmp_path)
    low, high = np.array([SCORES[game][:2] for game in ("Breakout", "Pong")]).T
    normalised = {label: (values - low) / (high - low) for label, values in scores.items()}
    assert compare.main([*folders, "scores=human"]) == 0
    last = capsys.readouterr().out.partition("2 games, human = 1")[2]
    (row,) = table_rows(last, "mse ")
    expected = statistics.interval(normalised["mse"], statistics.iqm)
    assert row[:6] == [
        "mse",
        "3",
        f"{statistics.iqm(normalised['mse']):.4g}",
        *f"{expected.low:.4g} to {expected.high:.4g}".split(),
    ]
    (row,) = table_rows(last, "hlgauss - mse")
    point, _ = statistics.difference(normalised["hlgauss"], normalised["mse"], statistics.iqm)
    assert row[3] == f"{point:.4g}"


def test_aggregates_and_profiles_of_all_games_are_drawn_and_written(tmp_path, capsys):
    folders, scores = make_runs_of_two_games(tmp_path, drop=[("mse", "Pong", 2)])
    unit = scores["hlgauss"].mean(axis=0)
    command = [*folders, "scores=hlgauss", f"out={tmp_path}/all.svg", f"csv={tmp_path}/all.csv"]
    assert plot.main(command) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/all.svg\n" and (tmp_path / "all.svg").stat().st_size > 10_000
    assert err == "note: mse: only the first 2 seeds of each game are used, because one game has no more\n"
    with open(tmp_path / "all.csv") as file:
        rows = list(csv.DictReader(file))
    (gap,) = (row for row in rows if row["aggregate"] == "optimality gap" and row["setting"] == "mse")
    assert (gap["seeds"], gap["games"]) == ("2", "2") and gap["low"] == gap["value"] == gap["high"]
    assert float(gap["value"]) == pytest.approx(statistics.optimality_gap(scores["mse"][:2] / unit), rel=1e-5)
    (iqm,) = (row for row in rows if row["aggregate"] == "IQM" and row["setting"] == "hlgauss")
    low, high = statistics.interval(scores["hlgauss"] / unit, statistics.iqm)
    assert (float(iqm["low"]), float(iqm["high"])) == (
        pytest.approx(low, rel=1e-5),
        pytest.approx(high, rel=1e-5),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["scores=hlgaus"],
            "scores=hlgaus is neither a unit nor a setting; did you mean 'hlgauss'? (dqn, hlgauss, human, mse)",
        ),
        (["scores=mse"], "scores=mse: its mean on Pong is 0, but a unit must be above 0"),
        (["scores=human", "smooth=3"], "smooth= applies to curves, and scores= draws none"),
        (["last=3"], "last= needs scores=; smooth=N averages the points of curves"),
        (["scores=human", "last=9"], "no run has 9 evaluations yet"),
    ],
)
def test_scores_that_cannot_be_aggregated_are_refused_in_one_line(options, message, tmp_path, capsys):
    folders, _ = make_runs_of_two_games(tmp_path)
    assert plot.main([*folders, *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_setting_that_lacks_a_game_is_left_out_with_a_note(tmp_path, capsys):
    folders, _ = make_runs_of_two_games(tmp_path, drop=[("mse", "Pong", seed) for seed in range(3)])
    assert compare.main([*folders, "scores=dqn"]) == 0
    out, err = capsys.readouterr()
    assert err == "note: mse is left out: it has no scores of Pong\n"
    assert "mse" not in out.partition("2 games, dqn = 1")[2]
