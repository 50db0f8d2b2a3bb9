"""Records several environments that are stepped together."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Shaped

from .recording import Writer
from .rows import BEGINS, CONTINUES, CUT, Rows


class Streams:
    """Turns vector steps into whole episodes, which it appends to a writer as they end.

    It takes the rows that `rlcls.replay.FrameReplay.add` takes, under the same rules: an episode ends with its final
    observation, in the row before the next start. The episodes under way are in memory, 7 KB for each Atari row.

    Args:
      writer: what the episodes are appended to; its owner commits and finishes it.
      num_streams: environments, N.
    """

    def __init__(self, writer: Writer, num_streams: int):
        self._writer = writer
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
          observations: what was acted on; of stacked frames the newest is recorded.
          actions: taken at these observations.
          rewards: received for the actions.
          terminals: whether the action ended the episode; false where a limit cut it.
          starts: whether the observation was the first of its episode.

        Returns:
          Episodes that this row shows to be finished, and that have been appended.
        """
        frames = observations[:, -1] if self._writer.manifest.layout.stack else observations
        finished = 0
        for stream in range(len(self._steps)):
            if starts[stream]:
                finished += self._end(stream)
                self._kinds[stream] = BEGINS
            row = frames[stream].copy(), actions[stream], rewards[stream], terminals[stream]
            self._steps[stream].append(row)
        return finished

    def close(self) -> None:
        """Appends the episodes under way, cut where they are."""
        for stream in range(len(self._steps)):
            self._end(stream)
            self._kinds[stream] = CUT

    def _end(self, stream: int) -> int:
        steps, self._steps[stream] = self._steps[stream], []
        if not steps:
            return 0
        frames, actions, rewards, terminals = zip(*steps, strict=True)
        starts = np.full(len(steps), CONTINUES, np.uint8)
        starts[0] = self._kinds[stream]
        columns = self._writer.manifest.layout.columns
        self._writer.append(
            Rows(
                np.array(frames),
                np.array(actions, columns["actions"][0]),
                np.array(rewards, np.float32),
                np.array(terminals, bool),
                starts,
            )
        )
        return 1
