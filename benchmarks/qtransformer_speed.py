"""Measures updates and decisions of the Q-Transformer a second on one core, at 11 and at 256 bins.

    taskset -c 0 python benchmarks/qtransformer_speed.py

Updates: width 64, 2 layers, 4 action dimensions, batch 128, with HL-Gauss of 21 bins and with MSE. Decisions: batch 64,
token by token with remembered keys and values, and by the whole sequence for each token. Each figure is the median of
7 rounds, in which all settings take turns.
"""

import time
from collections.abc import Callable
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np

from rlcls import heads, networks
from rlcls.agents import QTransformer
from rlcls.spec import Spec
from rlcls.training import xla
from rlcls.transition import Transition

ROUNDS, BATCH, PLAYED = 7, 128, 64
SPEC = Spec(
    jax.ShapeDtypeStruct((11,), np.float32),
    jax.ShapeDtypeStruct((4,), np.float32),
    None,
    (-np.ones(4, np.float32), np.ones(4, np.float32)),
)
HEADS = {"hlgauss": heads.make("hlgauss", vmin=-0.2, vmax=1.2, num_bins=21), "mse": heads.make("mse")}


def main() -> None:
    """The command."""
    facts = _report.machine()
    timed: dict[str, tuple[Callable[[], Any], int]] = {}
    for bins in (11, 256):
        for name, head in HEADS.items():
            agent = QTransformer(
                SPEC, networks.States, head, bins=bins, max_gradient_norm=10.0, target_tau=0.01
            )
            timed[f"updates, {name}, {bins} bins"] = _updates(agent)
            timed[f"decisions, {name}, {bins} bins"] = _decisions(agent)
            timed[f"decisions without a cache, {name}, {bins} bins"] = _uncached(agent)
    rates: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, (call, count) in timed.items():
            start = time.perf_counter()
            call()
            rates[name].append(count / (time.perf_counter() - start))
    rows = [
        [name, f"{np.median(each):,.0f}", f"{min(each):,.0f} to {max(each):,.0f}"]
        for name, each in rates.items()
    ]
    text = f"# Speed of the Q-Transformer\n\n{_report.describe(facts)}\n\n" + _report.table(
        ["setting", "a second", "range"], rows
    )
    _report.write("qtransformer_speed", {"machine": facts, "rates": rates}, text)


def _updates(agent: QTransformer, calls: int = 20) -> tuple[Callable[[], Any], int]:
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


def _decisions(agent: QTransformer, calls: int = 20) -> tuple[Callable[[], Any], int]:
    acting = agent.acting(agent.init(jax.random.key(0)))
    observations = jnp.ones((PLAYED, 11))
    act = xla.jit(lambda acting: agent.q_values(acting, observations))

    def run() -> None:
        for _ in range(calls):
            jax.block_until_ready(act(acting))

    run()
    return run, calls * PLAYED


def _uncached(agent: QTransformer, calls: int = 20) -> tuple[Callable[[], Any], int]:
    """The same decisions, each token by a pass over the whole sequence."""
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
