"""Measures parameters, operations and updates per second of every backbone, and its share of the machine's peak.

    python benchmarks/backbones.py                    # on the fastest device
    python benchmarks/backbones.py --device cpu --backbones nature impala --rounds 20

An update is that of DQN (Pong, 6 actions, batch 32) as training compiles it, for each backbone, loss and dtype. The
programs of one backbone are timed in turn. The peak is the best measured rate of one matrix product in that dtype. The
IMPALA update is also timed beside the same network in plain Linen, both with the compiler's default options and with
those of rlcls.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _linen_impala
import _report
import jax
import jax.numpy as jnp
import matplotlib
from _bare_update import sample_batch

from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.networks import count_flops, count_parameters
from rlcls.training import memory, xla

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Name -> overrides. The chess transformers read 49 patches.
BACKBONES = {
    "nature": ["backbone=nature"],
    "data_efficient": ["backbone=data_efficient"],
    "impala": ["backbone=impala"],
    "impala x4": ["backbone=impala", "backbone.width=4"],
    "soft_moe": ["backbone=soft_moe"],
    "soft_moe 1": ["backbone=soft_moe", "backbone.num_experts=1"],
    "soft_moe 8": ["backbone=soft_moe", "backbone.num_experts=8"],
    "per_token": ["backbone=per_token"],
    "average_pooling": ["backbone=average_pooling"],
    "wide_dense": ["backbone=wide_dense"],
    "resnet18": ["backbone=resnet18"],
    "resnet34": ["backbone=resnet34"],
    "resnet50": ["backbone=resnet50"],
    "resnet101": ["backbone=resnet101"],
    "transformer": ["backbone=transformer"],
    "transformer sigma": ["backbone=transformer", "backbone.sigma_reparam=true"],
    "transformer_9m": ["backbone=transformer_9m", "backbone.vocabulary=null"],
    "transformer_136m": ["backbone=transformer_136m", "backbone.vocabulary=null"],
    "transformer_270m": ["backbone=transformer_270m", "backbone.vocabulary=null"],
}
_NOT_ON_A_CPU = ("impala x4", "soft_moe 1", "soft_moe 8")  # variants, which a CPU runs only with --backbones
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "gpu", "tpu"], default=None)
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), help="on a CPU all but variants")
    parser.add_argument("--losses", nargs="+", default=["mse", "hlgauss"])
    parser.add_argument("--dtypes", nargs="+", choices=list(_DTYPES), help="on a CPU float32, elsewhere both")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=100, help="at most, of each program")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="at most, of a backbone's programs together"
    )
    parser.add_argument("--linen-rounds", type=int, default=40, help="of the comparison with Linen; 0: none")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    arguments = parser.parse_args()
    facts = _report.machine()
    device = xla.choose_device(arguments.device)
    memory.reuse_freed_memory()
    facts["device"] = device.device_kind
    on_cpu = device.platform == "cpu"
    # On a CPU convolutions are not faster in bfloat16, and memory holds only two programs at a time.
    arguments.dtypes = arguments.dtypes or (["float32"] if on_cpu else list(_DTYPES))
    left_out = _NOT_ON_A_CPU if on_cpu else ()
    arguments.backbones = arguments.backbones or [name for name in BACKBONES if name not in left_out]
    settings = compose(["game=Pong"])
    env = build.environment(settings)
    data: dict[str, Any] = {
        "machine": facts,
        "batch": arguments.batch,
        "peak": {dtype: matmul_peak(_DTYPES[dtype], device.platform) for dtype in arguments.dtypes},
        "programs": [],
    }
    for name in arguments.backbones:
        measured = _measure(name, env, arguments)
        print(*map(_line, measured), sep="\n", flush=True)
        data["programs"] += measured
    if arguments.linen_rounds:
        data["linen"] = _beside_linen(env, arguments)
    env.close()
    stem = f"backbones_{device.platform}"
    _picture(data, arguments.out / f"{stem}.png")
    _report.write(stem, data, _text(data), arguments.out)


def matmul_peak(dtype: Any, platform: str) -> float:
    """FLOP/s of the fastest of several square matrix products, the best of 10 trials each."""
    best = 0.0
    for size in (1024, 2048, 4096) if platform == "cpu" else (4096, 8192, 16384):
        left, right = jnp.ones((2, size, size), dtype)
        product = xla.jit(jnp.matmul)
        jax.block_until_ready(product(left, right))
        for _ in range(10):
            began = time.perf_counter()
            jax.block_until_ready(product(left, right))
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def _measure(name: str, env: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Sizes and times of a backbone's programs."""
    batch = jax.device_put(sample_batch(env.spec, arguments.batch, seed=0))
    programs, runs = [], []
    for loss in arguments.losses:
        for dtype in arguments.dtypes:
            settings = compose(["game=Pong", f"loss={loss}", *BACKBONES[name]])
            settings.backbone.dtype = dtype
            agent = build.agent(settings, env.spec)
            key = jax.random.key(0)
            state = jax.eval_shape(agent.init, key)
            one = jax.ShapeDtypeStruct((1, *batch.observation.shape[1:]), batch.observation.dtype)
            forward = count_flops(agent.q_values, state.online, one)
            programs.append(
                {
                    "backbone": name,
                    "loss": loss,
                    "dtype": dtype,
                    "parameters": count_parameters(state.params),
                    "forward_flops": forward,
                    "update_flops": count_flops(agent.update, state, batch, key),
                }
            )
            runs.append(_ready(xla.jit, agent.update, xla.jit(agent.init)(key), batch, key))
    for program, times in zip(programs, _in_turn(runs, arguments.rounds, arguments.seconds), strict=True):
        program["milliseconds"] = times
    return programs


def _ready(jit: Any, update: Any, state: Any, *inputs: Any) -> Callable[[], Any]:
    """A function that makes the next compiled update, in the memory of the previous state, as training does."""
    state = jax.tree.map(jnp.copy, state)  # each program donates its own copy
    compiled = jit(update, donate_argnums=0).lower(state, *inputs).compile()

    def run() -> Any:
        nonlocal state
        state, info = compiled(state, *inputs)
        return state, info

    return run


def _in_turn(runs: list[Callable[[], Any]], rounds: int, seconds: float) -> list[list[float]]:
    """Milliseconds of each run in each round, at least one, after an untimed one. Every other round goes backwards."""
    times: list[list[float]] = [[] for _ in runs]
    until, number = time.perf_counter() + seconds, 0
    while number < 2 or (number <= rounds and time.perf_counter() < until):
        order = list(range(len(runs)))
        for index in order if number % 2 else reversed(order):
            began = time.perf_counter()
            jax.block_until_ready(runs[index]())
            times[index].append(round(1e3 * (time.perf_counter() - began), 4))
        number += 1
    return [each[1:] for each in times]


def _beside_linen(env: Any, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of the IMPALA update with HL-Gauss in rlcls and in Linen, each with both sets of options."""
    settings = compose(["game=Pong", "loss=hlgauss", "backbone=impala"])
    agent = build.agent(settings, env.spec)
    batch, key = jax.device_put(sample_batch(env.spec, arguments.batch, seed=0)), jax.random.key(0)
    state = xla.jit(agent.init)(key)
    rate, eps = float(settings.agent.learning_rate), float(settings.agent.optimizer.eps)
    linen_state, linen_update = _linen_impala.make(
        agent.head, env.spec.num_actions, batch.observation, rate, eps
    )
    if count_parameters(linen_state[0]) != count_parameters(state.params):
        raise AssertionError("the two networks are not the same")
    runs = {}
    for compiled, jit in (("default options", jax.jit), ("our options", xla.jit)):
        runs[f"Linen, {compiled}"] = _ready(jit, linen_update, linen_state, batch)
        runs[f"rlcls, {compiled}"] = _ready(jit, agent.update, state, batch, key)
    times = _in_turn(list(runs.values()), arguments.linen_rounds, float("inf"))
    return dict(zip(runs, times, strict=True))


def _rate(program: dict[str, Any]) -> float:
    return 1e3 / statistics.median(program["milliseconds"])


def _line(program: dict[str, Any]) -> str:
    return f"{program['backbone']} {program['loss']} {program['dtype']}: {_rate(program):.2f} updates/s"


def _text(data: dict[str, Any]) -> str:
    rows = []
    for program in data["programs"]:
        flops = program["update_flops"] * _rate(program)
        rows.append(
            [
                program["backbone"],
                program["loss"],
                program["dtype"],
                f"{program['parameters']:,}",
                f"{program['forward_flops'] / 1e6:,.1f}",
                f"{program['update_flops'] / 1e9:,.2f}",
                f"{_rate(program):,.2f}",
                f"{100 * flops / data['peak'][program['dtype']]:.1f} %",
                len(program["milliseconds"]),
            ]
        )
    header = ["backbone", "loss", "dtype", "parameters", "MFLOP a forward pass", "GFLOP an update"]
    header += ["updates/s", "of the matmul peak", "rounds"]
    peaks = ", ".join(f"{dtype} {peak / 1e9:,.0f} GFLOP/s" for dtype, peak in data["peak"].items())
    parts = [
        f"# What the backbones cost in a DQN update (Pong, 6 actions, batch {data['batch']})",
        f"On {data['machine']['device']}. {_report.describe(data['machine'])} Medians. Peak of a matrix product: "
        f"{peaks} (on a GPU, float32 products may run in TF32, here as there). FLOPs are those of convolutions and "
        "matrix products; a forward pass is of one observation, an update has four: online, target, and two backward.",
        _report.table(header, rows),
    ]
    if "linen" in data:
        plain = data["linen"]["Linen, default options"]
        rows = []
        for name, times in data["linen"].items():
            faster = statistics.median(a / b for a, b in zip(plain, times, strict=True))
            rows.append([name, f"{statistics.median(times):.2f}", f"{min(times):.2f}", f"{faster:.2f}x"])
        header = ["IMPALA update, HL-Gauss, float32", "median ms", "least ms", "as fast as plain Linen"]
        parts.append(_report.table(header, rows))
    return "\n\n".join(parts)


def _picture(data: dict[str, Any], path: Path) -> None:
    programs = data["programs"]
    names = list(dict.fromkeys(program["backbone"] for program in programs))
    kinds = list(dict.fromkeys((program["loss"], program["dtype"]) for program in programs))
    figure, (speed, share) = plt.subplots(
        1, 2, figsize=(11, 1.2 + 0.4 * len(names)), sharey=True, layout="constrained"
    )
    height = 0.8 / len(kinds)
    for number, (loss, dtype) in enumerate(kinds):
        chosen = [p for p in programs if (p["loss"], p["dtype"]) == (loss, dtype)]
        at = [names.index(p["backbone"]) + (number - (len(kinds) - 1) / 2) * height for p in chosen]
        rates = [_rate(p) for p in chosen]
        shares = [
            100 * p["update_flops"] * rate / data["peak"][dtype]
            for p, rate in zip(chosen, rates, strict=True)
        ]
        # Dots, because bars have no natural start on a logarithmic axis.
        speed.plot(rates, at, "o", markersize=5, label=f"{loss}, {dtype}")
        share.barh(at, shares, height)
    speed.set_yticks(range(len(names)), names)
    speed.invert_yaxis()
    speed.set_xscale("log")
    speed.grid(axis="both", alpha=0.3)
    speed.set_xlabel(f"updates per second, batch {data['batch']}")
    share.set_xlabel("percent of the matrix-product peak in that dtype")
    speed.legend(fontsize="small")
    machine = data["machine"]
    on = f"{machine['cpu']}, {machine['cores']} cores" if machine["device"] == "cpu" else machine["device"]
    figure.suptitle(f"DQN updates on {on}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
