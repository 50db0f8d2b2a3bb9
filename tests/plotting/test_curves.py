"""The contents of plots of runs, and errors for runs that cannot be drawn."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from rlcls import compare, plot, statistics
from rlcls._errors import UserError
from rlcls.cli.compose import compose
from rlcls.plotting import curves
from rlcls.runs import Metrics


def make_run(folder, *overrides, steps=4000, evaluations=True, slope=1e-3, diagnostics=None):
    folder.mkdir()
    OmegaConf.save(compose(list(overrides)), folder / "config.yaml")
    log = Metrics(folder, tensorboard=False, wandb=None)
    for step in range(500, steps + 1, 500):
        counts = {"agent_steps": step, "frames": 4 * step, "updates": step // 4}
        log.write("episode", counts, **{"return": slope * step, "length": 100})
        loss = float("nan") if step == 500 else 2.0
        log.write(
            "train", counts, loss=loss, td_divergence=0.1, clip_fraction=0.0, episode_return=slope * step
        )
        if diagnostics:
            log.write("diagnostics", counts, **diagnostics)
        if evaluations and step % 1000 == 0:
            log.write("eval", counts, return_mean=slope * step, return_std=0.5, returns=[slope * step])
    log.close()
    return folder


def make_run_of_two_games(folder, *overrides):
    make_run(folder, *overrides, evaluations=False)
    with open(folder / "metrics.jsonl") as file:
        row = json.loads(file.readlines()[-1])
    with open(folder / "metrics.jsonl", "a") as file:
        for game, value in (("Pong", -20.0), ("Breakout", 2.0)):
            line = row | {"kind": f"eval.{game}", "return_mean": value, "return_std": 1.0, "returns": [value]}
            file.write(json.dumps(line) + "\n")
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the figures that the test saves."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return lambda: [axes for figure in figures for axes in figure.axes]


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_a_learning_curve_shows_returns_loss_and_the_time_taken(tmp_path, drawn):
    path = curves.learning_curve(make_run(tmp_path / "a"))
    assert path == tmp_path / "a" / "learning_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert {entry.name for entry in path.parent.iterdir()} == {"config.yaml", "metrics.jsonl", path.name}
    returns, minutes, loss, divergence, clipped = drawn()
    assert lines(returns)["training episode"][0] == [500, 0.5]
    evaluation = lines(returns)["evaluation, mean and standard deviation"]
    assert evaluation == [[1000, 1], [2000, 2], [3000, 3], [4000, 4]]
    titles = [axes.get_title(loc="left") for axes in (loss, divergence, clipped)]
    assert titles == ["loss", "TD divergence", "targets clipped"]
    (loss_line,) = loss.get_lines()
    assert loss_line.get_xdata()[0] == 1000  # the NaN before it is left out
    assert minutes.get_xlabel() == "wall-clock minutes"


def test_diagnostics_have_panels_below_the_learning_curve(tmp_path, drawn):
    seen = {
        "rankme": 20.0,
        "srank": 30,
        "dormant_ratio": 0.2,
        "held_out_td_error": float("nan"),
        "td_error": 0.1,
    }
    seen |= {"gradient_norm": 0.5, "feature_norm": 50.0, "alpha_req": 1.0}
    curves.learning_curve(make_run(tmp_path / "a", diagnostics=seen))
    panels = {axes.get_title(loc="left"): axes for axes in drawn()[5:]}
    assert list(panels) == ["effective rank", "dormant units", "absolute TD error", "norm", "spectrum decay"]
    assert {label: len(xy) for label, xy in lines(panels["effective rank"]).items()} == {
        "RankMe": 8,
        "srank": 8,
    }
    assert lines(panels["effective rank"])["srank"][0] == [500, 30]
    assert {label: len(xy) for label, xy in lines(panels["absolute TD error"]).items()} == {
        "held out": 0,  # the NaN is left out
        "the update's": 8,
    }
    assert panels["norm"].get_yscale() == "log" and panels["dormant units"].get_ylim() == (0, 1)


def test_diagnostics_of_some_backbones_have_panels_only_if_measured(tmp_path, drawn):
    seen = {
        "rankme": 20.0,
        "attention_entropy": 2.0,
        "attention_entropy_least": 1.0,
        "dispatch_similarity_mean": 0.4,
    }
    curves.learning_curve(make_run(tmp_path / "a", diagnostics=seen))
    titles = [axes.get_title(loc="left") for axes in drawn()[5:]]
    assert titles == ["effective rank", "attention entropy", "slot similarity"]


def test_a_run_without_measurements_gives_an_empty_plot(tmp_path):
    assert curves.learning_curve(make_run(tmp_path / "a", steps=0)).exists()


def test_seeds_are_one_line_that_is_dashed_where_only_some_have_data(tmp_path, drawn):
    runs = [
        make_run(tmp_path / "a", "seed=0", slope=1e-3),
        make_run(tmp_path / "b", "seed=1", "steps=9999", slope=3e-3, steps=2000),
        make_run(tmp_path / "c", "loss=mse", slope=0.0),
    ]
    curves.compare(runs, tmp_path / "out.png")
    (axes,) = drawn()
    whole, rest, mse = axes.get_lines()
    assert whole.get_label() == "hlgauss, 2 seeds" and whole.get_linestyle() == "-"
    assert whole.get_xydata().tolist() == [[1000, 2], [2000, 4]]
    assert rest.get_xydata().tolist() == [[2000, 2], [3000, 3], [4000, 4]] and rest.get_linestyle() == "--"
    assert rest.get_color() == whole.get_color() and [text.get_text() for text in axes.texts] == ["n=1"]
    assert mse.get_label() == "mse" and len(mse.get_xdata()) == 4
    assert axes.get_ylabel() == "evaluation return"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["hlgauss, 2 seeds", "mse"]


def test_copies_of_a_run_are_one_seed_and_the_longest_is_drawn(tmp_path, drawn, capsys):
    runs = [
        make_run(tmp_path / "a", steps=2000),
        make_run(tmp_path / "b"),
        make_run(tmp_path / "c", "seed=1"),
    ]
    curves.compare(runs, tmp_path / "out.png")
    (axes,) = drawn()
    assert list(lines(axes)) == ["hlgauss, 2 seeds"] and len(lines(axes)["hlgauss, 2 seeds"]) == 4
    note = f"note: {tmp_path / 'a'} is not drawn: it is the same run as {tmp_path / 'b'}, seed 0\n"
    assert capsys.readouterr().err == note


def test_runs_with_different_options_are_separate_lines_with_labels(tmp_path, drawn):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "agent.learning_rate=2e-3")]
    runs.append(make_run(tmp_path / "c", "game=Breakout"))
    curves.compare(runs, tmp_path / "out.svg")
    breakout, pong = drawn()
    assert list(lines(breakout)) == ["hlgauss"]
    rate = compose([]).agent.learning_rate
    assert list(lines(pong)) == [f"hlgauss, learning_rate={rate}", "hlgauss, learning_rate=0.002"]
    colours = [line.get_color() for line in pong.get_lines()]
    assert len(set(colours)) == 2


def test_a_run_without_evaluations_is_left_out_beside_runs_that_have_them(tmp_path, drawn, capsys):
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", "loss=mse", evaluations=False),
        make_run(tmp_path / "c", "game=Breakout", evaluations=False),
    ]
    curves.compare(runs, tmp_path / "x.png")
    breakout, pong = drawn()
    assert pong.get_ylabel() == "evaluation return" and list(lines(pong)) == ["hlgauss"]
    assert (
        capsys.readouterr().err == f"note: {tmp_path / 'b'} is not drawn: it has no evaluation return yet\n"
    )
    # No run of this game has evaluations.
    assert breakout.get_ylabel() == "training return, mean of 20 episodes"
    assert lines(breakout)["hlgauss"][0] == [500, 0.5]


def test_a_single_point_is_drawn(tmp_path, drawn):
    curves.learning_curve(make_run(tmp_path / "a", steps=1000, diagnostics={"rankme": 3.0}))
    curves.compare([tmp_path / "a"], tmp_path / "x.png")
    single = [line for axes in drawn() for line in axes.get_lines() if len(line.get_xdata()) == 1]
    assert len(single) == 3  # the loss, whose first value is NaN, and the evaluation in both pictures
    assert all(line.get_marker() in ("o", ".") for line in single)


def test_the_axis_can_count_frames(tmp_path, drawn):
    run = make_run(tmp_path / "a")
    curves.compare([run], tmp_path / "x.png", axis="frames")
    curves.learning_curve(run, axis="frames")
    compared, returns, *_ = drawn()
    assert lines(compared)["hlgauss"][-1] == [16_000, 4] and compared.get_xlabel() == "frames"
    assert lines(returns)["training episode"][-1] == [16_000, 4] and returns.get_xlabel() == "frames"


def test_a_smooth_line_is_the_mean_of_the_last_points(tmp_path, drawn):
    run = make_run(tmp_path / "a")
    curves.compare([run], tmp_path / "x.png", smooth=3)
    curves.learning_curve(run, smooth=3)
    compared, returns, *_ = drawn()
    assert lines(compared)["hlgauss"] == [[1000, 1], [2000, 1.5], [3000, 2], [4000, 3]]
    assert compared.get_ylabel() == "evaluation return; mean of 3 points"
    assert lines(returns)["training episode"][0] == [500, 0.5]  # single games stay as they are
    assert returns.get_ylabel() == "return, mean of 3 points"


def test_pictures_beside_the_runs_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        make_run(tmp_path / name)
    assert plot.main(["a", "b"]) == 0
    everything = sorted(path.name for path in tmp_path.iterdir())
    assert everything == ["a", "b", "comparison.png"]
    assert plot.main(everything) == 0 and compare.main(everything) == 0
    with pytest.raises(UserError, match="comparison.png is not a run folder"):
        curves.learning_curve(tmp_path / "comparison.png")


def test_the_command_writes_one_run_to_its_folder_and_several_to_a_given_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    make_run(tmp_path / "runs" / "a"), make_run(tmp_path / "runs" / "b", "seed=1"), make_run(tmp_path / "c")
    assert plot.main(["runs/a", "axis=frames", "smooth=2"]) == 0
    assert plot.main(["runs/a", "runs/b"]) == 0
    assert plot.main([f"{tmp_path}/runs/a", "runs/b"]) == 0
    assert plot.main(["runs/b", "c"]) == 0
    assert plot.main(["runs/a", "runs/b", "out=mine.pdf"]) == 0
    assert capsys.readouterr().out.split() == [
        "runs/a/learning_curve.png",
        "runs/comparison.png",
        f"{tmp_path}/runs/comparison.png",
        "comparison.png",
        "mine.pdf",
    ]
    assert (tmp_path / "mine.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run folder: it has no config.yaml"),
        (["a", "a"], "a run folder is named twice"),
        (["a", "out=x.gif"], "cannot draw into x.gif; the name must end in .png, .pdf or .svg"),
        (["a", "out=no/x.png"], "cannot write no/x.png: No such file or directory"),
        (
            ["a", "ou=x.png"],
            "unknown option 'ou'; did you mean 'out'? (axis, csv, last, out, scores, smooth)",
        ),
        (["--out"], "unknown option '--out'; did you mean 'out'? (axis, csv, last, out, scores, smooth)"),
        (["a", "axis=frame"], "unknown axis 'frame'; did you mean 'frames'? (agent_steps, frames)"),
        (["a", "smooth=0"], "smooth=0 must be a whole number of at least 1"),
        ([], "name the run folders to draw, such as runs/*; --help says more"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    assert plot.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.glob(".*"))


def test_a_run_without_metrics_is_left_out_of_a_comparison(tmp_path, capsys):
    runs = [
        make_run(tmp_path / "one"),
        make_run(tmp_path / "two", "seed=1"),
        make_run(tmp_path / "begun", "seed=2"),
    ]
    (tmp_path / "begun" / "metrics.jsonl").unlink()
    assert plot.main([str(run) for run in runs]) == 0
    assert capsys.readouterr().err == f"note: {tmp_path / 'begun'} has no metrics.jsonl yet and is left out\n"
    for run in runs[:2]:
        (run / "metrics.jsonl").unlink()
    assert plot.main([str(run) for run in runs]) == 2
    assert capsys.readouterr().err.endswith("error: no run has a metrics.jsonl yet\n")


def test_a_folder_without_metrics_is_refused(tmp_path):
    (make_run(tmp_path / "a") / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"it has no metrics\.jsonl"):
        curves.learning_curve(tmp_path / "a")


def test_help_is_readable(capsys):
    assert plot.main(["--help"]) == 0
    assert "usage: python -m rlcls.plot" in capsys.readouterr().out


def test_the_csv_of_a_comparison_has_the_interval_of_three_seeds(tmp_path):
    slopes = {0: 1e-3, 1: 2e-3, 2: 3e-3}
    runs = [make_run(tmp_path / f"s{seed}", f"seed={seed}", slope=slope) for seed, slope in slopes.items()]
    runs.append(make_run(tmp_path / "mse", "loss=mse"))
    picture, table = tmp_path / "c.svg", tmp_path / "c.csv"
    assert plot.main([*map(str, runs), f"out={picture}", f"csv={table}"]) == 0
    header, *rows = table.read_text().splitlines()
    assert header == "game,setting,seeds,position,mean,low,high"
    ours = [row.split(",") for row in rows if '"hlgauss"' in row]
    assert [row[2:5] for row in ours] == [
        ["3", f"{step}", f"{step * 2e-3:g}"] for step in (1000, 2000, 3000, 4000)
    ]
    low, high = (float(number) for number in ours[-1][5:])
    expected = statistics.interval(np.array([[4.0], [8.0], [12.0]]), statistics.mean)
    assert (low, high) == pytest.approx(expected, rel=1e-5)
    assert [row.split(",")[2:] for row in rows if '"mse"' in row][-1] == ["1", "4000", "4", "4", "4"]


def test_the_evaluations_of_each_game_of_one_network_are_a_line_of_its_learning_curve(tmp_path, drawn):
    curves.learning_curve(make_run_of_two_games(tmp_path / "a"))
    returns = lines(drawn()[0])
    assert returns["Pong, mean and standard deviation"] == [[4000, -20]]
    assert returns["Breakout, mean and standard deviation"] == [[4000, 2]]


def test_each_game_of_one_network_is_drawn_in_the_panel_of_that_game(tmp_path, drawn):
    both = make_run_of_two_games(tmp_path / "both")
    curves.compare([both, make_run(tmp_path / "one", "game=Breakout", "seed=3")], tmp_path / "out.png")
    panels = {axes.get_title(loc="left"): lines(axes) for axes in drawn()}
    assert panels.keys() == {"Breakout", "Pong"}
    assert [points[-1] for points in panels["Breakout"].values()] == [[4000, 2], [4000, 4]]
    assert [points[-1] for points in panels["Pong"].values()] == [[4000, -20]]
