"""Measures the time of loss and gradient of each value head relative to MSE, given the outputs of a network.

    python benchmarks/heads.py                          # about six minutes
    python benchmarks/heads.py --batches 32 --bins 51   # half a minute

Every head of `heads.make` has two programs. One computes the loss of the actions taken against given scalars. The other
computes temporal-difference learning from the outputs at the next state: the values of all actions, the target of the
best one, the loss. Both include the gradient with respect to all outputs [batch, actions, n]. Each round of a cell
times all heads in turn, and ratios to MSE are taken within a round. Slow cells have fewer rounds.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np

from rlcls import heads

BASELINE = "mse"
_LEAST = 7
_BRIEF = 20  # milliseconds; a shorter program is timed twice, and the second time counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 4096])
    parser.add_argument("--bins", type=int, nargs="+", default=[51, 255, 1001])
    parser.add_argument("--actions", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=200, help="at most, of each cell")
    parser.add_argument("--seconds", type=float, default=60, help=f"of each cell, after {_LEAST} rounds")
    parser.add_argument("--heads", nargs="+", default=list(heads.BY_NAME), metavar="NAME")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts = _report.machine()
    chosen = [BASELINE, *(name for name in arguments.heads if name != BASELINE)]
    cells = []
    for batch in arguments.batches:
        for bins in arguments.bins:
            programs = {}
            # Heads with equally many outputs share inputs, which have hundreds of megabytes in the largest cell.
            inputs = functools.cache(functools.partial(_inputs, batch, arguments.actions))
            for name in chosen:
                for part, run in _programs(make(name, bins), inputs).items():
                    programs[f"{part} {name}"] = run
            times = _interleaved(programs, arguments.rounds, arguments.seconds)
            cells.append({"batch": batch, "bins": bins, "milliseconds": times})
    data = {"machine": facts, "actions": arguments.actions, "heads": chosen, "cells": cells}
    _report.write("heads", data, _text(data), arguments.out)
    _picture(data, arguments.out / "heads.png")


def make(name: str, bins: int, vmin: float = -10.0, vmax: float = 10.0) -> heads.Head:
    """The head. Its bins or quantiles and their range are used if it has them."""
    if issubclass(heads.BY_NAME[name], heads.CategoricalHead):
        return heads.make(name, vmin=vmin, vmax=vmax, num_bins=bins)
    return heads.make(name, **({"num_quantiles": bins} if name == "quantile" else {}))


def _inputs(batch: int, num_actions: int, num_outputs: int) -> tuple[jax.Array, ...]:
    """Outputs at this and the next state [batch, actions, n]; scalars and actions [batch]."""
    random = np.random.default_rng(0)
    shape = (batch, num_actions, num_outputs)
    outputs, next_outputs = (jnp.asarray(random.standard_normal(shape, np.float32)) for _ in range(2))
    # Targets in [0, 1] are inside the support of every head.
    scalars = jnp.asarray(random.uniform(0, 1, batch), jnp.float32)
    return outputs, next_outputs, scalars, jnp.asarray(random.integers(0, num_actions, batch), jnp.int32)


def _programs(
    head: heads.Head, inputs: Callable[[int], tuple[jax.Array, ...]]
) -> dict[str, Callable[[], Any]]:
    """Loss and gradient, compiled and with inputs."""
    outputs, next_outputs, scalars, actions = inputs(head.num_outputs)

    @jax.jit
    def loss(outputs, scalars, actions):
        return jax.value_and_grad(lambda o: head.loss(heads.select(o, actions), scalars).mean())(outputs)

    @jax.jit
    def learning(outputs, next_outputs, scalars, actions):
        best = jnp.argmax(head.value(next_outputs), -1)
        target = head.td_target(heads.select(next_outputs, best), scalars, jnp.full_like(scalars, 0.99))
        return jax.value_and_grad(lambda o: head.td_loss(heads.select(o, actions), target).mean())(outputs)

    return {
        "loss": lambda: loss(outputs, scalars, actions),
        "td": lambda: learning(outputs, next_outputs, scalars, actions),
    }


def _interleaved(
    programs: dict[str, Callable[[], Any]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds of each program in each round; every other round goes backwards."""
    for run in programs.values():
        for _ in range(2):
            jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in programs}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= _LEAST and time.perf_counter() - started > seconds:
            break
        order = list(programs.items())
        for name, run in order if number % 2 else reversed(order):
            milliseconds = _time(run)
            # The previous program may have evicted the data of this one from the caches, so a brief program runs again.
            times[name].append(round(_time(run) if milliseconds < _BRIEF else milliseconds, 4))
    return times


def _time(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return 1e3 * (time.perf_counter() - began)


def _text(data: dict[str, Any]) -> str:
    header = ["head"]
    for cell in data["cells"]:
        header.append(f"{cell['batch']} x {cell['bins']}")
    paragraphs = [
        f"# What a value head costs relative to {BASELINE} ({data['actions']} actions)",
        _report.describe(data["machine"]),
    ]
    for part, what in (
        ("loss", "Loss against scalars, and gradient"),
        ("td", "Values at the next state, target, loss and gradient"),
    ):
        rows = [[name, *(_ratio(cell, part, name) for cell in data["cells"])] for name in data["heads"]]
        rows[0][1:] = [
            f"{statistics.median(cell['milliseconds'][f'{part} {BASELINE}']):.3f} ms"
            for cell in data["cells"]
        ]
        rows.append(["rounds", *(len(cell["milliseconds"][f"{part} {BASELINE}"]) for cell in data["cells"])])
        paragraphs += [f"{what}, by batch x bins:", _report.table(header, rows)]
    paragraphs += [
        "Medians of the ratios within a round, all heads in turn; picture: [heads.png](heads.png).",
        f"What a column is divided by is {BASELINE}'s time in milliseconds, whatever the bins: it has one output for "
        "each action. The gradient has all outputs of all actions, nearly all of them 0, and the targets need the "
        "values of all actions at the next state; in the largest cells most of the time is spent on moving those "
        "arrays, which have as many times the size of a regression's as there are bins. A program of less than "
        f"{_BRIEF} ms is run just before it is timed, with its data in the caches. A call's overhead is in every "
        f"time, and is most of {BASELINE}'s; with a batch of 32 and several cores, among "
        "which their work is divided, the others' is four times that or more. What share of a whole update a head "
        "takes, and what the wider last layer "
        "does, is in [head_cost.md](head_cost.md).",
    ]
    return "\n\n".join(paragraphs)


def _ratio(cell: dict[str, Any], part: str, name: str) -> str:
    times = cell["milliseconds"]
    pairs = zip(times[f"{part} {name}"], times[f"{part} {BASELINE}"], strict=True)
    return f"{statistics.median(a / b for a, b in pairs):.2f}"


def _picture(data: dict[str, Any], path: Path) -> None:
    """Draws milliseconds by bins in a panel for each batch and program, all on one scale."""
    import matplotlib.pyplot as plt

    batches = sorted({cell["batch"] for cell in data["cells"]})
    figure, axes = plt.subplots(
        len(batches),
        2,
        figsize=(9, 3.2 * len(batches)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, batch in zip(axes, batches, strict=True):
        cells = sorted(
            (cell for cell in data["cells"] if cell["batch"] == batch), key=lambda cell: cell["bins"]
        )
        bins = [cell["bins"] for cell in cells]
        for panel, part, what in zip(
            row, ("loss", "td"), ("loss and gradient", "target, loss and gradient"), strict=True
        ):
            for name in data["heads"]:
                medians = [statistics.median(cell["milliseconds"][f"{part} {name}"]) for cell in cells]
                panel.plot(bins, medians, marker="o", markersize=3, label=name)
            panel.set(
                xscale="log", yscale="log", xticks=bins, xticklabels=bins, title=f"batch {batch}: {what}"
            )
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        row[0].set_ylabel("milliseconds")
    for panel in axes[-1]:
        panel.set_xlabel("bins or quantiles")
    axes[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
