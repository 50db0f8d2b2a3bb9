"""RL Unplugged files, written with the code of protobuf and tensorboardX, are read back exactly."""

import gzip
import io

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from rlcls._errors import UserError
from rlcls.datasets import BEGINS, open_rl_unplugged
from rlcls.datasets.tfrecord import example


def example_class():
    """`tf.train.Example`, as tensorflow/core/example/{example,feature}.proto define it."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    for name, kind in {
        "BytesList": field.TYPE_BYTES,
        "FloatList": field.TYPE_FLOAT,
        "Int64List": field.TYPE_INT64,
    }.items():
        file.message_type.add(name=name).field.add(name="value", number=1, label=3, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        kind = f".tensorflow.{name.title().replace('_', '')}"
        feature.field.add(name=name, number=number, label=1, type=11, type_name=kind, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".tensorflow.Feature")
    kind = ".tensorflow.Features.FeatureEntry"
    features.field.add(name="feature", number=1, label=3, type=11, type_name=kind)
    whole = file.message_type.add(name="Example")
    whole.field.add(name="features", number=1, label=1, type=11, type_name=".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


Example = example_class()


def png(frame):
    data = io.BytesIO()
    Image.fromarray(frame).save(data, format="PNG")
    return data.getvalue()


def episode(length, seed, *, terminal=True, **changes):
    """An episode's columns, and their Example."""
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (length, 84, 84), np.uint8)
    actions, rewards = random.integers(0, 6, length), random.integers(-4, 5, length).astype(np.float32)
    discounts = np.ones(length, np.float32)
    discounts[-1] = 0 if terminal else 1
    features = {
        "observations": [png(frame) for frame in frames],
        "actions": actions,
        "unclipped_rewards": rewards,
        "clipped_rewards": rewards.clip(-1, 1),
        "discounts": discounts,
        "checkpoint_idx": np.array([3]),
        "episode_idx": np.array([-seed]),
        "episode_return": rewards[:1],
        **changes,
    }
    message = Example()
    for name, values in features.items():
        kind = (
            "bytes_list"
            if isinstance(values, list)
            else "float_list"
            if values.dtype.kind == "f"
            else "int64_list"
        )
        getattr(message.features.feature[name], kind).value.extend(
            values if kind == "bytes_list" else values.tolist()
        )
    return (frames, actions, rewards, terminal), message.SerializeToString()


def write(path, examples):
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix(".plain")
    writer = RecordWriter(str(plain))
    for data in examples:
        writer.write(data)
    writer.close()
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()


@pytest.fixture
def published(tmp_path):
    """Two checkpoints of five episodes each."""
    episodes = [
        episode(length, seed, terminal=seed % 4 != 1) for seed, length in enumerate([9, 7, 8, 6, 12] * 2)
    ]
    for number in range(2):
        shard = episodes[5 * number : 5 * number + 5]
        write(tmp_path / "Pong" / f"run_1-{number:05d}-of-00002", [data for _, data in shard])
    return tmp_path, [columns for columns, _ in episodes]


def test_episodes_are_read_as_they_were_written(published):
    path, episodes = published
    columns = open_rl_unplugged(path, "Pong").recording.columns
    first = 0
    for frames, actions, rewards, terminal in episodes:
        last = first + len(actions)
        np.testing.assert_array_equal(columns.frames[first:last], frames)
        np.testing.assert_array_equal(columns.actions[first:last], actions)
        np.testing.assert_array_equal(columns.rewards[first:last], rewards)
        # The last observation follows the action that ended the episode.
        assert columns.terminals[first:last].tolist() == [False] * (len(actions) - 2) + [terminal, False]
        assert columns.starts[first] == BEGINS and not columns.starts[first + 1 : last].any()
        first = last
    assert first == columns.num_rows


def test_no_transition_starts_at_the_last_step(published):
    path, episodes = published
    data = open_rl_unplugged(path, "Pong", sampling="epochs")
    assert data.count == sum(len(actions) - 1 for _, actions, *_ in episodes)
    ends = np.cumsum([len(actions) for _, actions, *_ in episodes]) - 1
    assert not set(data.sample(data.count, 0, 0)[1][0]) & set(ends)


def test_a_fraction_is_the_first_episodes_of_each_checkpoint(published):
    path, episodes = published
    columns = open_rl_unplugged(path, "Pong", fraction=0.4).recording.columns
    first_two = [episodes[0], episodes[1], episodes[5], episodes[6]]
    np.testing.assert_array_equal(columns.frames, np.concatenate([frames for frames, *_ in first_two]))


def test_numbers_can_be_packed_or_unpacked_and_negative():
    _, data = episode(3, 5)
    assert example(data)["episode_idx"].tolist() == [-5]
    # Feature {int64_list {value: 7 value: -1}} with one field for each number: keys 0x08.
    numbers = b"\x08\x07\x08" + b"\xff" * 9 + b"\x01"
    feature = b"\x1a" + bytes([len(numbers)]) + numbers
    entry = b"\x0a\x01a\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    assert example(b"\x0a" + bytes([len(features)]) + features)["a"].tolist() == [7, -1]


def raw_flip(path):
    """Flips a bit of the records, which only the checksum of the record detects."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[len(data) // 2] ^= 1
    path.write_bytes(gzip.compress(data))


def raw_cut(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5]))


def one(**changes):
    return lambda path: write(path, [episode(5, 0, **changes)[1]])


def without_rewards(path):
    message = Example.FromString(episode(5, 0)[1])
    del message.features.feature["unclipped_rewards"]
    write(path, [message.SerializeToString()])


DAMAGE = {
    raw_flip: "does not match its checksum",
    raw_cut: "is truncated",
    lambda path: path.write_bytes(path.read_bytes()[:-30]): "is truncated",
    lambda path: path.write_bytes(b"not gzip"): "is damaged: Not a gzipped file",
    lambda path: path.write_bytes(b""): "is empty",
    lambda path: path.write_bytes(gzip.compress(b"")): "has no episodes",
    lambda path: path.unlink(): "is missing",
    one(actions=np.zeros(4, int)): "the lengths of episode 0 differ",
    one(observations=[b"not a picture"] * 5): "an image cannot be decoded",
    one(observations=[png(np.zeros((42, 42), np.uint8))] * 5): r"frames are uint8 \[5, 42, 42\]",
    one(actions=np.full(5, 6)): "action 6 is not one of the 6 actions of Pong",
    without_rewards: "episode 0 has no unclipped_rewards, but actions",
    lambda path: (
        path.parent / "run_1-00000-of-00100"
    ).touch(): "files of run 1 of 00002 and 00100 checkpoints",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=DAMAGE.values())
def test_damage_is_one_line_that_names_the_file(damage, published):
    path, _ = published
    damage(path / "Pong" / "run_1-00001-of-00002")
    with pytest.raises(UserError, match=DAMAGE[damage]) as error:
        open_rl_unplugged(path, "Pong")
    line = str(error.value)
    assert len(line.splitlines()) == 1
    assert "run_1-00001-of-00002" in line or "checkpoint 1" in line or "checkpoints" in line


def test_a_wrong_choice_is_one_line(published):
    path, _ = published
    for message, options in {
        r"run_1-00007-of-00002 is missing": {"checkpoints": [7]},
        r"run_4-\* is missing": {"runs": [4]},
        r"has no folder Qbert; it has Pong": {"game": "Qbert"},
    }.items():
        with pytest.raises(UserError, match=message):
            open_rl_unplugged(**{"path": path, "game": "Pong", **options})
