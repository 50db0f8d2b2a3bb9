"""A data set whose batches differ from its spec is refused in one line, at the first batch or at the bad row."""

import jax
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.spec import Spec
from rlcls.training import batches
from rlcls.transition import Transition

KIND = f"{__name__}.Data"


class Data:
    """Ten rows of two-dimensional observations and four actions; `changes` replace parts of a batch."""

    spec = Spec(jax.ShapeDtypeStruct((2,), np.float32), jax.ShapeDtypeStruct((), np.int32), 4, None)

    def __init__(self, **changes):
        self.changes = changes

    def sample(self, size, seed, number):
        rows, ones = np.arange(size), np.ones(size, np.float32)
        observations, actions = np.zeros((size, 2), np.float32), np.zeros(size, np.int32)
        batch = Transition(observations, actions, ones, ones, observations, ones)
        return batch._replace(**self.changes), (rows + 5,)


def returning(sampled):
    data = Data()
    data.sample = lambda size, seed, number: sampled
    return data


def test_a_batch_may_have_other_bit_widths_than_the_spec_and_optional_parts():
    batches.check_structure(Data())
    batches.check_structure(Data(reward=np.ones(2), action=np.zeros(2, np.int64)))
    batches.check_structure(Data(next_action=np.zeros(2, np.int32), return_to_go=np.ones(2, np.float32)))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("data", "line"),
    [
        (returning(None), "where it is from), not NoneType"),
        (returning((None, ())), "where it is from), not (NoneType, tuple)"),
        (returning((*Data().sample(2, 0, 0), 1)), "where it is from), not tuple"),
        (
            Data(reward=np.ones((2, 1))),
            "gives reward float [2, 1] in a batch of 2, and its spec says float [2]",
        ),
        (Data(action=np.ones(2)), "gives action float [2] in a batch of 2, and its spec says integer [2]"),
        (
            Data(observation={"a": np.zeros((2, 2))}),
            "gives observation ['a'] float [2, 2] in a batch of 2, and its spec says float [2, 2]",
        ),
        (
            Data(observation=np.zeros((2, 2), np.uint8)),
            "gives observation uint8 [2, 2] in a batch of 2, and its spec says float [2, 2]",
        ),
        (Data(weight=None), "gives weight no array in a batch of 2, and its spec says float [2]"),
    ],
)
def test_a_batch_of_another_structure_is_one_line(data, line):
    with pytest.raises(UserError) as error:
        batches.check_structure(data)
    assert str(error.value).startswith(f"data: {KIND}.sample ") and str(error.value).endswith(line)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"reward": np.array([0.0, np.nan])}, "the reward is not finite at row 6"),
        ({"observation": np.array([[0, np.inf], [0, 0]])}, "the observation is not finite at row 5"),
        (
            {"action": np.array([0, 4])},
            "the action is 4 at row 6, and its spec has 4 actions, 0 to 3",
        ),
        ({"action": np.array([-1, 0])}, "the action is -1 at row 5, and its spec has 4 actions, 0 to 3"),
    ],
)
def test_a_value_that_is_not_finite_or_no_action_is_named_with_its_row(changes, line):
    data = Data(**changes)
    with pytest.raises(UserError) as error:
        batches.check_values(data, *data.sample(2, 0, 0))
    assert str(error.value) == f"data: {KIND}: {line}"
    with pytest.raises(UserError, match="in transition [01] of a batch"):
        batches.check_values(data, data.sample(2, 0, 0)[0], ())
