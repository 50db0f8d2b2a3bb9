"""Measures the error of every value head at the Q-Transformer's fixed point, in an MDP with one state and two tokens.

    python benchmarks/qtransformer_exact.py

An action is two tokens with three values each. Each of the nine actions has a share of the data and a reward, and ends
the episode. If the loss draws unseen values to 0, the value of a token with the share p of the data is

    Q(a) = p * y / (p + alpha * (1 - p))

For the second token y is the reward, and for the first it is the largest value of the second. The MDP, the agent (one
layer, 600 updates of all nine actions at once) and the formula are those of tests/agents/test_q_transformer.py, so this
needs the extra `test`. Distributions on bins pull values near an end of the support inwards.
"""

import sys

import _report
import numpy as np

sys.path.insert(0, str(_report.ROOT / "tests" / "agents"))
import test_q_transformer as exact

ALPHAS = (0.1, 0.5)


def main() -> None:
    """The command."""
    facts, errors = _report.machine(), {}
    for head in exact.HEADS:
        for alpha in ALPHAS:
            errors[f"{head}, alpha {alpha:g}"] = _errors(head, alpha)
    rows = [
        [head, *(f"{max(errors[f'{head}, alpha {alpha:g}'].values()):.4f}" for alpha in ALPHAS)]
        for head in exact.HEADS
    ]
    text = "\n\n".join(
        [
            "# The Q-Transformer's fixed point, head by head",
            _report.describe(facts),
            "The largest absolute error of the learnt values, which lie between 0 and 1. One seed.",
            _report.table(["head", *(f"alpha {alpha:g}" for alpha in ALPHAS)], rows),
        ]
    )
    _report.write("qtransformer_exact", {"machine": facts, "errors": errors}, text)


def _errors(head: str, alpha: float) -> dict[str, float]:
    """The largest error among the values of the first and of the second token."""
    agent = exact.make(head, alpha=alpha, monte_carlo=False)
    values = exact.taught(agent, exact.learn(agent, exact.recorded()))
    first = exact.SHARES.sum(axis=1)
    second = exact.fixed_point(exact.SHARES / first[:, None], exact.REWARDS, alpha)
    best = exact.fixed_point(first, second.max(axis=1), alpha)
    return {
        "first": float(np.abs(values[0, 0] - best).max()),
        "second": float(np.abs(values[:, 1] - second).max()),
    }


if __name__ == "__main__":
    main()
