"""Measures adding, sampling and setting priorities in the replay, in percent of the time of an update.

    python benchmarks/replay_cost.py

The replay has the capacity of `recipe=fast` and is full. Samples come from all of it, so the caches hold as little of
it as in training. Training does this work during the previous update.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np
from _bare_update import sample_batch

from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.training import memory, xla

_SAMPLING = {"uniform": "replay.prioritized=false", "prioritised": "replay.prioritized=true"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts = _report.machine()
    xla.choose_device("cpu")
    memory.reuse_freed_memory()
    times = {
        f"{backbone}, {kind}": _times([f"backbone={backbone}", option], arguments.rounds)
        for backbone in ("nature", "data_efficient")
        for kind, option in _SAMPLING.items()
    }
    _report.write(
        "replay_cost", {"machine": facts, "milliseconds": times}, _text(times, facts), arguments.out
    )


def _times(overrides: list[str], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each update, and of the replay's work for it."""
    settings = compose(["game=Pong", *overrides])
    env = build.environment(settings)
    agent = build.agent(settings, env.spec)
    replay = build.build(settings, "replay", env)
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (64, env.num_envs, *env.spec.observation.shape), np.uint8)
    actions, flags = np.zeros(env.num_envs, np.int32), np.zeros(env.num_envs, bool)
    for number in range(replay.length):
        replay.add(rows[number % 64], actions, actions.astype(np.float32), flags, flags)
    size = int(settings.training.batch_size)
    updates_per_row = env.num_envs / settings.training.update_period
    state, batch = agent.init(jax.random.key(0)), sample_batch(env.spec, size, seed=0)
    env.close()
    update = xla.jit(agent.update, donate_argnums=0)  # as training does
    state, _ = update(jax.tree.map(jnp.copy, state), batch, jax.random.key(0))
    times: dict[str, list[float]] = {"update": [], "sample": [], "priorities": [], "add": []}

    def timed(name: str, function: Any, *inputs: Any) -> Any:
        began = time.perf_counter()
        result = jax.block_until_ready(function(*inputs))
        times[name].append(1e3 * (time.perf_counter() - began))
        return result

    for number in range(rounds):
        state, _ = timed("update", update, state, batch, jax.random.key(0))
        _, sampled = timed("sample", replay.sample, size, 0, number)
        timed("priorities", replay.set_priorities, sampled, random.random(size))
        timed("add", replay.add, rows[number % 64], actions, actions.astype(np.float32), flags, flags)
    times["add"] = [value / updates_per_row for value in times["add"]]
    return times


def _text(times: dict[str, dict[str, list[float]]], facts: dict[str, Any]) -> str:
    rows = []
    for kind, parts in times.items():
        medians = [f"{statistics.median(part):.3f}" for part in parts.values()]
        shares = zip(*(parts[name] for name in parts), strict=True)
        share = statistics.median(100 * sum(work) / update for update, *work in shares)
        rows.append([kind, *medians, f"{share:.2f} %"])
    header = [
        "network, sampling",
        "update, ms",
        "sample, ms",
        "set priorities, ms",
        "add, ms",
        "replay / update",
    ]
    count = len(next(iter(times.values()))["update"])
    return "\n\n".join(
        [
            "# What replay costs in a DQN update (Pong, batch 32, 200,000 transitions)",
            f"Medians of {count} interleaved rounds, each for one update. {_report.describe(facts)}",
            _report.table(header, rows),
        ]
    )


if __name__ == "__main__":
    main()
