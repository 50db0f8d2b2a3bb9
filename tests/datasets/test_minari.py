"""Minari datasets, written in the layout of Minari 0.5, are read back exactly."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from rlcls._errors import UserError
from rlcls.datasets import BEGINS, CONTINUES, TRUNCATED, open_minari
from rlcls.datasets.minari import grey_frames

h5py = pytest.importorskip("h5py")
pyarrow = pytest.importorskip("pyarrow")

CONTINUOUS = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -1.0], "high": [1.0, 1.0]}
DISCRETE = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 6}


def box(shape, dtype, low=0, high=255):
    return {
        "type": "Box",
        "dtype": dtype,
        "shape": list(shape),
        "low": np.full(shape, low).tolist(),
        "high": np.full(shape, high).tolist(),
    }


VECTORS, IMAGES = box((3,), "float64", -10.0, 10.0), box((210, 160, 3), "uint8")


def random_episodes(observation, action, lengths=(5, 8, 4)):
    random, episodes = np.random.default_rng(0), []
    for number, steps in enumerate(lengths):
        if observation["dtype"] == "uint8":
            height, width = (np.arange(size) for size in observation["shape"][:2])
            phase = random.uniform(0, 6, (steps + 1, 1, 1, 3))
            waves = np.sin(phase + height[:, None, None] / 20 + width[:, None] / 30)
            observations = (127 + 127 * waves).astype(np.uint8)
        else:
            observations = random.normal(size=(steps + 1, *observation["shape"]))
        discrete = action["type"] == "Discrete"
        terminations, truncations = np.zeros(steps, bool), np.zeros(steps, bool)
        (truncations if number == 1 else terminations)[-1] = True
        episodes.append(
            {
                "observations": observations,
                "actions": random.integers(0, 6, steps)
                if discrete
                else random.uniform(-1, 1, (steps, 2)).astype("f4"),
                "rewards": random.normal(size=steps),
                "terminations": terminations,
                "truncations": truncations,
            }
        )
    return episodes


def jpeg(frame):
    data = io.BytesIO()
    Image.fromarray(frame).save(data, format="JPEG")
    return data.getvalue()


def write(path, observation, action, episodes, *, data_format, jpeg_encoding=False):
    folder = path / "data"
    folder.mkdir(parents=True)
    metadata = {
        "observation_space": json.dumps(observation),
        "action_space": json.dumps(action),
        "data_format": data_format,
        "jpeg_encoding": jpeg_encoding,
        "total_episodes": len(episodes),
        "total_steps": sum(len(each["rewards"]) for each in episodes),
        "dataset_id": "test/expert-v0",
        "env_spec": json.dumps({"id": "ALE/Pong-v5"}),
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (write_hdf5 if data_format == "hdf5" else write_arrow)(folder, episodes, jpeg_encoding)
    return path


def write_hdf5(folder, episodes, jpeg_encoding):
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for number, columns in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            for name, values in columns.items():
                if name == "observations" and jpeg_encoding:
                    encoded = [np.frombuffer(jpeg(frame), np.uint8) for frame in values]
                    stored = group.create_dataset(name, len(encoded), dtype=h5py.vlen_dtype(np.uint8))
                    for i, data in enumerate(encoded):
                        stored[i] = data
                else:
                    group.create_dataset(name, data=values, chunks=True)


def write_arrow(folder, episodes, jpeg_encoding):
    for number, columns in enumerate(episodes):
        arrays = {}
        for name, values in columns.items():
            if name == "observations" and jpeg_encoding:
                arrays[name] = pyarrow.array([jpeg(frame) for frame in values], type=pyarrow.binary())
                continue
            if name != "observations":  # the last row has an observation only
                values = np.concatenate([values, np.zeros_like(values[:1])])
            if values.ndim > 1:
                flat = pyarrow.array(values.reshape(-1))
                arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, values[0].size)
            else:
                arrays[name] = pyarrow.array(values)
        batch = pyarrow.RecordBatch.from_pydict(arrays)
        (folder / str(number)).mkdir()
        name = str(folder / str(number) / "part-0.arrow")
        with pyarrow.OSFile(name, "wb") as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        (folder / str(number) / "metadata.json").write_text("{}")


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_vectors_are_read_as_they_were_written(data_format, action, tmp_path):
    episodes = random_episodes(VECTORS, action)
    write(tmp_path / "a", VECTORS, action, episodes, data_format=data_format)
    data = open_minari(tmp_path / "a")
    columns, first = data.recording.columns, 0
    for columns_of in episodes:
        steps = len(columns_of["rewards"])
        last = first + steps
        np.testing.assert_array_equal(
            columns.frames[first : last + 1], columns_of["observations"].astype(np.float32)
        )
        np.testing.assert_array_equal(columns.actions[first:last], columns_of["actions"])
        np.testing.assert_array_equal(columns.rewards[first:last], columns_of["rewards"].astype(np.float32))
        np.testing.assert_array_equal(columns.terminals[first:last], columns_of["terminations"])
        assert not columns.terminals[last] and columns.starts[first] == BEGINS
        is_limited = columns_of["truncations"][-1] and not columns_of["terminations"][-1]
        assert columns.starts[last] == (TRUNCATED if is_limited else CONTINUES)
        first = last + 1
    assert first == columns.num_rows and data.count == sum(len(each["rewards"]) for each in episodes)
    assert data.spec.num_actions == (6 if action is DISCRETE else None)
    if action is CONTINUOUS:
        np.testing.assert_array_equal(data.spec.action_range, [[-1, -1], [1, 1]])


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("jpeg_encoding", [False, True], ids=["raw", "jpeg"])
def test_console_images_become_stacks_of_grey_frames(data_format, jpeg_encoding, tmp_path):
    episodes = random_episodes(IMAGES, DISCRETE, lengths=(3, 2))
    write(tmp_path / "a", IMAGES, DISCRETE, episodes, data_format=data_format, jpeg_encoding=jpeg_encoding)
    data = open_minari(tmp_path / "a", "Pong")
    assert data.spec.observation.shape == (4, 84, 84) and data.spec.observation.dtype == np.uint8
    expected = np.concatenate([grey_frames(each["observations"]) for each in episodes])
    error = np.abs(data.recording.columns.frames.astype(int) - expected)
    assert error.max() == 0 if not jpeg_encoding else 0 < error.mean() < 2


def test_grey_frames_equal_those_of_the_emulator():
    pytest.importorskip("ale_py")
    from rlcls.envs.atari import PROTOCOLS, Atari, rgb_twin

    protocol = dataclasses.replace(PROTOCOLS["dopamine"], repeat_action_probability=0.0, maxpool=False)
    for game in ("Pong", "Seaquest"):
        env, twin = Atari(game, 1, protocol), rgb_twin(game, protocol)
        for each in (env, twin):
            each.reset(seed=np.array([1]))
        for _ in range(30):
            seen, coloured = (each.step(np.array([2]))[0][0, -1] for each in (env, twin))
        error = np.abs(grey_frames(coloured[None])[0].astype(int) - seen)
        assert error.max() <= 1 and error.mean() < 0.02, (game, error.max(), error.mean())
        env.close(), twin.close()


def test_a_fraction_is_the_first_episodes(tmp_path):
    write(tmp_path / "a", VECTORS, DISCRETE, random_episodes(VECTORS, DISCRETE), data_format="hdf5")
    assert open_minari(tmp_path / "a", fraction=0.7).recording.columns.num_rows == 6 + 9


def edit(path, **changes):
    file = path / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shorten(path):
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        rewards = file["episode_1/rewards"][:-1]
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = rewards


MAIN = "main_data.hdf5"
DAMAGE = {
    lambda path: (path / "data" / MAIN).write_bytes(
        (path / "data" / MAIN).read_bytes()[:-500]
    ): f"{MAIN} is damaged",
    lambda path: (path / "data" / MAIN).write_bytes(b""): f"{MAIN} is empty",
    lambda path: (path / "data" / MAIN).unlink(): f"{MAIN} is missing",
    lambda path: (path / "data" / "metadata.json").write_text("{"): "metadata.json is damaged",
    lambda path: edit(path, total_episodes=4): f"{MAIN} is damaged: .*episode_3",
    lambda path: edit(path, data_format="parquet"): "data_format 'parquet' is neither hdf5 nor arrow",
    lambda path: edit(path, action_space='{"type": "Tuple"}'): "actions are Tuple; Discrete from 0",
    lambda path: edit(path, observation_space='{"type": "Dict"}'): "observations are Dict; only Box",
    lambda path: edit(path, env_spec='{"id": "ALE/Breakout-v5"}'): "is of ALE/Breakout-v5, not of Pong",
    lambda path: edit(
        path, observation_space=json.dumps(box((4,), "float64"))
    ): r"episode 0 is damaged: observations",
    shorten: "episode 1 is damaged: its lengths do not match",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=DAMAGE.values())
def test_damage_is_one_line(damage, tmp_path):
    write(tmp_path / "a", VECTORS, DISCRETE, random_episodes(VECTORS, DISCRETE), data_format="hdf5")
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=DAMAGE[damage]) as error:
        open_minari(tmp_path / "a", "Pong")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "damage, message", [(lambda data: data[:-100], "part-0.arrow is damaged"), (lambda _: b"", "is empty")]
)
def test_a_damaged_arrow_file_is_named(damage, message, tmp_path):
    write(tmp_path / "a", VECTORS, DISCRETE, random_episodes(VECTORS, DISCRETE), data_format="arrow")
    file = tmp_path / "a" / "data" / "1" / "part-0.arrow"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=message):
        open_minari(tmp_path / "a")
    file.unlink()
    with pytest.raises(UserError, match="has 0 .arrow files instead of one"):
        open_minari(tmp_path / "a")
