"""Measures the time that new seeds cost in training, and the time in which a resume repeats recorded actions.

    python benchmarks/reseeding.py

An environment gets a new seed at its first episode start after `training.reseed_every` of its steps. The share of
training is the measured time of this reset divided by that of as many agent steps of `recipe=fast`. A resume plays at
most `reseed_every` steps and the rest of the game that was running then, for all environments at once.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import _report
import numpy as np

from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.training import memory, xla

LONGEST = 27_000  # agent steps of the longest game that protocol=dopamine allows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--games", nargs="+", default=["Pong", "Breakout"])
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of training that are timed for each game"
    )
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts = _report.machine()
    xla.choose_device("cpu")
    xla.cache_compilations()
    memory.reuse_freed_memory()
    measured = [_measure(game, arguments.seconds) for game in arguments.games]
    data = {
        "machine": facts,
        "reseed_every": _config(arguments.games[0]).training.reseed_every,
        "measured": measured,
    }
    _report.write("reseeding", data, _text(data), arguments.out)


def _config(game: str) -> Any:
    return compose([f"game={game}"])


def _measure(game: str, seconds: float) -> dict[str, Any]:
    """Seconds of a reset with a new seed, of an agent step of training, and of a vector step of a resume."""
    config = _config(game)
    env = build.environment(config)
    loop = build.loop(config, build.agent(config, env.spec), env)
    loop.warm_up(config.steps)
    while loop.counts["updates"] < 20:
        loop.advance()
    first, began = loop.counts["agent_steps"], time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        loop.advance()
    agent_step = elapsed / (loop.counts["agent_steps"] - first)
    loop.close()
    resets, mask = [], np.zeros(env.num_envs, bool)
    mask[0] = True
    seeds = np.arange(env.num_envs)
    for number in range(20):
        began = time.perf_counter()
        env.reset(seed=seeds + number, options={"reset_mask": mask})
        resets.append(time.perf_counter() - began)
    steps, random = 1000, np.random.default_rng(0)
    actions = random.integers(env.spec.num_actions, size=(steps, env.num_envs))
    began = time.perf_counter()
    for row in actions:
        env.step(row)
    vector_step = (time.perf_counter() - began) / steps
    env.close()
    return {
        "game": game,
        "environments": int(config.env.num_envs),
        "reset": statistics.median(resets),
        "agent_step": agent_step,
        "vector_step": vector_step,
    }


def _text(data: dict[str, Any]) -> str:
    every = data["reseed_every"]
    rows = [
        [
            each["game"],
            f"{1e3 * each['reset']:.0f}",
            f"{1e3 * each['agent_step']:.2f}",
            f"{100 * each['reset'] / (every * each['agent_step']):.2f} %",
            f"{1 / each['vector_step']:.0f}",
            *(f"{(every + game) * each['vector_step']:.0f}" for game in (0, 2_000, LONGEST)),
        ]
        for each in data["measured"]
    ]
    header = [
        "game",
        "reset, ms",
        "agent step of training, ms",
        "share of training",
        "vector steps/s of a resume",
    ]
    header += [
        f"resume, s: {what}" for what in ("new seeds only", "a game of 2,000 steps", f"a game of {LONGEST:,}")
    ]
    return "\n\n".join(
        [
            f"# New seeds every {every:,} steps of an environment, `recipe=fast`",
            _report.describe(data["machine"]),
            _report.table(header, rows),
        ]
    )


if __name__ == "__main__":
    main()
