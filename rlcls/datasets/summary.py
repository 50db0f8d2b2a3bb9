"""Summarises a recording, in numbers and in an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlcls.files import replacing

from .recording import Recording
from .transitions import Transitions

_ACROSS, _DOWN = 8, 4
_BAR = 40  # characters of the longest bar


def describe(transitions: Transitions) -> list[str]:
    """Lines about counts, episodes, returns and actions."""
    recording = transitions.recording
    layout, columns = recording.manifest.layout, recording.columns
    begins = np.flatnonzero(columns.begins)
    lengths = np.diff(np.append(begins, columns.num_rows))
    returns, is_whole = columns.episode_returns()
    whole = returns[is_whole]
    shown = returns if not len(whole) else whole
    of = "complete episodes" if len(whole) else "episodes, none of which is complete"
    kind = "clipped rewards" if layout.rewards_clipped else "rewards"
    low, middle, high = np.quantile(shown, [0, 0.5, 1])
    lines = [
        f"recording     {recording.path}",
        f"game          {layout.game}",
        f"identity      {recording.identity[:16]}",
        f"rows          {columns.num_rows:,}, of which {transitions.count:,} start a transition",
        f"episodes      {len(begins):,}, {np.mean(lengths):,.1f} rows on average",
        f"terminals     {int(np.sum(columns.terminals)):,}",
        f"returns       mean {np.mean(shown):g}, median {middle:g}, {low:g} to {high:g}: sums of {kind} of "
        f"{len(shown):,} {of}",
        f"observation   {transitions.spec.observation.dtype} {list(transitions.spec.observation.shape)}",
    ]
    if layout.num_actions is None:
        for axis, values in enumerate(np.asarray(columns.actions).T):
            lines.append(f"action {axis:<6} mean {values.mean():g}, {values.min():g} to {values.max():g}")
        return lines
    counts = np.bincount(columns.actions, minlength=layout.num_actions)
    for action, count in enumerate(counts):
        bar = "#" * round(_BAR * count / counts.max())
        lines.append(f"action {action:<6} {count / counts.sum():6.1%}  {bar}".rstrip())
    return lines


def draw(recordings: Sequence[Recording], path: Path) -> Path | None:
    """Draws evenly spaced frames of each recording; returns None if no recording has images."""
    recordings = [each for each in recordings if len(each.manifest.layout.frame_shape) in (2, 3)]
    if not recordings:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        _DOWN * len(recordings),
        _ACROSS,
        figsize=(1.4 * _ACROSS, 1.5 * _DOWN * len(recordings)),
        squeeze=False,
    )
    for each, part in zip(recordings, np.split(axes, len(recordings)), strict=True):
        rows = np.linspace(0, each.columns.num_rows - 1, _ACROSS * _DOWN).astype(np.int64)
        each.check(rows)
        for axis, row in zip(part.flat, rows, strict=True):
            frame = each.columns.frames[row]
            picture = (
                frame[..., :3] if frame.ndim == 3 and frame.shape[-1] >= 3 else frame.reshape(frame.shape[:2])
            )
            axis.imshow(picture, cmap="gray")
            axis.set_title(f"{each.manifest.layout.game} {row:,}", fontsize=6)
            axis.axis("off")
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)
    return path
