"""The driver of a loop: what it shows, and what it warns of."""

import pytest

from rlcls.evaluation import Periodic
from rlcls.runs import Checkpoints, Metrics, Progress, run
from rlcls.runs.run import last_shown
from rlcls.training import Saved


class Loop:
    """Ten agent steps and one "train" line in every step."""

    unit = "agent_steps"

    def __init__(self, clipped):
        self.number, self.clipped = 0, clipped

    @property
    def counts(self):
        return {"agent_steps": 10 * self.number, "frames": 40 * self.number, "updates": 0}

    def advance(self):
        self.number += 1
        train = {"loss": 0.5, "clip_fraction": self.clipped[self.number - 1], "episode_return": -20.5}
        return [("train", train)]

    def acting(self):
        return None

    def save(self):
        return Saved({}, {}, {})

    def restore(self, saved, tick=None): ...

    def warm_up(self, until):
        return 1.0

    def close(self): ...


class NoCheckpoints(Checkpoints):
    def save(self, steps, saved, **counters):
        return []


def evaluator(acting, number, tick):
    for game in range(3):
        tick(game, 3)
    return {"return_mean": -19.0}


@pytest.fixture
def drive(tmp_path):
    def drive(clipped, display=None, shown=None):
        metrics = Metrics(tmp_path, tensorboard=False, wandb=None)
        run(
            Loop(clipped),
            steps=10 * len(clipped),
            evaluators=[Periodic("eval", evaluator, 20)],
            metrics=metrics,
            checkpoints=NoCheckpoints(tmp_path, 1),
            checkpoint_every=1000,
            stopped=lambda: False,
            progress=display or Progress(10 * len(clipped)),
            shown=shown,
            widen=lambda: "loss.vmax=100 would do",
        )
        metrics.close()

    return drive


def test_targets_clipped_over_three_lines_are_one_warning_with_the_range_to_ask_for(drive, capsys):
    drive([0.72] * 8)
    warning = "warning: 72% of the targets lie outside the support and are clipped; loss.vmax=100 would do\n"
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize("clipped", [[0.1] * 8, [0.5, 0.5, 0.0] * 3])
def test_targets_clipped_a_little_or_for_a_moment_are_no_warning(clipped, drive, capsys):
    drive(clipped)
    assert capsys.readouterr().err == ""


def test_evaluations_and_checkpoints_are_phases_of_the_display(drive, monkeypatch, capsys):
    class Display(Progress):
        def _refresh(self):
            if self._phase:
                print(self._phase)

    drive([0.0] * 4, Display(40))
    assert capsys.readouterr().out.splitlines() == 2 * [
        f"evaluating: {done} of 3 done (0:00)" for done in range(3)
    ]


def test_a_resumed_run_shows_the_values_that_it_showed_before(drive, tmp_path, capsys):
    drive([0.0] * 4)
    shown = last_shown(tmp_path)
    assert shown == {"training_return": -20.5, "evaluation_return": -19.0, "loss": 0.5}
    display = Progress(0)
    drive([], display, shown)
    display.close()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith("training return -20.5  evaluation return -19.0  loss 0.5")
