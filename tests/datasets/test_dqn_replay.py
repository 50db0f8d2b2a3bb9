"""DQN Replay files, written like those of Dopamine's logged replay buffer, are read back exactly."""

import gzip
import shutil

import numpy as np
import pytest

from rlcls._errors import UserError
from rlcls.datasets import BEGINS, CUT, open_dqn_replay
from rlcls.datasets.atari_games import NUM_ACTIONS

CAPACITY = 60


class LoggedReplay:
    """A ring of CAPACITY rows that is logged when its cursor reaches the last one."""

    def __init__(self, folder):
        self.folder, self.logs, self.add_count = folder, 0, 0
        folder.mkdir(parents=True)
        self.store = {
            "observation": np.full(
                (CAPACITY, 84, 84), 77, np.uint8
            ),  # rows that were never written are not zero
            "action": np.zeros(CAPACITY, np.int32),
            "reward": np.zeros(CAPACITY, np.float32),
            "terminal": np.zeros(CAPACITY, np.uint8),
        }

    def add(self, observation, action, reward, terminal):
        if self.add_count == 0 or self.store["terminal"][(self.add_count - 1) % CAPACITY]:
            for _ in range(3):
                self._put(np.zeros((84, 84), np.uint8), 0, 0, 0)
        self._put(observation, action, reward, terminal)
        if self.add_count % CAPACITY == CAPACITY - 1:
            self.log(self.add_count)

    def _put(self, *row):
        for column, value in zip(self.store.values(), row, strict=True):
            column[self.add_count % CAPACITY] = value
        self.add_count += 1

    def log(self, add_count):
        arrays = {f"$store$_{name}": column for name, column in self.store.items()}
        arrays |= {"add_count": np.array(add_count), "invalid_range": np.arange(5)}
        for name, array in arrays.items():
            with gzip.open(self.folder / f"{name}_ckpt.{self.logs}.gz", "wb", compresslevel=1) as file:
                np.save(file, array)
        self.logs += 1


def play(folder, lengths, seed=0):
    """Logs episodes of these lengths. Returns (frame, action, reward, terminal) of each step, and its episode."""
    replay, random, steps = LoggedReplay(folder), np.random.default_rng(seed), []
    for episode, length in enumerate(lengths):
        for t in range(length):
            frame = random.integers(0, 256, (84, 84), np.uint8)
            step = frame, int(random.integers(6)), float(random.integers(-1, 2)), t == length - 1
            replay.add(*step)
            steps.append((*step, episode, t))
    replay.log(replay.add_count % CAPACITY)
    return steps


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("dqn")
    steps = play(path / "Pong" / "1" / "replay_logs", [25, 20, 55, 16, 40])
    play(path / "Pong" / "2" / "replay_logs", [70, 10], seed=1)
    return path, steps


def test_recorded_rows_and_stacks_equal_those_that_were_played(published, tmp_path):
    path, steps = published
    data = open_dqn_replay(path, "Pong", runs=[1], cache=str(tmp_path), n_step=3, gamma=0.5)
    columns = data.recording.columns
    place = {step[0].tobytes(): i for i, step in enumerate(steps)}
    played = [place[frame.tobytes()] for frame in columns.frames]
    # The last row of each full checkpoint is lost, because the file was written before it.
    assert len(steps) - len(played) == 2 and played == sorted(played)
    for row, i in enumerate(played):
        _, action, reward, terminal, *_ = steps[i]
        assert (columns.actions[row], columns.rewards[row], columns.terminals[row]) == (
            action,
            reward,
            terminal,
        )
    begins = {row for row, i in enumerate(played) if steps[i][5] == 0}
    assert set(np.flatnonzero(columns.starts == BEGINS)) == begins
    assert (np.flatnonzero(columns.starts == CUT) > 0).all() and (columns.starts == CUT).sum() == 2
    rows = np.arange(columns.num_rows)
    batch, (rows,) = data.sample(200, 0, 0)
    for b, row in enumerate(rows):
        i = played[row]
        _, action, _, _, episode, t = steps[i]
        for back in range(4):
            seen = steps[i - back][0] if t >= back else np.zeros((84, 84), np.uint8)
            np.testing.assert_array_equal(batch.observation[b, 3 - back], seen)
        rest = [step for step in steps[i : i + 3] if step[4] == episode]
        if played[row : row + len(rest) + 1] == list(
            range(i, i + len(rest) + 1)
        ):  # the row is not at the end of a file
            assert batch.action[b] == action
            assert batch.reward[b] == sum(0.5**k * step[2] for k, step in enumerate(rest))
            assert batch.discount[b] == (0 if rest[-1][3] else 0.125)


def test_a_fraction_is_the_first_part_of_each_checkpoint(published, tmp_path):
    path, steps = published
    data = open_dqn_replay(path, "Pong", runs=[1], checkpoints=[0, 1], fraction=0.5, cache=str(tmp_path))
    columns = data.recording.columns
    # Each checkpoint has 59 new rows. The first one starts with three rows of zeros, and its 25th step is terminal.
    assert columns.num_rows == 29 - 3 - 1 + (data.recording.manifest.chunks[1])
    np.testing.assert_array_equal(columns.frames[:25], [step[0] for step in steps[:25]])


def test_a_second_opening_converts_nothing(published, tmp_path, capsys):
    path, _ = published
    first = open_dqn_replay(path, "Pong", runs=[2], cache=str(tmp_path))
    assert "converting Pong, run 2, checkpoint 0 (1 of 2)" in capsys.readouterr().err
    second = open_dqn_replay(path, "Pong", runs=[2], cache=str(tmp_path))
    assert capsys.readouterr().err == "" and first.identity == second.identity


def rewrite(path, change):
    with gzip.open(path) as file:
        array = np.load(file)
    with gzip.open(path, "wb") as file:
        np.save(file, change(array))


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def unpad(array):
    array[28] = 1
    return array


OBSERVATION, ACTION, ADD_COUNT = (
    "$store$_observation_ckpt.0.gz",
    "$store$_action_ckpt.0.gz",
    "add_count_ckpt.0.gz",
)
DAMAGE = [
    (OBSERVATION, cut, "is truncated"),
    (OBSERVATION, flip, "is damaged"),
    (ACTION, flip, "is damaged"),
    (OBSERVATION, lambda path: path.unlink(), "is missing"),
    (ACTION, lambda path: path.unlink(), "is missing"),
    (ADD_COUNT, lambda path: path.write_bytes(b""), "is empty"),
    (ACTION, lambda path: rewrite(path, lambda array: array[:-1]), r"but .*action_ckpt\.0\.gz has 59"),
    (
        ACTION,
        lambda path: rewrite(path, lambda array: array.astype(np.int64)),
        "has int64 .* instead of int32",
    ),
    (
        OBSERVATION,
        lambda path: rewrite(path, lambda array: array[:, :42]),
        r"is damaged: it has uint8 \[60, 42, 84\]",
    ),
    (OBSERVATION, lambda path: rewrite(path, unpad), "3 rows of zeros must follow every terminal"),
    (ADD_COUNT, lambda path: rewrite(path, lambda _: np.array(120)), "so no row of 60 is new"),
    (
        ACTION,
        lambda path: rewrite(path, lambda array: np.where(array, array + 6, 0).astype("i4")),
        "action 11 is not one of the 6 actions of Pong",
    ),
]


@pytest.mark.parametrize("name, damage, message", DAMAGE, ids=[f"{n}-{m}" for n, _, m in DAMAGE])
def test_damage_is_one_line_that_names_the_file(name, damage, message, published, tmp_path):
    shutil.copytree(published[0] / "Pong" / "1", tmp_path / "Pong" / "1")
    path = tmp_path / "Pong" / "1" / "replay_logs" / name
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        open_dqn_replay(tmp_path, "Pong", checkpoints=[0], fraction=0.9)
    line = str(error.value)
    assert len(line.splitlines()) == 1 and (name in line or "Pong, run 1, checkpoint 0" in line)


def test_a_flipped_bit_after_the_fraction_is_detected(published, tmp_path):
    shutil.copytree(published[0] / "Pong" / "1", tmp_path / "Pong" / "1")
    flip(tmp_path / "Pong" / "1" / "replay_logs" / OBSERVATION)
    with pytest.raises(UserError, match="is damaged"):
        open_dqn_replay(tmp_path, "Pong", checkpoints=[0], fraction=0.1)


def test_a_file_that_grows_while_it_is_read_is_detected(published, tmp_path, monkeypatch):
    from rlcls.datasets import dqn_replay

    shutil.copytree(published[0] / "Pong" / "1", tmp_path / "Pong" / "1")
    path = tmp_path / "Pong" / "1" / "replay_logs" / OBSERVATION
    read = dqn_replay._blocks

    def growing(*arguments):
        yield from read(*arguments)
        with path.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(dqn_replay, "_blocks", growing)
    with pytest.raises(UserError, match=r"observation_ckpt\.0\.gz changed while it was read"):
        open_dqn_replay(tmp_path, "Pong", checkpoints=[0])


def test_a_checkpoint_with_the_wrong_number_is_detected(published, tmp_path):
    shutil.copytree(published[0] / "Pong" / "1", tmp_path / "Pong" / "1")
    logs = tmp_path / "Pong" / "1" / "replay_logs"
    for path in logs.glob("*_ckpt.1.gz"):
        path.rename(logs / path.name.replace("ckpt.1", "ckpt.7"))
    with pytest.raises(UserError, match=r"add_count_ckpt\.7\.gz says 119, which checkpoint 7 cannot have"):
        open_dqn_replay(tmp_path, "Pong", checkpoints=[7])


def test_a_wrong_choice_is_one_line(published):
    path, _ = published
    for message, arguments in {
        "give the folder of the data: data.path=FOLDER": {"path": None},
        "has no folder Breakout; it has Pong": {"game": "Breakout"},
        "unknown game 'Pnog'; did you mean 'Pong'": {"game": "Pnog"},
        "replay_logs is missing": {"runs": [5]},
        r"observation_ckpt\.9\.gz is missing": {"checkpoints": [9]},
    }.items():
        with pytest.raises(UserError, match=message):
            open_dqn_replay(**{"path": path, "game": "Pong", **arguments})
    with pytest.raises(ValueError, match="fraction must be above 0 and at most 1, not 10"):
        open_dqn_replay(path, "Pong", fraction=10)


def test_games_have_the_number_of_actions_of_the_emulator():
    ale = pytest.importorskip("ale_py")
    from rlcls.envs.atari import games

    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    assert len(NUM_ACTIONS) == 60 and NUM_ACTIONS.keys() <= set(games())
    console = ale.ALEInterface()
    for game, count in {count: (game, count) for game, count in NUM_ACTIONS.items()}.values():
        name = "".join(f"_{c.lower()}" if c.isupper() else c for c in game).lstrip("_")
        console.loadROM(ale.roms.get_rom_path(name))
        assert len(console.getMinimalActionSet()) == count, game
