"""Values are evaluated on held-out transitions, which are never sampled."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlcls.datasets import BEGINS, CONTINUES, Layout, Rows, Transitions, Writer, open_recording
from rlcls.evaluation import Evaluator, HeldOutEvaluator

pytestmark = pytest.mark.untyped  # `Values` has only `q_values`

GAMMA, EPISODES, LENGTH = 0.9, 60, 5


def record(path, game="test"):
    """A recording of episodes of five rows, whose frames are (episode, row in the episode)."""
    layout = Layout(game=game, frame_shape=(2,), frame_dtype="float32", num_actions=3)
    episode, row = np.divmod(np.arange(EPISODES * LENGTH), LENGTH)
    random = np.random.default_rng(0)
    rows = Rows(
        np.stack([episode, row], axis=1).astype(np.float32),
        random.integers(0, 3, len(row), np.int32),
        random.normal(size=len(row)).astype(np.float32),
        row == LENGTH - 2,
        np.where(row == 0, BEGINS, CONTINUES).astype(np.uint8),
    )
    with Writer(path, layout, {}) as writer:
        writer.append(rows)
        return writer.finish()


class Values:
    """Q(s, a) = (s @ acting)[a]."""

    def q_values(self, acting, observations):
        frames = observations["frames"] if isinstance(observations, dict) else observations
        return jnp.asarray(frames) @ acting


def expected(recording, rows, weights):
    """The three means, computed with a loop over transitions."""
    sums = np.zeros(3)
    for row in rows:
        values = recording.columns.frames[row] @ weights
        action = recording.columns.actions[row]
        bootstrap = (
            0
            if recording.columns.terminals[row]
            else GAMMA * max(recording.columns.frames[row + 1] @ weights)
        )
        sums += [
            abs(values[action] - recording.columns.rewards[row] - bootstrap),
            np.log(np.exp(values).sum()) - values[action],
            np.argmax(values) == action,
        ]
    return sums / len(rows)


@pytest.mark.parametrize("batch_size", [7, 512])
def test_the_means_equal_those_of_a_loop_over_transitions(batch_size, tmp_path):
    recording = record(tmp_path / "a")
    data = Transitions(recording, gamma=GAMMA, held_out=0.3, seed=1)
    evaluator = HeldOutEvaluator(Values(), None, seed=0, data=data, transitions=20, batch_size=batch_size)
    assert isinstance(evaluator, Evaluator)
    weights, ticks = np.array([[0.1, 0.0, -0.1], [0.0, 1.0, 0.5]], np.float32), []
    values = evaluator(jnp.asarray(weights), 10, lambda done, total: ticks.append((done, total)))
    assert values.pop("transitions") == 20 and ticks[-1] == (20, 20)
    np.testing.assert_allclose(
        list(values.values()), expected(recording, data.held_out(20)[0], weights), rtol=1e-5
    )


def test_whole_episodes_are_held_out_and_never_sampled(tmp_path):
    recording = record(tmp_path / "a")
    data = Transitions(recording, held_out=0.3, seed=1, sampling="epochs")
    (held_out,), (_, (sampled,)) = data.held_out(1000), data.sample(data.count, 0, 0)
    outside = set(held_out // LENGTH)
    assert not outside & set(sampled // LENGTH) and len(held_out) == 4 * len(outside)
    assert len(held_out) + len(sampled) == Transitions(recording).count
    assert 0.1 < len(outside) / EPISODES < 0.5
    other = Transitions(recording, held_out=0.3, seed=2).held_out(1000)[0]
    assert outside != set(other // LENGTH)


def test_several_games_are_scored_in_equal_parts(tmp_path):
    for game in ("Pong", "Qbert"):
        record(tmp_path / game, game)
    data = open_recording(tmp_path, games=["Pong", "Qbert"], held_out=0.3)
    games, rows = data.held_out(40)
    assert np.bincount(games).tolist() == [20, 20]
    batch = data.at(games, rows)
    np.testing.assert_array_equal(batch.observation["game"], games)
    evaluator = HeldOutEvaluator(Values(), None, seed=0, data=data)
    assert evaluator(jnp.ones((2, 3)), 0, lambda done, total: None)["td_error"] > 0


def test_agents_and_data_without_values_or_held_out_episodes_are_refused(tmp_path):
    data = Transitions(record(tmp_path / "a"))
    for message, agent, source in (
        ("data.held_out keeps no episode out of training; give data.held_out=0.05", Values(), data),
        ("held-out transitions need data= and data.held_out", Values(), None),
        ("SimpleNamespace has no values of single actions", types.SimpleNamespace(), data),
    ):
        with pytest.raises(ValueError, match=message):
            HeldOutEvaluator(agent, None, seed=0, data=source)
