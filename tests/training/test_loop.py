"""A loop that lacks a part of the interface is refused before the run begins."""

import pytest

from rlcls._errors import UserError
from rlcls.training import loop, offline, online


class Mine:
    """A loop of a user's own, with the members that `loop.check` reads."""

    unit = "agent_steps"
    counts = {"agent_steps": 0}
    number = advance = summary = acting = save = warm_up = close = None

    def restore(self, saved, tick): ...


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"unit": "epochs"}, "training: {kind}: unit must be one of agent_steps, updates, not epochs"),
        (
            {"unit": "updates"},
            "training: {kind}: counts must have updates, the loop's unit, and has only agent_steps",
        ),
        (
            {"restore": lambda self, saved: None},
            "training: {kind}.restore must take (saved, tick), as rlcls.training.Loop has it",
        ),
    ],
)
def test_a_loop_that_breaks_the_interface_is_one_line(wrong, line):
    made = type("Mine", (Mine,), wrong)()
    with pytest.raises(UserError) as error:
        loop.check(made)
    assert str(error.value) == line.format(kind=f"{type(made).__module__}.Mine")
    loop.check(Mine())


@pytest.mark.untyped
def test_the_members_that_a_loop_lacks_are_one_line():
    class Half:
        unit = "updates"

    with pytest.raises(
        UserError, match=r"Half has no counts and no number and .*; rlcls.training.Loop lists"
    ):
        loop.check(Half())


def test_the_loops_of_the_package_count_the_two_units():
    assert {online.Online.unit, offline.Offline.unit} == set(loop.UNITS)
