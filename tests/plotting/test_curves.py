"""Pictures of runs: what is in them, and what cannot be drawn."""

import numpy as np
import pytest
from omegaconf import OmegaConf

from rlcls import plot
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


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the pictures made in the test."""
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


def test_what_was_seen_inside_the_network_has_panels_below(tmp_path, drawn):
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


def test_what_only_some_backbones_show_has_a_panel_where_it_was_shown(tmp_path, drawn):
    seen = {
        "rankme": 20.0,
        "attention_entropy": 2.0,
        "attention_entropy_least": 1.0,
        "dispatch_similarity_mean": 0.4,
    }
    curves.learning_curve(make_run(tmp_path / "a", diagnostics=seen))
    titles = [axes.get_title(loc="left") for axes in drawn()[5:]]
    assert titles == ["effective rank", "attention entropy", "slot similarity"]


def test_a_run_stopped_before_it_measured_anything_is_an_empty_picture(tmp_path):
    assert curves.learning_curve(make_run(tmp_path / "a", steps=0)).exists()


def test_seeds_of_one_configuration_are_one_line_as_far_as_each_came(tmp_path, drawn):
    runs = [
        make_run(tmp_path / "a", "seed=0", slope=1e-3),
        make_run(tmp_path / "b", "seed=1", "steps=9999", slope=3e-3, steps=2000),
        make_run(tmp_path / "c", "loss=mse", slope=0.0),
    ]
    curves.compare(runs, tmp_path / "out.png")
    (axes,) = drawn()
    assert lines(axes) == {
        "hlgauss, 2 seeds": [[1000, 2], [2000, 4]],
        "mse": [[1000, 0], [2000, 0], [3000, 0], [4000, 0]],
    }
    assert axes.get_ylabel() == "evaluation return"


def test_other_options_are_never_averaged_but_named(tmp_path, drawn):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "agent.learning_rate=2e-3")]
    runs.append(make_run(tmp_path / "c", "game=Breakout"))
    curves.compare(runs, tmp_path / "out.svg")
    breakout, pong = drawn()
    assert list(lines(breakout)) == ["hlgauss"]
    rate = compose([]).agent.learning_rate
    assert list(lines(pong)) == [f"hlgauss, learning_rate={rate}", "hlgauss, learning_rate=0.002"]
    colours = [line.get_color() for line in pong.get_lines()]
    assert len(set(colours)) == 2


def test_runs_without_evaluations_are_compared_by_training_returns(tmp_path, drawn):
    curves.compare(
        [make_run(tmp_path / "a"), make_run(tmp_path / "b", "loss=mse", evaluations=False)],
        tmp_path / "x.png",
    )
    (axes,) = drawn()
    assert axes.get_ylabel().startswith("training return")
    assert np.array(lines(axes)["hlgauss"])[0].tolist() == [500, 0.5]


def test_the_command_draws_one_run_into_its_folder_and_several_where_it_is_told(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a"), make_run(tmp_path / "b", "seed=1")
    assert plot.main(["a"]) == 0
    assert plot.main(["a", "b"]) == 0
    assert plot.main(["a", "b", "out=mine.pdf"]) == 0
    assert capsys.readouterr().out.split() == ["a/learning_curve.png", "comparison.png", "mine.pdf"]
    assert (tmp_path / "mine.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run folder: it has no config.yaml"),
        (["a", "a"], "a run folder is named twice"),
        (["a", "out=x.gif"], "cannot draw into x.gif; the name must end in .png, .pdf or .svg"),
        (["a", "out=no/x.png"], "cannot write no/x.png: No such file or directory"),
        (["a", "ou=x.png"], "unknown option 'ou'; did you mean 'out'? (out)"),
        (["--out"], "unknown option '--out'; did you mean 'out'? (out)"),
        ([], "name the run folders to draw, such as runs/*; --help says more"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    assert plot.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_without_metrics_is_no_run(tmp_path):
    (make_run(tmp_path / "a") / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"it has no metrics\.jsonl"):
        curves.learning_curve(tmp_path / "a")


def test_help_is_readable(capsys):
    assert plot.main(["--help"]) == 0
    assert "usage: python -m rlcls.plot" in capsys.readouterr().out
