"""Records environments that step together."""

from __future__ import annotations

import tempfile

import numpy as np
from jaxtyping import Bool, Float, Shaped

from rlcls.files import writing

from .recording import Writer
from .rows import BEGINS, CONTINUES, CUT, TRUNCATED, Rows

_PIECE = 256  # rows read back at a time, 1.8 MB of Atari frames


class Streams:
    """Collects vector steps into whole episodes, and appends each episode to a writer at its end.

    The rows are those of `rlcls.replay.FrameReplay.add`, with the same rules: an episode ends with its final
    observation, in the row before the next start. The frames of unfinished episodes are in one temporary file for each
    stream, in the writer's folder. Their other columns take about 100 bytes of memory per row.

    Args:
      writer: the writer, which its owner commits and finishes.
      num_streams: number of environments, N.

    Raises:
      UserError: the disk is full, or the process may not open so many files.
    """

    def __init__(self, writer: Writer, num_streams: int):
        self._writer = writer
        with writing(writer.path):
            self._frames = [
                tempfile.TemporaryFile(dir=writer.path)  # noqa: SIM115  # `close` closes it
                for _ in range(num_streams)
            ]
        self._steps: list[list[tuple]] = [[] for _ in range(num_streams)]
        self._kinds = [CUT] * num_streams

    def add(
        self,
        observations: Shaped[np.ndarray, "n *observation"],
        actions: Shaped[np.ndarray, "n *action"],
        rewards: Float[np.ndarray, "n"],
        terminals: Bool[np.ndarray, "n"],
        starts: Bool[np.ndarray, "n"],
    ) -> int:
        """Adds one row of every stream.

        Args:
          observations: the observations; only the newest of stacked frames is recorded.
          actions: the actions taken at these observations.
          rewards: the rewards of these actions.
          terminals: whether the action terminated the episode; false if it was truncated.
          starts: whether the observation is the first of its episode.

        Returns:
          The number of episodes that ended before this row, and were appended.
        """
        layout = self._writer.manifest.layout
        frames = observations[:, -1] if layout.stack else observations
        finished = 0
        for stream in range(len(self._steps)):
            if starts[stream]:
                finished += self._end(stream, ended=True)
                self._kinds[stream] = BEGINS
            with writing(self._writer.path):
                self._frames[stream].write(np.ascontiguousarray(frames[stream], layout.frame_dtype).data)
            self._steps[stream].append((np.array(actions[stream]), rewards[stream], terminals[stream]))
        return finished

    def close(self, *, ended: bool = False) -> None:
        """Appends the last episodes, and removes the temporary files.

        Args:
          ended: whether the environments have ended these episodes.
        """
        for stream in range(len(self._steps)):
            self._end(stream, ended=ended)
            self._frames[stream].close()

    def _end(self, stream: int, *, ended: bool) -> int:
        steps, self._steps[stream] = self._steps[stream], []
        if not steps:
            return 0
        dtypes = {name: dtype for name, (dtype, _) in self._writer.manifest.layout.columns.items()}
        frame_shape = self._writer.manifest.layout.frame_shape
        starts = np.full(len(steps), CONTINUES, np.uint8)
        starts[0] = self._kinds[stream]
        if ended and len(steps) > 1 and not any(terminal for *_, terminal in steps[-2:]):
            starts[-1] = TRUNCATED
        with writing(self._writer.path):
            self._frames[stream].seek(0)
        for first in range(0, len(steps), _PIECE):
            actions, rewards, terminals = zip(*steps[first : first + _PIECE], strict=True)
            shape = len(rewards), *frame_shape
            size = int(np.prod(shape)) * dtypes["frames"].itemsize
            self._writer.append(
                Rows(
                    np.frombuffer(self._frames[stream].read(size), dtypes["frames"]).reshape(shape),
                    np.array(actions, dtypes["actions"]),
                    np.array(rewards, np.float32),
                    np.array(terminals, bool),
                    starts[first : first + _PIECE],
                )
            )
        self._frames[stream].seek(0)
        return 1
