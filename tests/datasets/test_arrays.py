"""The sampler of compiled loops beside `Transitions`; test_transitions.py compares the two row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.datasets import BEGINS, ArrayTransitions, Layout, Rows, Transitions


def test_continuous_actions_and_whole_observations_are_those_of_the_host(tmp_path, record, compare_on_device):
    layout = Layout(
        game="arm", frame_shape=(2, 3), frame_dtype="float32", action_low=(-1, -1), action_high=(1, 1)
    )
    frames = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    actions = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
    starts = np.array([BEGINS, 0, 0, 0, 0], np.uint8)
    rows = Rows(frames, actions, np.ones(5, np.float32), np.zeros(5, bool), starts)
    compare_on_device(Transitions(record(tmp_path / "a", rows, layout), n_step=2), np.arange(4))


def test_every_transition_is_drawn_equally_often_and_no_other_row(tmp_path, record, make_rows, layout):
    data = Transitions(record(tmp_path / "a", make_rows(layout, [30, 20])), held_out=0.5, seed=3)
    columns = jax.tree.map(jnp.asarray, data.arrays())
    # Lanes that hold out other numbers of episodes have rows of equal length, whose rest is never drawn.
    columns["first_rows"] = jnp.pad(columns["first_rows"], (0, 9), constant_values=-1)
    batch, rows = ArrayTransitions.of(data).sample(columns, 8000, jax.random.key(0))
    drawn, counts = np.unique(rows, return_counts=True)
    assert set(drawn) == set(data.draw(2000, 0, 0)) and len(drawn) == data.count
    np.testing.assert_allclose(counts, 8000 / data.count, rtol=0.25)
    np.testing.assert_array_equal(batch.action, data.at(np.asarray(rows, np.int64)).action)


def test_another_seed_has_other_noise_and_other_episodes_and_the_same_columns(
    tmp_path, record, make_rows, layout
):
    recording = record(tmp_path / "a", make_rows(layout, [9] * 40))
    plain = Transitions(recording, seed=1)
    assert plain.with_seed(2) is plain
    data, alone = (Transitions(recording, reward_noise=0.5, held_out=0.3, seed=seed) for seed in (1, 2))
    other = data.with_seed(2)
    for name, column in other.arrays().items():
        np.testing.assert_array_equal(column, alone.arrays()[name])
    assert other.count != data.count or (other.arrays()["first_rows"] != data.arrays()["first_rows"]).any()
    for name in ("frames", "actions", "terminals", "begins", "steps"):
        assert np.shares_memory(other.arrays()[name], data.arrays()[name])
    assert (other.draw(50, 0, 0) == alone.draw(50, 0, 0)).all()


def test_an_observation_that_is_not_finite_is_named_by_its_row(tmp_path, record, make_rows):
    layout = Layout(game="arm", frame_shape=(3,), frame_dtype="float32", num_actions=2)
    rows = make_rows(layout, [20])
    rows.frames[7, 1] = np.nan
    data = Transitions(record(tmp_path / "a", rows, layout))
    with pytest.raises(UserError, match="a: the observation is not finite at row 7"):
        data.arrays()
