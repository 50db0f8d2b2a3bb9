"""The driver of a loop: its display, warnings and checkpoints."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.evaluation import Periodic
from rlcls.runs import Checkpoints, Metrics, Progress, metrics, run
from rlcls.runs.run import _shown_in, last_shown
from rlcls.training import Diverged, Saved


class Loop:
    """A loop with ten agent steps and one "train" line in every step."""

    unit = "agent_steps"

    def __init__(self, clipped, fails_after=None):
        self.number, self.clipped, self.fails_after = 0, clipped, fails_after

    @property
    def counts(self):
        return {"agent_steps": 10 * self.number, "frames": 40 * self.number, "updates": 0}

    def advance(self):
        if self.number == self.fails_after:
            raise ZeroDivisionError("a bug in user code")
        self.number += 1
        train = {"loss": 0.5, "clip_fraction": self.clipped[self.number - 1], "episode_return": -20.5}
        return [("train", train)]

    def summary(self):
        return {"loss": 0.25} if self.number else {}

    def acting(self):
        return None

    def save(self):
        return Saved({}, {}, {})

    def restore(self, saved, tick=None): ...

    def warm_up(self, until):
        return 1.0

    def close(self): ...


class NoCheckpoints(Checkpoints):
    """Records the contents of checkpoints instead of writing them."""

    def __init__(self, run_dir, keep):
        super().__init__(run_dir, keep)
        self.saves = []

    def save(self, steps, saved, **counters):
        self.saves.append((steps, counters))
        return []


def evaluator(acting, number, tick):
    for game in range(3):
        tick(game, 3)
    return {"return_mean": -19.0}


@pytest.fixture
def drive(tmp_path):
    def drive(
        clipped,
        display=None,
        shown=None,
        evaluator=evaluator,
        stopped=lambda: False,
        loop=None,
        steps=None,
        **options,
    ):
        checkpoints = NoCheckpoints(tmp_path, 1)
        log = Metrics(tmp_path, tensorboard=False, wandb=None)
        drive.saves = checkpoints.saves
        run(
            loop or Loop(clipped),
            steps=10 * len(clipped) if steps is None else steps,
            evaluators=[Periodic("eval", evaluator, 20)],
            metrics=log,
            checkpoints=checkpoints,
            stopped=stopped,
            progress=display or Progress(10 * len(clipped)),
            shown=shown,
            widen=lambda: "loss.vmax=100 would do",
            **{"checkpoint_every": 1000, **options},
        )
        log.close()
        return checkpoints.saves

    return drive


def test_targets_clipped_over_three_lines_are_one_warning_with_the_range_to_ask_for(drive, capsys):
    drive([0.72] * 8)
    warning = "warning: 72% of the targets lie outside the support and are clipped; loss.vmax=100 would do\n"
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize("clipped", [[0.1] * 8, [0.5, 0.5, 0.0] * 3, [None] * 4])
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


def test_the_last_line_shows_the_updates_that_no_line_of_metrics_holds(drive, tmp_path, capsys):
    display = Progress(40)
    drive([0.0] * 4, display)
    display.close()
    assert capsys.readouterr().out.splitlines()[-1].endswith("loss 0.25")
    assert last_shown(tmp_path)["loss"] == 0.5


def test_steps_between_two_vector_steps_end_evaluate_and_save_at_the_second(drive, tmp_path):
    ((steps, counters),) = drive([0.0] * 4, steps=25)
    rows = metrics.read(tmp_path)
    assert steps == 30 == counters["counts"]["agent_steps"]
    assert [row["agent_steps"] for row in rows if row["kind"] == "eval"] == [20, 30]


def test_evaluations_and_checkpoints_are_left_out_of_the_rates(drive, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])

    class Timed(Loop):
        def advance(self):
            clock[0] += 2.0
            return super().advance()

        def save(self):
            clock[0] += 100.0
            return super().save()

    def slow(acting, number, tick):
        clock[0] += 1000.0
        return {}

    drive([0.0] * 5, evaluator=slow, loop=Timed([0.0] * 5))
    rows = [row for row in metrics.read(tmp_path) if row["kind"] == "train"]
    assert [row["steps_per_second"] for row in rows] == [5.0] * 5
    assert rows[-1]["seconds"] == 5 * 2 + 2 * 1000


@pytest.mark.untyped
@pytest.mark.parametrize("number", [np.float32(1.5), jnp.float32(1.5), np.array(1.5), 1.5])
def test_the_best_return_is_a_finite_number_whatever_type_an_evaluator_gives(number, drive):
    scores = iter([number, float("inf"), float("nan"), None])
    saves = drive([0.0] * 8, evaluator=lambda *_: {"return_mean": next(scores)}, keep_best=True)
    assert [steps for steps, _ in saves] == [20, 80]
    for _, counters in saves:
        assert counters["best"] == {"steps": 20, "return_mean": 1.5}
        assert type(counters["best"]["return_mean"]) is float


@pytest.mark.parametrize("name", ["kind", "agent_steps", "seconds"])
def test_an_evaluator_that_returns_a_name_of_every_line_is_one_line(name, drive):
    with pytest.raises(UserError, match=f"the evaluator eval returned {name}, a name that every line"):
        drive([0.0] * 4, evaluator=lambda *_: {name: 1.0})


def test_the_best_checkpoint_so_far_is_kept_by_a_run_that_looks_for_none(drive):
    best = {"steps": 7, "return_mean": -30.0}
    assert [counters["best"] for _, counters in drive([0.0] * 2, best=best)] == [best]


def test_a_list_where_the_display_shows_a_number_is_a_dash():
    assert _shown_in("train", {"loss": [1.0]}) == {"loss": None}


def broken(acting, number, tick):
    raise KeyError("a bug in user code")


@pytest.mark.parametrize(
    ("options", "steps", "unfinished"),
    [
        ({"loop": Loop([0.0] * 4, fails_after=3)}, 30, []),
        ({"loop": Loop([0.0] * 4, fails_after=0)}, 0, []),
        ({"evaluator": broken}, 20, ["eval"]),
        ({"evaluator": lambda *_: {"kind": 1}}, 20, ["eval"]),
    ],
)
def test_an_exception_of_the_users_own_passes_once_the_run_has_been_saved(options, steps, unfinished, drive):
    with pytest.raises((ZeroDivisionError, KeyError, UserError)) as error:
        drive([0.0] * 4, **options)
    assert error.value.__notes__ == [f"saved at agent step {steps}; the same command continues from there"]
    ((saved_steps, counters),) = drive.saves
    assert saved_steps == steps and counters["unfinished"] == unfinished


def test_a_checkpoint_that_is_kept_for_good_is_kept_when_the_evaluation_there_fails(drive):
    with pytest.raises(KeyError):
        drive([0.0] * 4, evaluator=broken, keep_every=20)
    assert [(steps, counters["permanent"]) for steps, counters in drive.saves] == [(20, True)]


def test_a_moment_that_is_saved_already_is_not_saved_again_when_the_next_step_fails(drive):
    with pytest.raises(ZeroDivisionError) as error:
        drive([0.0] * 4, loop=Loop([0.0] * 4, fails_after=1), checkpoint_every=10)
    assert error.value.__notes__ == ["saved at agent step 10; the same command continues from there"]
    assert [steps for steps, _ in drive.saves] == [10]


def test_where_nothing_can_be_saved_an_exception_names_the_last_checkpoint(drive, tmp_path):
    class Halfway(Loop):
        def save(self):
            raise RuntimeError("the last step ended halfway")

    for checkpoint in (
        "there is no checkpoint yet",
        f"{tmp_path}/checkpoints/{10:012d} is the last good checkpoint",
    ):
        with pytest.raises(ZeroDivisionError) as error:
            drive([0.0] * 4, loop=Halfway([0.0] * 4, fails_after=3))
        assert error.value.__notes__ == [f"not saved (the last step ended halfway); {checkpoint}"]
        (tmp_path / "checkpoints" / f"{10:012d}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoints" / f"{10:012d}" / "manifest.json").touch()


def test_divergence_is_answered_with_the_options_that_may_prevent_it(drive):
    class Diverging(Loop):
        def advance(self):
            raise Diverged("loss is nan at update 2")

    with pytest.raises(Diverged) as error:
        drive([0.0] * 4, loop=Diverging([0.0] * 4))
    assert error.value.__notes__ == [
        "there is no checkpoint yet",
        "a lower learning rate may help, or gradients clipped to a smaller norm (agent.max_gradient_norm)",
    ]


def test_a_signal_before_anything_is_new_writes_no_checkpoint(drive):
    for is_saved, saves in ((True, 0), (False, 1)):
        assert len(drive([0.0] * 4, stopped=lambda: True, is_saved=is_saved)) == saves
    assert not drive([0.0] * 4, stopped=lambda: True, is_saved=True, unfinished=["eval"])
