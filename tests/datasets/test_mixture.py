"""Several games in one batch."""

import dataclasses

import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.datasets import TRUNCATED, Mixture, Transitions, open_recording
from rlcls.training import Dataset

GAMES = {"Pong": 6, "Breakout": 4, "Freeway": 3}


@pytest.fixture
def folder(tmp_path, record, make_rows, layout):
    for seed, (game, actions) in enumerate(GAMES.items()):
        each = dataclasses.replace(layout, game=game, num_actions=actions)
        record(tmp_path / game, make_rows(each, [30, 20], seed=seed), each)
    return tmp_path


def test_each_transition_is_from_the_game_with_its_number(folder):
    data = open_recording(folder, games=list(GAMES), n_step=2)
    assert isinstance(data, Dataset) and data.spec.num_actions == 6
    batch, (games, rows) = data.sample(200, 3, 4)
    assert set(games) == {0, 1, 2} and (batch.observation["game"] == games).all()
    for number, game in enumerate(GAMES):
        expected = Transitions(data.games[game].recording, n_step=2).at(rows[games == number])
        for name in ("observation", "next_observation"):
            frames = getattr(batch, name)["frames"][games == number]
            np.testing.assert_array_equal(frames, getattr(expected, name))
        np.testing.assert_array_equal(batch.reward[games == number], expected.reward)
        np.testing.assert_array_equal(batch.return_to_go[games == number], expected.return_to_go)


def test_fewer_held_out_transitions_than_games_are_refused(folder):
    data = open_recording(folder, games=list(GAMES), held_out=0.5)
    with pytest.raises(ValueError, match="2 held-out transitions are too few for 3 games"):
        data.held_out(2)


def test_games_come_in_proportion_to_their_weights(folder):
    data = open_recording(folder, games=list(GAMES), weights=[1, 0, 3])
    games = np.concatenate([data.sample(100, 0, number)[1][0] for number in range(40)])
    np.testing.assert_allclose(np.bincount(games) / 4000, [0.25, 0, 0.75], atol=0.03)


def test_games_of_equal_length_draw_different_rows(folder):
    data = open_recording(folder, games=["Pong", "Breakout"])
    _, (games, rows) = data.sample(100, 0, 0)
    count = min((games == 0).sum(), (games == 1).sum())
    assert (rows[games == 0][:count] != rows[games == 1][:count]).any()


def test_each_game_has_its_own_noise(tmp_path, record, make_rows, layout):
    for game in ("Pong", "Breakout"):
        each = dataclasses.replace(layout, game=game)
        record(tmp_path / game, make_rows(each, [30]), each)
    games = open_recording(tmp_path, games=["Pong", "Breakout"], reward_noise=1.0, seed=3).games.values()
    one, other = (game.at(np.arange(29)).reward for game in games)
    assert (one != other).all()


def test_the_behaviour_is_the_mean_return_of_whole_episodes(tmp_path, record, make_rows, layout):
    rows = make_rows(layout, [30, 20, 10, 9])
    rows.terminals[[48, 58]] = False
    rows.starts[49] = TRUNCATED  # a limit ended the second episode, and the third one is not complete
    expected = (rows.rewards[:30].sum() + rows.rewards[30:50].sum() + rows.rewards[60:].sum()) / 3
    for game in ("Pong", "Breakout"):
        record(
            tmp_path / game, rows, dataclasses.replace(layout, game=game, rewards_clipped=game == "Breakout")
        )
    data = open_recording(tmp_path, games=["Pong", "Breakout"], reward_clip=1.0, reward_noise=1.0)
    assert data.behaviour_returns == {"Pong": pytest.approx(expected)}


def test_hosts_draw_different_transitions(folder):
    whole = open_recording(folder, games=["Pong", "Breakout"]).sample(40, 0, 0)[1]
    parts = [
        open_recording(folder, games=["Pong", "Breakout"], host=h, hosts=2).sample(20, 0, 0)[1]
        for h in (0, 1)
    ]
    for host, part in enumerate(parts):
        np.testing.assert_array_equal(part[0], whole[0][host::2])
    assert (parts[0][1] != parts[1][1]).any()


def test_unsuitable_games_and_weights_are_refused(folder):
    for message, options in {
        "weights must be 2 numbers": {"weights": [1]},
        "need sampling=replacement": {"sampling": "epochs"},
    }.items():
        with pytest.raises(ValueError, match=message):
            open_recording(folder, games=["Pong", "Breakout"], **options)
    with pytest.raises(UserError, match=r"Pong holds Pong, not Qbert"):
        open_recording(folder / "Pong", game="Qbert")
    with pytest.raises(ValueError, match="weights need games"):
        open_recording(folder / "Pong", weights=[1.0])


def test_the_identity_names_the_contents_of_each_game(folder):
    both = open_recording(folder, games=["Pong", "Breakout"])
    assert isinstance(both, Mixture)
    assert both.identity == {**both.games["Pong"].identity, **both.games["Breakout"].identity}
    assert both.identity["Pong"].startswith("50 rows (") and len(set(both.identity.values())) == 2
