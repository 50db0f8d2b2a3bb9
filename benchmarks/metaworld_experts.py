"""Measures how often and how soon Meta-World's experts succeed in each task, and the speed of the environment.

    python benchmarks/metaworld_experts.py                  # about ten minutes
    python benchmarks/metaworld_experts.py --tasks push-v3

The experts see every state, and no action is random. Speed is per second of CPU time of one process, because other work
on the machine changes CPU time less than wall time.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import _report
import numpy as np

from rlcls.envs import metaworld
from rlcls.envs.metaworld import MetaWorld

_HORIZONS = {5: (30, 100), 2: (75, 250)}  # in decisions, by the action repeat: 1.9 and 6.25 s of simulation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=metaworld.tasks())
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts = _report.machine()
    facts["versions"] |= metaworld.make("pick-place-v3", 1).facts()["packages"]
    lengths = {
        task: {repeat: _lengths(task, arguments.episodes, repeat) for repeat in _HORIZONS}
        for task in arguments.tasks
    }
    speed = {
        "decisions, experts": _speed(metaworld.make("pick-place-v3", 8, horizon=10**6)),
        "decisions, blind experts": _speed(
            metaworld.make("pick-place-v3", 8, horizon=10**6), look=np.zeros(8, bool)
        ),
        "decisions, 84 x 84 pictures": _speed(metaworld.make("pick-place-v3", 8, image_size=84)),
        "resets": _resets(metaworld.make("pick-place-v3", 8)),
    }
    data = {"machine": facts, "episodes": arguments.episodes, "decisions to success": lengths, "speed": speed}
    _report.write("metaworld_experts", data, _text(data), arguments.out)


def _lengths(task: str, episodes: int, repeat: int) -> list[int | None]:
    """The decisions of the expert's episodes; None where it has not succeeded within the longest horizon."""
    env = metaworld.make(task, 1, horizon=max(_HORIZONS[repeat]), action_repeat=repeat)
    env.reset(seed=0)
    lengths: list[int | None] = []
    decisions = 0
    while len(lengths) < episodes:
        *_, terminated, truncated, info = env.step(env.scripted_actions())
        decisions = 0 if info["episode_start"][0] else decisions + 1
        if terminated[0] or truncated[0]:
            lengths.append(decisions if terminated[0] else None)
    return lengths


def _speed(env: MetaWorld, look: np.ndarray | None = None, seconds: float = 10.0) -> float:
    env.reset(seed=0)
    steps, begin = 0, time.process_time()
    while time.process_time() < begin + seconds:
        env.step(env.scripted_actions(look))
        steps += env.num_envs
    env.close()
    return steps / (time.process_time() - begin)


def _resets(env: MetaWorld, count: int = 50) -> float:
    begin = time.process_time()
    for _ in range(count):
        env.reset()
    return count * env.num_envs / (time.process_time() - begin)


def _text(data: dict[str, Any]) -> str:
    rows = []
    for task, by_repeat in data["decisions to success"].items():
        row = [task]
        for repeat, lengths in by_repeat.items():
            solved = [length for length in lengths if length]
            row += [
                f"{sum(length <= horizon for length in solved) / len(lengths):.2f}"
                for horizon in _HORIZONS[repeat]
            ]
            row.append(f"{np.mean(solved):.0f}" if solved else "-")
        rows.append(row)
    header = ["task"]
    for repeat, horizons in _HORIZONS.items():
        header += [f"repeat {repeat}: within {horizons[0]}", f"within {horizons[1]}", "mean decisions"]
    speed = _report.table(
        ["", "a second of CPU time"], [[name, f"{rate:.0f}"] for name, rate in data["speed"].items()]
    )
    return (
        f"# Meta-World's experts ({data['episodes']} episodes of each task)\n\n"
        f"{_report.describe(data['machine'])}\n\n{_report.table(header, rows)}\n\n"
        "Success within so many decisions of so many simulation steps, and the mean decisions of all successes.\n\n"
        f"{speed}\n\nEight arms of pick-place-v3. A decision includes the share of the resets between episodes."
    )


if __name__ == "__main__":
    main()
