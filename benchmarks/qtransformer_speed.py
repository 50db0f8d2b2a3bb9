"""Measures updates and decisions of the Q-Transformer a second on one core, at 11 and at 256 bins.

    taskset -c 0 python benchmarks/qtransformer_speed.py --lucidrains ~/lucidrains/bin/python

Updates have width 64, 2 layers, 4 action dimensions and batch 128, with HL-Gauss of 21 bins and with MSE. Decisions
have batch 64, and are made with cached keys and values, or with a pass over the whole sequence for each token.
--lucidrains names a Python that has `q-transformer` from PyPI, whose updates of the same size are timed
(benchmarks/peers/run_lucidrains.py). A product of two 1,024 x 1,024 matrices measures the speed of the core.

All settings take turns in short rounds. The best round counts, because other work slowed the others. Rates are per
second of wall time and per second of CPU time of the process, which excludes other work.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np
from _bare_update import MARK

from rlcls import heads, networks
from rlcls.agents import QTransformer
from rlcls.spec import Spec
from rlcls.training import memory, xla
from rlcls.transition import Transition

BATCH, PLAYED, SIDE = 128, 64, 1024
SPEC = Spec(
    jax.ShapeDtypeStruct((11,), np.float32),
    jax.ShapeDtypeStruct((4,), np.float32),
    None,
    (-np.ones(4, np.float32), np.ones(4, np.float32)),
)
HEADS = {"hlgauss": heads.make("hlgauss", vmin=-0.2, vmax=1.2, num_bins=21), "mse": heads.make("mse")}
Rates = dict[str, list[float]]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lucidrains", help="a Python that has q-transformer")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    memory.reuse_freed_memory()  # as a run does
    facts = _report.machine()
    timed: dict[str, tuple[Callable[[], Any], int]] = {"products of matrices": _products()}
    for bins in (11, 256):
        for name, head in HEADS.items():
            agent = QTransformer(
                SPEC, networks.States, head, bins=bins, max_gradient_norm=10.0, target_tau=0.01
            )
            timed[f"updates, {name}, {bins} bins"] = _updates(agent)
            timed[f"decisions, {name}, {bins} bins"] = _decisions(agent)
            timed[f"decisions without a cache, {name}, {bins} bins"] = _uncached(agent)
    rates: dict[str, Rates] = {name: {"wall": [], "cpu": []} for name in timed}
    for _ in range(arguments.rounds):
        for name, (call, count) in timed.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            rates[name]["wall"].append(count / (time.perf_counter() - wall))
            rates[name]["cpu"].append(count / (time.process_time() - cpu))
        if arguments.lucidrains:
            measured = _lucidrains(arguments.lucidrains)
            facts["versions"] |= measured["versions"]
            mine = rates.setdefault("updates, q-transformer (lucidrains), 11 bins", {"wall": [], "cpu": []})
            for clock, each in measured["rates"].items():
                mine[clock] += each
    _report.write("qtransformer_speed", {"machine": facts, "rates": rates}, _text(facts, rates))


def _text(facts: dict[str, Any], rates: dict[str, Rates]) -> str:
    rows = [
        [name, *(f"{max(each[clock]):,.0f}" for clock in ("wall", "cpu")), f"{np.median(each['cpu']):,.0f}"]
        for name, each in rates.items()
    ]
    gigaflops = 2e-9 * SIDE**3 * max(rates["products of matrices"]["cpu"])
    return "\n\n".join(
        [
            "# Speed of the Q-Transformer",
            f"{_report.describe(facts)} {len(next(iter(rates.values()))['cpu'])} rounds.",
            f"The core multiplied matrices at {gigaflops:.0f} billion operations a second of CPU time.",
            _report.table(
                ["setting", "a second, best", "a second of CPU time, best", "median of CPU time"], rows
            ),
        ]
    )


def _lucidrains(python: str) -> dict[str, Any]:
    driver = Path(__file__).parent / "peers" / "run_lucidrains.py"
    # With this checkout in PYTHONPATH, the dependencies of q-transformer would import its folder `kernels`.
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([python, str(driver)], capture_output=True, text=True, check=False, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"{driver} failed: {done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix(MARK))


def _products(calls: int = 3) -> tuple[Callable[[], Any], int]:
    matrix = jnp.ones((SIDE, SIDE))
    product = xla.jit(lambda matrix: matrix @ matrix)

    def run() -> None:
        for _ in range(calls):
            jax.block_until_ready(product(matrix))

    run()
    return run, calls


def _updates(agent: QTransformer, calls: int = 10) -> tuple[Callable[[], Any], int]:
    random = np.random.default_rng(0)
    observations = random.normal(size=(2, BATCH, 11)).astype(np.float32)
    batch = Transition(
        observation=observations[0],
        action=random.uniform(-1, 1, (BATCH, 4)).astype(np.float32),
        reward=np.zeros(BATCH, np.float32),
        discount=np.full(BATCH, 0.94, np.float32),
        next_observation=observations[1],
        weight=np.ones(BATCH, np.float32),
        return_to_go=random.uniform(0, 1, BATCH).astype(np.float32),
    )
    key = jax.random.key(0)
    state = [agent.init(key)]
    update = xla.jit(agent.update, donate_argnums=0)

    def run() -> None:
        for _ in range(calls):
            state[0], _ = update(state[0], batch, key)
        jax.block_until_ready(state[0])

    run()
    return run, calls


def _decisions(agent: QTransformer, calls: int = 10) -> tuple[Callable[[], Any], int]:
    acting = agent.acting(agent.init(jax.random.key(0)))
    observations = jnp.ones((PLAYED, 11))
    act = xla.jit(lambda acting: agent.q_values(acting, observations))

    def run() -> None:
        for _ in range(calls):
            jax.block_until_ready(act(acting))

    run()
    return run, calls * PLAYED


def _uncached(agent: QTransformer, calls: int = 10) -> tuple[Callable[[], Any], int]:
    """The same decisions, with a pass over the whole sequence for each token."""
    acting = agent.acting(agent.init(jax.random.key(0)))
    observations = jnp.ones((PLAYED, 11))

    def act(acting: Any) -> Any:
        tokens = jnp.zeros((PLAYED, 4), jnp.int32)
        for i in range(4):
            outputs, _, _ = agent._apply(*acting, observations, tokens, train=False)
            tokens = tokens.at[:, i].set(jnp.argmax(agent.head.value(outputs[:, i]), axis=-1))
        return tokens

    compiled = xla.jit(act)

    def run() -> None:
        for _ in range(calls):
            jax.block_until_ready(compiled(acting))

    run()
    return run, calls * PLAYED


if __name__ == "__main__":
    main()
