"""Measures agent steps a second of the compiled loop on MinAtar, on one core, beside rejax at the same setting.

    taskset -c 0 python benchmarks/compiled.py --rejax PYTHON

The work is Breakout with a dense layer of 128, 8 environments, batch 32, an update every 4 agent steps and a replay of
100,000. Every setting runs in its own process, and all take turns for --rounds rounds. Agent steps are those of all
seeds together. The compilation time starts before the loop is made and ends after 4,000 agent steps of each seed.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _report
from _bare_update import MARK

if TYPE_CHECKING:
    from rlcls.training import Program

SETTINGS = {
    "MLP, MSE, 10 seeds": {"seeds": 10},
    "MLP, MSE, 10 seeds, vmap": {"seeds": 10, "vmap": True},
    "MLP, MSE, 1 seed": {},
    "MLP, HL-Gauss, 10 seeds": {"seeds": 10, "loss": "hlgauss"},
    "MLP, HL-Gauss, 1 seed": {"loss": "hlgauss"},
    "convolution, MSE, 1 seed": {"backbone": "minatar"},
    "convolution, MSE, 1 seed, vmap": {"backbone": "minatar", "vmap": True},
    "SpaceInvaders, MLP, MSE, 1 seed": {"game": "SpaceInvaders"},
    "Asterix, MLP, MSE, 1 seed": {"game": "Asterix"},
    "Freeway, MLP, MSE, 1 seed": {"game": "Freeway"},
}
REJAX = "rejax, MLP, MSE, 10 seeds"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rejax", help="a Python that has rejax and gymnax")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), help="settings to measure")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(MARK + json.dumps(_measure(arguments.seconds, **SETTINGS[arguments.child])))
        return
    facts, measured = _report.machine(), []
    for number in range(arguments.rounds):
        for name in arguments.only:
            command = [sys.executable, __file__, "--child", name, "--seconds", str(arguments.seconds)]
            measured.append({"what": name, "round": number, **_child(command)})
        if arguments.rejax:
            driver = Path(__file__).parent / "peers" / "run_rejax.py"
            command = [arguments.rejax, str(driver), "--seconds", str(arguments.seconds)]
            measured.append({"what": REJAX, "round": number, **_child(command)})
        print(json.dumps([line for line in measured if line["round"] == number]), file=sys.stderr, flush=True)
    _report.write("compiled", {"machine": facts, "measured": measured}, _text(facts, measured), arguments.out)


def _child(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_report.environment())
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix(MARK))


def program(
    *, game: str = "Breakout", loss: str = "mse", backbone: str = "mlp", vmap: bool | None = None
) -> "Program":
    """The program that is measured."""
    import optax

    from rlcls import heads, networks
    from rlcls.agents import DQN
    from rlcls.envs.gymnax import minatar
    from rlcls.replay import ArrayReplay
    from rlcls.training import LinearDecay, Program

    env = minatar(game, 8)
    support = {} if loss == "mse" else {"vmin": -1.0, "vmax": 20.0, "num_bins": 51}
    make = functools.partial(networks.MLP, hidden=(128,)) if backbone == "mlp" else networks.MinAtar
    agent = DQN(
        env.spec,
        make,
        heads.make(loss, **support),
        learning_rate=1e-4,
        optimizer=optax.adam,
        max_gradient_norm=0.5,
        target_period=250,
    )
    return Program(
        agent,
        env,
        ArrayReplay.of(env, 100_000, min_size=2000),
        exploration=LinearDecay(1.0, 0.01, 250_000),
        batch_size=32,
        update_period=4,
        vmap=vmap,
    )


def _measure(seconds: float, *, seeds: int = 1, **options: Any) -> dict[str, Any]:
    from rlcls.training import Compiled

    begun = time.perf_counter()
    loop = Compiled([program(**options)], range(seeds), log_every=2000)
    loop.advance()
    loop.advance()
    compiled = time.perf_counter() - begun
    first, begun = loop.counts["agent_steps"], time.perf_counter()
    while time.perf_counter() - begun < seconds:
        loop.advance()
    elapsed = time.perf_counter() - begun
    steps = seeds * (loop.counts["agent_steps"] - first)
    return {"steps_per_second": steps / elapsed, "seconds_to_compile": compiled}


def _text(facts: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    rows = []
    for name in dict.fromkeys(line["what"] for line in measured):
        lines = [line for line in measured if line["what"] == name]
        rates = [line["steps_per_second"] for line in lines]
        times = [line["seconds_to_compile"] for line in lines if "seconds_to_compile" in line]
        compiled = f"{statistics.median(times):.1f} s" if times else "-"
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        rows.append([name, f"{statistics.median(rates):,.0f}", spread, compiled])
    header = ["setting", "agent steps/s, all seeds", "range", "compiled"]
    return f"# The compiled loop on MinAtar\n\n{_report.describe(facts)}\n\n{_report.table(header, rows)}"


if __name__ == "__main__":
    main()
