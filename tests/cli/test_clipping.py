"""The advice for targets outside the support comes from the returns that were played."""

import numpy as np
import pytest

from rlcls.cli import clipping
from rlcls.cli.compose import compose
from rlcls.replay import FrameReplay

CARTPOLE = ["env=gymnasium", "loss.vmin=-10", "loss.vmax=10"]


def replay_of(rewards, episode):
    """A replay of one environment whose episodes all have `episode` steps."""
    replay = FrameReplay(1, 1000, frame_shape=(1,), frame_dtype=np.float32, stack=0, gamma=0.99)
    for step in range(600):
        place = step % episode
        replay.add(
            np.zeros((1, 1), np.float32),
            np.zeros(1, np.int32),
            np.full(1, rewards, np.float32),
            np.array([place == episode - 1]),
            np.array([place == 0]),
        )
    return replay


def test_the_advised_support_contains_the_returns_played_and_a_margin():
    played = (1 - 0.99**200) / (1 - 0.99)  # 200 rewards of 1
    text = clipping.advice(compose(CARTPOLE), replay_of(1.0, 200))
    low, high = (float(word.partition("=")[2]) for word in text.split()[:2])
    assert text.startswith("loss.vmin=") and "loss.vmax=" in text
    assert low == -10 and played < high <= 1.2 * 100


def test_negative_returns_widen_the_support_downwards():
    text = clipping.advice(compose(CARTPOLE), replay_of(-1.0, 200))
    assert float(text.split()[0].partition("=")[2]) < -86 and " loss.vmax=10 " in text


def test_if_the_returns_lie_inside_the_support_the_advice_is_that_values_are_too_large():
    text = clipping.advice(compose(["env=gymnasium"]), replay_of(0.1, 20))
    assert text == "the returns played so far lie inside it, so the values are too large"


def test_without_a_discount_the_advice_has_no_number():
    config = compose(CARTPOLE)
    del config.replay.gamma
    assert "a wider support" in clipping.advice(config, replay_of(1.0, 20))


@pytest.mark.parametrize("rewards", [0.0, None])
def test_without_rewards_or_a_replay_the_advice_has_no_number(rewards):
    replay = None if rewards is None else replay_of(rewards, 20)
    assert "a wider support" in clipping.advice(compose(CARTPOLE), replay)
