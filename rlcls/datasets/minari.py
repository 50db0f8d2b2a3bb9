"""Reads Minari datasets (HDF5 and Arrow) without the minari package.

    PATH/data/metadata.json        observation_space and action_space (JSON text), data_format, total_episodes, env_spec
    PATH/data/main_data.hdf5       episode_K/{observations, actions, rewards, terminations, truncations}
    PATH/data/K/*.arrow            the same for episode K, one record batch; its last row has an observation only

An episode has one more observation than actions. Images are JPEG if `jpeg_encoding` is true, the default. RGB images of
the Atari console (210 x 160) are converted to stacks of four 84 x 84 grey frames, like those of the emulator. Grey
images of 84 x 84 are also stacked. Other observations are unchanged. The final observation of an episode has no
recorded action, so its row has zeros.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from rlcls._errors import UserError, install

from .atari_games import given
from .conversion import Conversion, Part, reading, sizes
from .dqn_replay import check_fraction
from .rl_unplugged import picture
from .rows import BEGINS, CONTINUES, TRUNCATED, Layout, Rows

_PART = 20  # episodes of a part, which a killed conversion repeats
_CONSOLE, _FRAME = (210, 160, 3), (84, 84)
_IMAGES = 256  # images decoded at a time
_NAMES = ("observations", "actions", "rewards", "terminations", "truncations")


def conversion(path: str | Path | None, game: str | None = None, fraction: float = 1.0) -> Conversion:
    """The first `fraction` of the episodes of a dataset, at least one.

    Args:
      path: the folder of the dataset, which contains the folder `data`.
      game: a part of the environment's name, such as "Pong", that is checked; None accepts any environment.
      fraction: above 0, at most 1.

    Raises:
      ValueError: `fraction` is out of range.
      UserError: the dataset is missing, of another game, or of an unsupported kind.
    """
    check_fraction(fraction)
    folder = Path(given(path)) / "data"
    path_of_metadata = folder / "metadata.json"
    files = sizes(folder, [path_of_metadata])
    with reading(path_of_metadata):
        metadata = json.loads(path_of_metadata.read_bytes())
        observation, action = (_space(metadata[f"{name}_space"]) for name in ("observation", "action"))
        total, data_format = int(metadata["total_episodes"]), metadata.get("data_format", "hdf5")
        recorded = _recorded(metadata)
    if game is not None and game.lower() not in recorded.lower():
        raise UserError(f"{path} is of {recorded}, not of {game}")
    if data_format not in ("hdf5", "arrow"):
        raise UserError(f"{path_of_metadata}: data_format {data_format!r} is neither hdf5 nor arrow")
    if not total:
        raise UserError(f"{path} has no episodes")
    layout = layout_of(game or recorded, observation, action, path_of_metadata)
    if data_format == "hdf5":
        files += sizes(folder, [folder / "main_data.hdf5"])
        episode: Callable[[int], dict[str, Any]] = functools.partial(_hdf5, folder / "main_data.hdf5")
    else:
        for number in range(total):
            files += sizes(folder, [_arrow_file(folder, number)])
        episode = functools.partial(_arrow, folder)
    jpeg = bool(metadata.get("jpeg_encoding", True)) and _is_image(observation)
    convert = functools.partial(_rows, layout=layout, shape=tuple(observation["shape"]), jpeg=jpeg)
    wanted = max(1, int(total * fraction))
    parts = [
        Part(
            f"{path}, episodes {first} to {min(first + _PART, wanted) - 1}",
            functools.partial(_read, episode, convert, range(first, min(first + _PART, wanted)), folder),
        )
        for first in range(0, wanted, _PART)
    ]
    return Conversion(folder, layout, {"format": "Minari", "fraction": fraction, "files": files}, parts)


def grey_frames(images: UInt8[np.ndarray, "n height width 3"]) -> UInt8[np.ndarray, "n 84 84"]:
    """RGB images as the frames of the Atari emulator: luminance, then the mean over the area of each pixel."""
    luminance = np.round(images @ np.array([0.2989, 0.587, 0.114], np.float32))
    down, across = (_area(size, 84) for size in images.shape[1:3])
    return np.round(down @ luminance @ across.T).astype(np.uint8)


def _area(size: int, smaller: int) -> np.ndarray:
    """The weights of old pixels in new ones along an axis: float32 [smaller, size]."""
    edges = np.arange(smaller + 1) * (size / smaller)
    old = np.arange(size)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return (np.maximum(overlap, 0) * (smaller / size)).astype(np.float32)


def _space(text: Any) -> dict[str, Any]:
    return json.loads(text) if isinstance(text, str) else dict(text)


def _recorded(metadata: dict[str, Any]) -> str:
    """The name of the environment, or of the dataset if it names no environment."""
    return json.loads(metadata["env_spec"])["id"] if metadata.get("env_spec") else metadata["dataset_id"]


def _is_image(space: dict[str, Any]) -> bool:
    """Whether Minari treats observations of this space as images, which it may store as JPEG."""
    shape = space["shape"]
    large = len(shape) in (2, 3) and min(shape[:2]) >= 32 and space["dtype"] == "uint8"
    return large and bool(np.all(np.array(space["low"]) == 0) and np.all(np.array(space["high"]) == 255))


def layout_of(game: str, observation: dict[str, Any], action: dict[str, Any], path: Path) -> Layout:
    """The layout of the recording of a dataset with these spaces.

    Raises:
      UserError: the spaces are not supported; the message names `path`.
    """
    if observation["type"] != "Box":
        raise UserError(f"{path}: observations are {observation['type']}; only Box is supported")
    shape, dtype = tuple(observation["shape"]), observation["dtype"]
    frames: dict[str, Any] = {"frame_shape": shape, "frame_dtype": dtype}
    if dtype == "float64":
        frames["frame_dtype"] = "float32"
    elif dtype == "uint8" and shape in (_CONSOLE, _FRAME):
        frames = {"frame_shape": _FRAME, "stack": 4}
    if action["type"] == "Discrete" and not action.get("start"):
        return Layout(game=game, num_actions=int(action["n"]), **frames)
    if action["type"] == "Box" and len(action["shape"]) == 1:
        low, high = (tuple(float(value) for value in action[name]) for name in ("low", "high"))
        return Layout(game=game, action_low=low, action_high=high, **frames)
    raise UserError(
        f"{path}: actions are {action['type']}; Discrete from 0 and Box of one axis are supported"
    )


def _read(
    episode: Callable[[int], dict[str, Any]],
    convert: Callable[[dict[str, Any]], Rows],
    numbers: range,
    folder: Path,
) -> Iterator[Rows]:
    for number in numbers:
        columns = episode(number)
        try:
            yield convert(columns)
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder}: episode {number} is damaged: {error}") from error


def _rows(columns: dict[str, Any], *, layout: Layout, shape: tuple[int, ...], jpeg: bool) -> Rows:
    lengths = {name: len(columns[name]) for name in _NAMES}
    steps = lengths["rewards"]
    if lengths["observations"] != steps + 1 or len({lengths[name] for name in _NAMES[1:]}) != 1:
        raise ValueError(f"its lengths do not match: {lengths}")
    observations = (
        columns["observations"][first : first + _IMAGES] for first in range(0, steps + 1, _IMAGES)
    )
    frames = np.concatenate([_frames(part, shape, layout.frame_dtype, jpeg) for part in observations])
    dtype, action_shape = layout.columns["actions"]
    actions, rewards = np.zeros((steps + 1, *action_shape), dtype), np.zeros(steps + 1, np.float32)
    terminals, starts = np.zeros(steps + 1, bool), np.full(steps + 1, CONTINUES, np.uint8)
    actions[:-1], rewards[:-1], terminals[:-1] = (
        columns[name] for name in ("actions", "rewards", "terminations")
    )
    starts[0] = BEGINS
    if steps and columns["truncations"][-1] and not terminals[-2]:
        starts[-1] = TRUNCATED
    return Rows(frames, actions, rewards, terminals, starts)


def _frames(observations: Any, shape: tuple[int, ...], dtype: str, jpeg: bool) -> np.ndarray:
    if jpeg:
        observations = [picture(np.asarray(data, np.uint8).tobytes()) for data in observations]
    images = np.stack(list(observations))
    if not jpeg and images.shape[1:] == (int(np.prod(shape)),):
        images = images.reshape(len(images), *shape)  # Arrow stores flat observations
    if images.shape[1:] != shape:
        raise ValueError(f"observations are {list(images.shape[1:])} instead of {list(shape)}")
    return grey_frames(images) if shape == _CONSOLE else images.astype(dtype)


def _hdf5(path: Path, number: int) -> dict[str, Any]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"HDF5 files need h5py: {install('data')} ({error})") from None
    with reading(path), h5py.File(path) as file:
        episode = file[f"episode_{number}"]
        return {name: episode[name][()] for name in _NAMES}


def _arrow_file(folder: Path, number: int) -> Path:
    paths = sorted((folder / str(number)).glob("*.arrow"))
    if len(paths) != 1:
        raise UserError(f"{folder / str(number)} has {len(paths)} .arrow files instead of one")
    return paths[0]


def _arrow(folder: Path, number: int) -> dict[str, Any]:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"Arrow files need pyarrow: {install('data')} ({error})") from None
    path = _arrow_file(folder, number)
    with reading(path), pyarrow.OSFile(str(path)) as file:
        table = pyarrow.ipc.open_file(file).read_all()
        columns = {name: _array(table[name].combine_chunks()) for name in _NAMES}
    return {name: column if name == "observations" else column[:-1] for name, column in columns.items()}


def _array(column: Any) -> Shaped[np.ndarray, "rows ..."] | list[np.ndarray]:
    """The values of an Arrow column; bytes are converted to arrays."""
    import pyarrow

    if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
        return [np.frombuffer(value, np.uint8) for value in column.to_pylist()]
    if pyarrow.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)
