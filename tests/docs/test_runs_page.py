"""The tree in docs/runs.md is what a run writes."""

import re
from pathlib import Path

from rlcls import train

PAGE = Path(__file__).parents[2] / "docs" / "runs.md"
# What rlcls.evaluate adds, not training.
OF_EVALUATIONS = {"evaluations", "videos"}


def tree() -> list[tuple[int, str]]:
    """The depth and the name of each entry."""
    text = re.search(r"```text\nruns/pong/\n(.*?)```", PAGE.read_text(), flags=re.S)[1]
    entries = [re.match(r"([│ ]*)[├└]── ([^\s/]+)", line) for line in text.splitlines()]
    return [(len(entry[1]) // 4, entry[2]) for entry in entries]


def test_the_tree_shows_what_a_run_writes(tmp_path):
    options = ["env=probe", "game=probe/action", "backbone=mlp", "steps=400", "checkpoint.every=400"]
    options += [
        "replay.min_size=100",
        "replay.capacity=1000",
        "eval.episodes=1",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert train.main(options) == 0
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {name for depth, name in tree() if depth == 0} - OF_EVALUATIONS == written
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    names = [name for depth, name in tree()]
    assert set(names[names.index("000000500000") + 1 : names.index("replay")]) == {
        path.name for path in checkpoint.iterdir()
    }
    (rows,) = (tmp_path / "run" / "replay").iterdir()
    pattern = re.sub(r"\d+", r"\\d+", names[names.index("replay") + 1])
    assert re.fullmatch(pattern, rows.name)
