"""Measures the time that a classification head adds to a DQN update with regression, on Atari.

    python benchmarks/head_cost.py                   # about five minutes; Pong has 6 actions
    python benchmarks/head_cost.py --game Seaquest   # 18 actions

Three parts are timed separately: loss and gradient, given the outputs of the network and the target; the whole head,
with target and priorities; and the wider last layer. Every head has 51 bins or quantiles. Each round times all programs
in turn, and ratios are taken within a round.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _report
import jax
import jax.numpy as jnp
import numpy as np
from _bare_update import sample_batch

from rlcls import heads
from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.training import memory, xla

_FEATURES = 512  # outputs of the Nature network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--game", default="Pong")
    parser.add_argument("--losses", nargs="+", default=["mse", *(x for x in heads.BY_NAME if x != "mse")])
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts = _report.machine()
    xla.choose_device("cpu")
    memory.reuse_freed_memory()
    programs = {}
    for loss in arguments.losses:
        for part, run in _programs(loss, arguments.batch, arguments.game).items():
            programs[f"{part} {loss}"] = run
    times = _interleaved(programs, arguments.rounds)
    data = {"machine": facts, "game": arguments.game, "batch": arguments.batch, "milliseconds": times}
    _report.write("head_cost", data, _text(arguments.losses, data), arguments.out)


def _programs(loss: str, batch_size: int, game: str) -> dict[str, Callable[[], Any]]:
    """The whole update, its loss, its head and its last layer, each compiled and with inputs."""
    options = [f"game={game}", "backbone=nature", f"loss={loss}", f"training.batch_size={batch_size}"]
    settings = compose([*options, *(["loss.num_quantiles=51"] if loss == "quantile" else [])])
    env = build.environment(settings)
    agent = build.agent(settings, env.spec)
    num_actions, head = env.spec.num_actions, agent.head
    batch = jax.device_put(sample_batch(env.spec, batch_size, seed=0))
    env.close()
    state = xla.jit(agent.init)(jax.random.key(0))
    update = xla.jit(agent.update, donate_argnums=0)  # as training does
    random = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    outputs, next_outputs = normal(2, batch_size, num_actions, head.num_outputs)

    @xla.jit
    def loss_alone(outputs, target, batch):
        def loss_fn(outputs):
            return jnp.mean(batch.weight * head.td_loss(heads.select(outputs, batch.action), target))

        return jax.value_and_grad(loss_fn)(outputs)

    target = head.td_target(next_outputs[:, 0], batch.reward, batch.discount)

    @xla.jit
    def head_alone(outputs, next_outputs, batch):
        best = jnp.argmax(head.value(next_outputs), axis=-1)
        target = head.td_target(heads.select(next_outputs, best), batch.reward, batch.discount)

        def loss_fn(outputs):
            chosen = heads.select(outputs, batch.action)
            return jnp.mean(batch.weight * head.td_loss(chosen, target)), chosen

        (loss, chosen), gradient = jax.value_and_grad(loss_fn, has_aux=True)(outputs)
        return loss, gradient, head.td_divergence(chosen, target)

    width = num_actions * head.num_outputs
    features, next_features, cotangent = (
        normal(batch_size, _FEATURES),
        normal(batch_size, _FEATURES),
        normal(batch_size, width),
    )
    kernel, bias = normal(_FEATURES, width), normal(width)

    @xla.jit
    def layer_alone(features, next_features, kernel, bias, cotangent):
        outputs, pullback = jax.vjp(lambda x, w, b: x @ w + b, features, kernel, bias)
        return outputs, next_features @ kernel + bias, pullback(cotangent)

    key = jax.random.key(0)

    def update_in_place():
        nonlocal state
        state, info = update(state, batch, key)
        return state, info

    return {
        "update": update_in_place,
        "loss": lambda: loss_alone(outputs, target, batch),
        "head": lambda: head_alone(outputs, next_outputs, batch),
        "layer": lambda: layer_alone(features, next_features, kernel, bias, cotangent),
    }


def _interleaved(programs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each program in each round; every other round goes backwards."""
    for run in programs.values():
        for _ in range(3):
            jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds):
        order = list(programs.items())
        for name, run in order if number % 2 else reversed(order):
            began = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(round(1e3 * (time.perf_counter() - began), 4))
    return times


def _text(losses: list[str], data: dict[str, Any]) -> str:
    times, first = data["milliseconds"], losses[0]
    parts = ("loss", "head", "layer")
    rows = []
    for loss in losses:
        update = times[f"update {loss}"]
        medians = [f"{statistics.median(times[f'{part} {loss}']):.3f}" for part in ("update", *parts)]
        shares = [_percent(times[f"{part} {loss}"], update) for part in parts[:2]]
        extra = []
        for part in parts[1:]:
            pairs = zip(times[f"{part} {loss}"], times[f"{part} {first}"], strict=True)
            extra.append(_percent([a - b for a, b in pairs], update, "+"))
        rows.append([loss, *medians, *shares, *extra])
    header = ["loss", "update, ms", "loss + gradient, ms", "head, ms", "last layer, ms"]
    header += ["loss + gradient / update", "head / update", f"head over {first}'s", f"layer over {first}'s"]
    return "\n\n".join(
        [
            f"# What the head costs in a DQN update (Nature CNN, {data['game']}, batch {data['batch']})",
            f"Medians of {len(times[f'head {first}'])} interleaved rounds. {_report.describe(data['machine'])}",
            _report.table(header, rows),
            "Loss + gradient: given the outputs of the network and the target. Head: target, loss, its gradient and "
            "the priorities, given the outputs of both networks. The time of either has a call's overhead in it, "
            "which the update does not pay twice. Last layer: forward of both networks and backward. The last four "
            "columns are in percent of that loss's update.",
        ]
    )


def _percent(parts: Sequence[float], wholes: Sequence[float], sign: str = "") -> str:
    share = statistics.median(100 * part / whole for part, whole in zip(parts, wholes, strict=True))
    return f"{share:{sign}.2f} %"


if __name__ == "__main__":
    main()
