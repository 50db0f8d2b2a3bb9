"""Streams: recordings of environments that step together."""

import numpy as np
import pytest

from rlcls.datasets import BEGINS, CONTINUES, CUT, TRUNCATED, Layout, Streams, Writer

LAYOUT = Layout(game="counter", frame_shape=(1,), frame_dtype="float32", num_actions=2)


@pytest.fixture
def columns(tmp_path):
    """Records (terminal, start) of the rows of one stream; gives the columns."""

    def record(rows, **close):
        with Writer(tmp_path / "recording", LAYOUT, {}) as writer:
            streams = Streams(writer, 1)
            for number, (terminal, start) in enumerate(rows):
                action, reward = np.zeros(1, np.int32), np.ones(1, np.float32)
                streams.add(
                    np.full((1, 1), number, np.float32),
                    action,
                    reward,
                    np.array([terminal]),
                    np.array([start]),
                )
            streams.close(**close)
            return writer.finish().columns

    return record


TERMINATED = [(False, True), (True, False), (False, False)]
LIMITED = [(False, True), (False, False), (False, False)]


def test_the_final_observation_of_an_episode_that_a_limit_ended_is_marked(columns):
    recorded = columns([*LIMITED, *TERMINATED, *LIMITED, *LIMITED])
    limited, begun = [BEGINS, CONTINUES, TRUNCATED], [BEGINS, CONTINUES, CONTINUES]
    assert recorded.starts.tolist() == [*limited, *begun, *limited, *begun]
    assert recorded.begins.tolist() == [True, False, False] * 4
    returns, is_whole = recorded.episode_returns()
    assert returns.tolist() == [3.0] * 4 and is_whole.tolist() == [True, True, True, False]


def test_the_owner_knows_whether_the_environment_has_ended_the_last_episode(columns):
    assert columns(LIMITED, ended=True).starts.tolist() == [BEGINS, CONTINUES, TRUNCATED]


def test_an_episode_that_was_under_way_at_its_first_row_is_never_whole(columns):
    recorded = columns([(False, False), (False, False), *LIMITED], ended=True)
    assert recorded.starts.tolist() == [CUT, TRUNCATED, BEGINS, CONTINUES, TRUNCATED]
    assert recorded.episode_returns()[1].tolist() == [False, True]


def test_a_single_row_is_no_whole_episode(columns):
    recorded = columns([(False, True)], ended=True)
    assert recorded.starts.tolist() == [BEGINS] and not recorded.episode_returns()[1].any()
