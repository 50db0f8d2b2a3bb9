"""Compares the gradient of CQL's conservative term, the gap, with that of the TD loss, for each head.

    python benchmarks/cql.py main
    python benchmarks/cql_gap.py

The networks are those of `cql.py main`, and the transitions are from their recordings. Gradients are with respect to
the outputs of a state. The table has the root mean squares over the transitions of the lengths of d gap / d outputs and
d td_loss / d outputs, their ratio, and the standard deviation of the predicted distribution in units of value. The gap
is computed from decoded values. Through a softmax, d value / d logit i is p_i * (z_i - value), so its gradient at the
logits is small for a narrow prediction.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np
from cql import HEADS
from recordings import FOLDER, GAMES

from rlcls import heads, trained
from rlcls.cli import build
from rlcls.datasets import open_recording
from rlcls.runs import read_config

TRANSITIONS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=_report.ROOT / "runs" / "cql")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    rows = [
        {"game": game, "loss": loss, "run": folder.name, **measure(folder, game)}
        for game in GAMES
        for loss in HEADS
        for folder in sorted(arguments.runs.glob(f"main-{game}-{loss}-s[0-9]"))[:1]
    ]
    if not rows:
        raise SystemExit(f"{arguments.runs} has no run of cql.py main")
    facts = _report.machine()
    header = [
        "game",
        "head",
        "updates",
        "gap",
        "rms d gap",
        "rms d td_loss",
        "ratio",
        "spread of the prediction",
    ]
    cells = [
        [
            each["game"],
            each["loss"],
            f"{each['updates']:,}",
            f"{each['gap']:.3f}",
            *(f"{each[name]:.3g}" for name in ("d_gap", "d_td_loss")),
            f"{each['d_gap'] / each['d_td_loss']:.2f}",
            f"{each['spread']:.2f}" if each["spread"] is not None else "-",
        ]
        for each in rows
    ]
    text = f"# The conservative term's gradient\n\n{TRANSITIONS:,} recorded transitions. {_report.describe(facts)}\n\n"
    _report.write(
        "cql_gap", {"machine": facts, "rows": rows}, text + _report.table(header, cells), arguments.out
    )


def measure(run_dir: Path, game: str) -> dict[str, Any]:
    """The gradients of both terms, without the factor alpha, for the network of the newest checkpoint."""
    config = read_config(run_dir)
    with contextlib.closing(build.one_environment(config)) as env:
        (agent, acting, _), checkpoint, _ = trained.read(config, env, run_dir, "latest")
    head: Any = agent.head  # type: ignore[attr-defined]
    data = open_recording(FOLDER / game, reward_clip=1.0)
    batch, _ = data.sample(TRANSITIONS, 0, 0)

    @jax.jit
    def gradients(
        observations: Any, next_observations: Any, actions: Any, rewards: Any, discounts: Any
    ) -> Any:
        outputs, _, _ = agent._apply(acting.params, acting.state, observations, train=False)  # type: ignore[attr-defined]
        next_outputs, _, _ = agent._apply(acting.params, acting.state, next_observations, train=False)  # type: ignore[attr-defined]
        best = jnp.argmax(head.value(next_outputs), axis=-1)
        target = head.td_target(heads.select(next_outputs, best), rewards, discounts)

        def gap(outputs: Any) -> Any:
            return jax.nn.logsumexp(head.value(outputs), axis=-1) - head.value(heads.select(outputs, actions))

        def td_loss(outputs: Any) -> Any:
            return head.td_loss(heads.select(outputs, actions), target)

        lengths = [
            jnp.sqrt(
                jnp.mean(
                    jnp.sum(jax.grad(lambda x, term=term: jnp.sum(term(x)))(outputs) ** 2, axis=(-2, -1))
                )
            )
            for term in (gap, td_loss)
        ]
        return jnp.mean(gap(outputs)), *lengths, heads.select(outputs, actions)

    gap, d_gap, d_td_loss, chosen = gradients(
        batch.observation, batch.next_observation, batch.action, batch.reward, batch.discount
    )
    return {
        "updates": checkpoint.steps,
        "gap": float(gap),
        "d_gap": float(d_gap),
        "d_td_loss": float(d_td_loss),
        "spread": _spread(head, np.asarray(chosen, np.float64)),
    }


def _spread(head: Any, outputs: np.ndarray) -> float | None:
    """The mean standard deviation of the predicted distributions; None for a head that predicts none."""
    if isinstance(head, heads.Quantile):
        return float(outputs.std(axis=-1).mean())
    if (support := getattr(head, "support", None)) is None:
        return None
    centers = np.asarray(support.centers, np.float64)
    probabilities = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    mean = probabilities @ centers
    return float(np.sqrt(np.maximum(probabilities @ centers**2 - mean**2, 0)).mean())


if __name__ == "__main__":
    main()
