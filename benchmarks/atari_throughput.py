"""Measures the agent steps per second of DQN on Atari, beside other libraries that do the same work.

    python benchmarks/atari_throughput.py --python sb3=PYTHON --python cleanrl=PYTHON --cleanrl CHECKOUT ...

The work is Pong with the Nature CNN, batch 32, one update every 4 agent steps and the replay in memory. The network
chooses the action at every step. Timing starts after the warm-up. Each round measures all systems in turn, so a slow
minute of the machine slows all of them. The table shows medians over the rounds, and names the libraries that are not
installed.
"""

import argparse
import contextlib
import dataclasses
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _report

_JAX_AND_ATARI = "jax flax optax gymnasium ale-py opencv-python-headless"
# Name -> (label, commands that install it).
PEERS = {
    "sb3": ("stable-baselines3 DQN", "pip install stable-baselines3 ale-py opencv-python-headless"),
    "cleanrl": (
        "CleanRL dqn_atari_jax.py",
        f"git clone https://github.com/vwxyzjn/cleanrl; pip install {_JAX_AND_ATARI} torch tensorboard tyro",
    ),
    "dopamine": (
        "Dopamine JAX DQN",
        f"pip install --no-deps dopamine-rl; pip install {_JAX_AND_ATARI} gin-config python-snappy msgpack "
        "orbax-checkpoint etils pandas",
    ),
}
_NEVER = 10**9
# The settings of the other libraries: uniform sampling, one-step targets, a target network copied every 1,000 agent
# steps. Evaluations and checkpoints are off.
SAME_WORK = [
    "game=Pong",
    "backbone=nature",
    f"steps={_NEVER}",
    "replay.capacity=50000",
    "replay.min_size=2000",
    "replay.prioritized=false",
    "replay.n_step=1",
    "training.batch_size=32",
    "training.update_period=4",
    "training.act_with_target=false",
    "agent.target_period=250",
    "agent.target_tau=1",
    "logging.every=400",
    "logging.tensorboard=false",
    f"eval.every={_NEVER}",
    f"checkpoint.every={_NEVER}",
]


@dataclasses.dataclass
class System:
    """A system to measure. `run(seconds)` returns steps_per_second, or the reason as `missing`."""

    name: str
    label: str
    run: Callable[[float], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45.0, help="timed seconds of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=2, help="cold and warm starts measured; 0: none")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PEER=PYTHON",
        help=f"the Python that has a peer ({', '.join(PEERS)}); this one if not given",
    )
    parser.add_argument("--cleanrl", help="a checkout of CleanRL")
    parser.add_argument("--only", nargs="*", help="names of the systems to measure")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    parser.add_argument("overrides", nargs="*", help="for our own, such as device=gpu env.num_envs=64")
    arguments = parser.parse_args()
    facts = _report.machine()
    pythons = dict(entry.split("=", 1) for entry in arguments.python)
    systems = _systems(pythons, arguments.cleanrl, arguments.overrides)
    if arguments.only:
        systems = [system for system in systems if system.name in arguments.only]
    measured: list[dict[str, Any]] = []
    skipped: set[str] = set()
    for number in range(arguments.rounds):
        for system in systems:
            if system.name in skipped:
                continue
            result = system.run(arguments.seconds)
            if "missing" in result:
                skipped.add(system.name)
            measured.append({"system": system.name, "round": number, **result})
            print(f"round {number + 1}: {system.label}: {_one_line(result)}", file=sys.stderr, flush=True)
    starts = [_start_to_first_update() for _ in range(arguments.starts)]
    data = {
        "machine": facts,
        "overrides": arguments.overrides,
        "seconds": arguments.seconds,
        "measured": measured,
        "starts": starts,
    }
    _report.write("atari_throughput", data, _text(systems, data), arguments.out)
    _picture(systems, measured, arguments.out / "atari_throughput.png")


def _systems(pythons: dict[str, str], cleanrl: str | None, overrides: list[str]) -> list[System]:
    work = [*SAME_WORK, *overrides]
    wide = ["training.batch_size=64", "training.update_period=8"]
    ours = [
        System("bare", "the bare jitted update (HL-Gauss)", lambda seconds: _bare(work, seconds)),
        System("rlcls", "rlcls, HL-Gauss", lambda seconds: _train(work, seconds)),
        System("rlcls-mse", "rlcls, MSE", lambda seconds: _train([*work, "loss=mse"], seconds)),
        System(
            "rlcls-b64",
            "rlcls, HL-Gauss, batch 64 every 8",
            lambda seconds: _train([*work, *wide], seconds),
        ),
    ]
    peers = []
    for name, (label, _) in PEERS.items():
        options = ["--cleanrl", os.path.abspath(cleanrl)] if name == "cleanrl" and cleanrl else []
        peers.append(System(name, label, _peer(name, pythons.get(name, sys.executable), options)))
    return ours + peers


def _peer(name: str, python: str, options: list[str]) -> Callable[[float], dict[str, Any]]:
    driver = Path(__file__).parent / "peers" / f"run_{name}.py"
    return lambda seconds: _marked_line([python, str(driver), "--seconds", str(seconds), *options])


def _bare(overrides: list[str], seconds: float) -> dict[str, Any]:
    driver = Path(__file__).parent / "_bare_update.py"
    command = [sys.executable, str(driver), "--seconds", str(seconds), *overrides]
    result = _marked_line(command, env=_report.environment())
    return {**result, "steps_per_second": 4 * result["updates_per_second"]}


def _marked_line(command: list[str], **options: Any) -> dict[str, Any]:
    """The result that a driver printed. If it failed, the reason is `missing`, and the other systems are measured."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except OSError as error:
        return {"missing": str(error)}
    lines = [line for line in done.stdout.splitlines() if line.startswith("MEASURED ")]
    if not lines:
        return {"missing": f"it failed: {' '.join(done.stderr.split())[-1000:]}"}
    return json.loads(lines[-1].removeprefix("MEASURED "))


def _train(overrides: list[str], seconds: float) -> dict[str, Any]:
    """Trains, and reads the speed from the metrics of the run."""
    with tempfile.TemporaryDirectory() as folder, _training(overrides, Path(folder)) as lines:
        rows = []
        for row in lines:
            # The first line with a loss includes the compilation and the first updates.
            if row["kind"] == "train" and "loss" in row:
                rows.append(row)
            if len(rows) > 1 and rows[-1]["seconds"] - rows[1]["seconds"] >= seconds:
                break
    first, last = rows[1], rows[-1]
    elapsed = last["seconds"] - first["seconds"]
    steps, updates = (last[name] - first[name] for name in ("agent_steps", "updates"))
    return {
        "agent_steps": steps,
        "updates": updates,
        "seconds": elapsed,
        "steps_per_second": steps / elapsed,
        "updates_per_second": updates / elapsed,
    }


def _start_to_first_update() -> dict[str, float]:
    """Seconds from the command to the end of the first update, with an empty and with a full compilation cache."""
    overrides = ["game=Pong", f"steps={_NEVER}", "logging.every=16", "logging.tensorboard=false"]
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        for start in ("cold", "warm"):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                with _training(overrides, Path(folder), XDG_CACHE_HOME=cache) as lines:
                    next(row for row in lines if "loss" in row)
                    seconds[start] = time.perf_counter() - began
    print(f"start to first update: {_one_line(seconds)}", file=sys.stderr, flush=True)
    return seconds


@contextlib.contextmanager
def _training(overrides: list[str], folder: Path, **environment: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Runs the command in a folder, yields the lines of its metrics as they come, and kills it at the end."""
    run_dir, log = folder / "run", folder / "log"
    command = [sys.executable, "-m", "rlcls.train", *overrides, f"run_dir={run_dir}"]
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=_report.environment(**environment), stdout=output, stderr=output
        )
    try:
        yield _follow(run_dir / "metrics.jsonl", process, log)
    finally:
        process.kill()  # SIGTERM would save a checkpoint first
        process.wait()


def _follow(path: Path, process: subprocess.Popen, log: Path) -> Iterator[dict[str, Any]]:
    def wait() -> None:
        if process.poll() is not None:
            raise SystemExit(f"training ended:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)

    while not path.exists():
        wait()
    with open(path) as file:
        line = ""
        while True:
            line += file.readline()
            if line.endswith("\n"):
                yield json.loads(line)
                line = ""
            else:
                wait()


def _one_line(result: dict[str, Any]) -> str:
    if "missing" in result:
        return f"left out, {result['missing']}"
    return ", ".join(
        f"{name} {value:.4g}" for name, value in result.items() if isinstance(value, (int, float))
    )


def _rates(measured: list[dict[str, Any]], name: str) -> list[float]:
    return [row["steps_per_second"] for row in measured if row["system"] == name and "missing" not in row]


def _text(systems: list[System], data: dict[str, Any]) -> str:
    measured = data["measured"]
    ours = _rates(measured, "rlcls")
    rows = []
    for system in systems:
        rates = _rates(measured, system.name)
        if not rates:
            install = PEERS[system.name][1] if system.name in PEERS else ""
            rows.append([f"{system.label} (not measured; it needs: {install})", "-", "-", "-"])
            continue
        # Ratios within a round, because other work on the machine slows both.
        ratio = f"{statistics.median(map(operator.truediv, ours, rates)):.2f}" if ours else "-"
        spread = f"{min(rates):.1f} to {max(rates):.1f}"
        rows.append([system.label, f"{statistics.median(rates):.1f}", spread, ratio])
    parts = [
        "# Agent steps per second: Pong, Nature CNN, batch 32 every 4 steps, replay in memory",
        f"Median of {1 + max((row['round'] for row in measured), default=-1)} rounds of "
        f"{data['seconds']:g} s each, steady pace. {_report.describe(data['machine'])}",
        _report.table(["", "median", "range", "rlcls, HL-Gauss is faster by"], rows),
        "The bare update is the program that training runs, its inputs at hand and nothing around it, times 4.",
    ]
    for start in ("cold", "warm"):
        seconds = [one[start] for one in data["starts"]]
        if seconds:
            cache = "an empty" if start == "cold" else "a full"
            parts.append(
                f"Command to first update with {cache} compilation cache: {statistics.median(seconds):.1f} s "
                f"({min(seconds):.1f} to {max(seconds):.1f})."
            )
    return "\n\n".join(parts)


def _picture(systems: list[System], measured: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [(system, _rates(measured, system.name)) for system in systems if _rates(measured, system.name)]
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.42 * len(shown)), layout="constrained")
    for place, (system, rates) in enumerate(reversed(shown)):
        median = statistics.median(rates)
        colour = "tab:blue" if system.name.startswith("rlcls") else "0.75"
        axes.barh(place, median, color=colour)
        axes.plot(rates, [place] * len(rates), "|", color="black", markersize=10)
        axes.text(max(rates), place, f"   {median:.0f}", va="center")
    axes.set_yticks(range(len(shown)), [system.label for system, _ in reversed(shown)])
    axes.set_xlabel("agent steps per second (marks: single rounds)")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
