"""Draws the target of every value head and the error of its decoded value: docs/heads/<name>.png.

    python benchmarks/heads_pictures.py     # a minute

The left panel shows the histograms of two targets, one of them at the edge, for a head that classifies; a distribution
and its target for C51; and the loss of a prediction for the other heads. The right panel shows the decoded value of a
perfect fit minus the target, inside and outside the range, on a scale of one bin.
"""

import argparse
from pathlib import Path
from typing import Any

import _report
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from heads import make
from matplotlib.axes import Axes

from rlcls import heads

LOW, HIGH, BINS = -2.0, 2.0, 20
COLOURS = ("tab:blue", "tab:orange")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=_report.ROOT / "docs" / "heads")
    parser.add_argument("--heads", nargs="+", default=list(heads.BY_NAME), metavar="NAME")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.heads:
        head = make(name, BINS, LOW, HIGH)
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
        if isinstance(head, heads.C51):
            _draw_backup(left, head)
        elif isinstance(head, heads.CategoricalHead) and not isinstance(head, heads.MSESoftmax):
            _draw_histograms(left, head)
        else:
            _draw_loss(left, head)
        _draw_error(right, head)
        path = arguments.out / f"{name}.png"
        figure.savefig(path, dpi=100)
        plt.close(figure)
        print(path)


def _draw_histograms(axes: Axes, head: heads.CategoricalHead) -> None:
    support = head.support
    widths = np.diff(support.edges)
    for target, colour in zip((0.55, support.vmax), COLOURS, strict=True):
        probs = head.encode(np.array(target))
        axes.bar(support.centers, probs, 0.9 * widths, color=colour, alpha=0.6)
        axes.axvline(target, color=colour, linestyle="--", linewidth=1, label=f"target {target:g}")
    axes.set(xlabel="value", ylabel="probability", title=f"{head.name}: targets")
    axes.legend(loc="upper left")


def _draw_backup(axes: Axes, head: heads.C51) -> None:
    support, reward, discount = head.support, 0.7, 0.6
    probs = head.encode(np.array([-1.4, 0.3])).mean(0) * 0.7 + head.encode(np.array(1.1)) * 0.3
    outputs = np.log(np.maximum(probs, 1e-30)).astype(np.float32)
    target = head.td_target(outputs, np.float32(reward), np.float32(discount))
    labels = "next state", f"target: {reward} + {discount} * next"
    for shown, label, colour in zip((probs, target), labels, COLOURS, strict=True):
        axes.bar(support.centers, shown, 0.9 * support.width, color=colour, alpha=0.6, label=label)
    axes.set(xlabel="value", ylabel="probability", title=f"{head.name}: a target", ylim=(0, 0.75))
    axes.legend(loc="upper left")


def _draw_loss(axes: Axes, head: heads.Head) -> None:
    low, high = _range(head)
    predictions = np.linspace(low - 0.2, high + 0.2, 301)
    outputs = np.repeat(predictions[:, None], head.num_outputs, 1)
    if isinstance(head, heads.MSESoftmax):
        predictions = np.linspace(low, high, 301)
        outputs = np.log(np.maximum(head.encode(predictions), 1e-30))
    if isinstance(head, heads.BCE):  # its output is a logit, which never reaches 0 or 1
        outputs = np.linspace(-6, 6, 301)[:, None]
        predictions = np.asarray(head.value(outputs))
    for target, colour in zip((low + 0.4 * (high - low), high), COLOURS, strict=True):
        losses = jax.jit(head.loss)(outputs, np.full(301, target))
        axes.plot(predictions, losses, color=colour)
        axes.axvline(target, color=colour, linestyle="--", linewidth=1, label=f"target {target:g}")
    axes.set(xlabel="predicted value", ylabel="loss", title=f"{head.name}: loss")
    axes.legend(loc="upper center")


def _draw_error(axes: Axes, head: heads.Head) -> None:
    low, high = _range(head)
    margin = 0.1 * (high - low)
    targets = np.linspace(low - margin, high + margin, 601)
    if isinstance(head, heads.CategoricalHead) and not isinstance(head, heads.MSESoftmax):
        values = head.decode(head.encode(targets))
    else:
        values = _fitted(head, targets)
    axes.axhline(0, color="grey", linewidth=0.5)
    if isinstance(head, (heads.CategoricalHead, heads.BCE)):
        axes.axvspan(low - margin, low, color="grey", alpha=0.2, linewidth=0)
        axes.axvspan(high, high + margin, color="grey", alpha=0.2, linewidth=0)
    axes.plot(targets, values - targets, color="black")
    limit = (high - low) / BINS
    axes.set(xlabel="target", ylabel="decoded - target", title="error", ylim=(-limit, limit))
    axes.set_xlim(low - margin, high + margin)


def _range(head: heads.Head) -> tuple[float, float]:
    return (head.vmin, head.vmax) if isinstance(head, heads.BCE) else (LOW, HIGH)


def _fitted(head: heads.Head, targets: np.ndarray) -> np.ndarray:
    """The decoded values of the outputs with which Adam minimises the loss, one for each target."""
    steps = 3000
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, steps))

    @jax.jit
    def run(targets: jax.Array) -> jax.Array:
        def step(carry: Any, _: Any) -> Any:
            outputs, state = carry
            gradient = jax.grad(lambda o: head.loss(o, targets).sum())(outputs)
            changes, state = optimizer.update(gradient, state)
            return (optax.apply_updates(outputs, changes), state), None

        outputs = jnp.zeros((len(targets), head.num_outputs))
        (outputs, _), _ = jax.lax.scan(step, (outputs, optimizer.init(outputs)), None, steps)
        return head.value(outputs)

    return np.asarray(run(jnp.asarray(targets)))


if __name__ == "__main__":
    main()
