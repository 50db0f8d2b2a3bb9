"""Measures the time of diagnostics as a share of the updates between two of them.

    python benchmarks/diagnostics_cost.py

The time is that of the program on the device ("look") and of sampling its held-out batch on the host, which training
does during the previous update. The replay has the capacity of `recipe=fast` and is full, and nine tenths of it have
been sampled before. Update and diagnostics are timed in turn.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import _report
import jax
import numpy as np
from _bare_update import sample_batch

from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.training import memory, xla


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--backbones", nargs="+", default=["nature", "impala"])
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts = _report.machine()
    xla.choose_device("cpu")
    memory.reuse_freed_memory()
    times = {name: _times(name, arguments.rounds) for name in arguments.backbones}
    data = {"machine": facts, **compose([]).diagnostics, "milliseconds": times}
    _report.write("diagnostics_cost", data, _text(data), arguments.out)


def _times(backbone: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of an update, of the diagnostics program, and of sampling the held-out batch."""
    settings = compose(["game=Pong", f"backbone={backbone}"])
    env = build.environment(settings)
    agent = build.agent(settings, env.spec)
    replay = build.build(settings, "replay", env)
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (64, env.num_envs, *env.spec.observation.shape), np.uint8)
    actions, flags = np.zeros(env.num_envs, np.int32), np.zeros(env.num_envs, bool)
    for number in range(replay.length):
        replay.add(rows[number % 64], actions, actions.astype(np.float32), flags, flags)
    replay.drawn[:] = random.random(replay.drawn.shape) < 0.9
    batch = sample_batch(env.spec, int(settings.training.batch_size), seed=0)
    env.close()
    state, key = xla.jit(agent.init)(jax.random.key(0)), jax.random.key(0)
    update, diagnose = xla.jit(agent.update, donate_argnums=0), xla.jit(agent.diagnose)  # as training does
    times: dict[str, list[float]] = {"update": [], "look": [], "draw": []}

    def timed(name: str, function: Any, *inputs: Any) -> Any:
        began = time.perf_counter()
        result = jax.block_until_ready(function(*inputs))
        times[name].append(round(1e3 * (time.perf_counter() - began), 4))
        return result

    for number in range(rounds + 2):
        held_out = timed("draw", replay.sample_held_out, settings.diagnostics.batch_size, 0, number)
        timed("look", diagnose, state, batch, held_out)
        state, _ = timed("update", update, state, batch, key)
    return {name: values[2:] for name, values in times.items()}  # the first two compile


def _text(data: dict[str, Any]) -> str:
    rows, every = [], data["every"]
    for backbone, parts in data["milliseconds"].items():
        medians = [f"{statistics.median(parts[name]):.2f}" for name in ("update", "look", "draw")]
        rounds = zip(parts["update"], parts["look"], parts["draw"], strict=True)
        share = statistics.median(100 * (look + draw) / (every * update) for update, look, draw in rounds)
        rows.append([backbone, *medians, f"{share:.2f} %"])
    count = len(next(iter(data["milliseconds"].values()))["update"])
    header = ["backbone", "update, ms", "look, ms", "drawing its batch, ms", f"share, one in {every} updates"]
    return "\n\n".join(
        [
            f"# What diagnostics cost in training (Pong, HL-Gauss, batch 32, {data['batch_size']} held out)",
            f"Medians of {count} interleaved rounds. {_report.describe(data['machine'])}",
            _report.table(header, rows),
        ]
    )


if __name__ == "__main__":
    main()
