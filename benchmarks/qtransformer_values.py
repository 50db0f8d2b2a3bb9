"""Draws the values of all bins of each action dimension along one episode of a trained Q-Transformer.

    python benchmarks/qtransformer_values.py run=runs/pick out=benchmarks/results/qtransformer_values.png

One picture: a panel for each dimension, time from left to right, bins from bottom to top, and a dot at the bin that was
played. Each dimension is drawn after the best tokens of the dimensions before it.
"""

import contextlib
import sys
from pathlib import Path

import _report
import jax
import matplotlib
import numpy as np

from rlcls import trained
from rlcls.agents import QTransformer
from rlcls.cli import build
from rlcls.envs.base import environment_seeds
from rlcls.runs import read_config
from rlcls.training import xla

matplotlib.use("Agg")


def main() -> None:
    """The command."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "run" not in options or options.keys() - {"run", "out", "seed"}:
        raise SystemExit(__doc__)
    run_dir, seed = Path(options["run"]), int(options.get("seed", 0))
    out = Path(options.get("out", _report.RESULTS / "qtransformer_values.png"))
    config = read_config(run_dir)
    with contextlib.closing(build.one_environment(config)) as env:
        (agent, acting, _), chosen, _ = trained.read(config, env, run_dir, "latest")
        if type(agent) is not QTransformer:
            raise SystemExit(f"{run_dir} has a {type(agent).__name__}; a Q-Transformer is drawn")
        values, total = _episode(agent, acting, env, seed)
    _draw(values, f"{env.name}, update {chosen.steps:,}, return {total:g}", out)
    print(out)


def _episode(agent, acting, env, seed):
    """The values [steps, dimensions, bins] along an episode, and its return."""
    q_values = xla.jit(agent.q_values)
    act = xla.jit(lambda acting, observations: agent.act(acting, observations, jax.random.key(0), 0.0))
    observations, _ = env.reset(seed=environment_seeds(seed, 1))
    values, total, over = [], 0.0, False
    while not over:
        values.append(np.asarray(q_values(acting, observations))[0])
        observations, rewards, terminated, truncated, _ = env.step(np.asarray(act(acting, observations)))
        total += float(rewards[0])
        over = bool(terminated[0] | truncated[0])
    return np.array(values), total


def _draw(values, title, path):
    import matplotlib.pyplot as plt

    steps, dimensions, bins = values.shape
    figure, panels = plt.subplots(
        dimensions, 1, figsize=(7, 1.5 * dimensions + 0.6), sharex=True, squeeze=False, layout="constrained"
    )
    for number, axes in enumerate(panels[:, 0]):
        image = axes.imshow(
            values[:, number].T,
            aspect="auto",
            origin="lower",
            vmin=0,
            vmax=max(1, values.max()),
            cmap="viridis",
        )
        axes.plot(range(steps), values[:, number].argmax(axis=1), ".", color="white", markersize=4)
        axes.set_ylabel(f"token {number + 1}")
        axes.set_yticks([0, bins - 1])
    panels[0, 0].set_title(title)
    panels[-1, 0].set_xlabel("decision")
    figure.colorbar(image, ax=panels[:, 0], label="value")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
