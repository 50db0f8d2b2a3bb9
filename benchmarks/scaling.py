"""Measures the cost of an update on growing meshes: for chips by their compiler, and for this CPU by the clock.

    python benchmarks/scaling.py compiled       # memory, FLOPs and bytes sent; needs libtpu
    python benchmarks/scaling.py devices        # updates/s on 1, 2, 4 devices that this CPU is divided into
    python benchmarks/scaling.py processes      # updates/s of 1, 2, 4 processes here
    python benchmarks/scaling.py report

compiled   the complete update of each of UPDATES for each of its targets, by `rlcls.compile`; nothing runs on a chip
devices    Nature's network, HL-Gauss, a batch of 256, forced devices
processes  the same, each process with one device and its share of the batch, over gloo

Devices and processes share the cores of one machine, so their figures only show the cost of dividing a batch. Each
result is written to --out at once, and an update with a result is not compiled again.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _report
from _bare_update import MARK, sample_batch

SLICES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
RESNET = "backbone=resnet101 backbone.dtype=bfloat16"
UPDATES = {
    "DQN, Nature, batch 2048": (SLICES, "game=Pong recipe=paper training.batch_size=2048"),
    "DQN, ResNet-101 in bfloat16, batch 512": (
        ("v5e:4x4", "v5e:16x16"),
        f"game=Pong recipe=paper {RESNET} training.batch_size=512",
    ),
    "DQN, SoftMoE, batch 256": (("v6e:2x4",), "game=Pong backbone=soft_moe training.batch_size=256"),
    "CQL, 40 games, ResNet-101, batch 512": (
        ("v5e:4x4",),
        "agent=cql agent.games=40 game=Pong +env.number=0 +env.full_action_space=true recipe=scaled_ql",
    ),
    "Q-Transformer, 60 million, 256 bins, batch 256": (
        ("v5e:4x4",),
        "agent=qtransformer env=pick recipe=manipulation agent.bins=256 agent.layers=19 agent.width=512 agent.heads=8 "
        "training.batch_size=256",
    ),
}
"""The options of each update, and the targets that it is compiled for."""
BATCH, COUNTS = 256, (1, 2, 4)
NETWORK = ["game=Pong", "recipe=paper", f"training.batch_size={BATCH}"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=["compiled", "devices", "processes", "report"])
    parser.add_argument("--only", help="`compiled` compiles only updates whose name contains this")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement by the clock")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(MARK + json.dumps(measure(**arguments.child)))
        return
    path = arguments.out / "scaling.json"
    known = (
        json.loads(path.read_text()) if path.exists() else {"compiled": {}, "devices": {}, "processes": {}}
    )
    if arguments.part == "compiled":
        for name, (targets, options) in UPDATES.items():
            for target in targets:
                key = f"{name}: {target}"
                if key not in known["compiled"] and (arguments.only or "") in name:
                    known["compiled"][key] = compiled(target, options.split())
                    _write(known, arguments.out)
    elif arguments.part in ("devices", "processes"):
        facts = _report.machine()
        for count in COUNTS:
            speed = timed(arguments.part, count, arguments.seconds)
            known[arguments.part][str(count)] = speed | {"machine": facts}
            _write(known, arguments.out)
    _write(known, arguments.out)


def compiled(target: str, options: list[str]) -> dict[str, Any]:
    """The report of `rlcls.compile`."""
    place = _report.ROOT / "runs" / "scaling.json"
    place.parent.mkdir(exist_ok=True)
    # A crash also exits with 1, so the report of an earlier target is removed first.
    place.unlink(missing_ok=True)
    command = [sys.executable, "-m", "rlcls.compile", f"target={target}", f"out={place}", *options]
    done = subprocess.run(command, env=_report.environment(), cwd=_report.ROOT, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"rlcls.compile ended with {done.returncode}")
    return json.loads(place.read_text()) | {"revision": _report.machine()["revision"]}


def timed(part: str, count: int, seconds: float) -> dict[str, Any]:
    """Updates/s on `count` devices or processes, measured by process 0."""
    devices = count if part == "devices" else 1
    flags = f"--xla_force_host_platform_device_count={devices}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = _report.environment(XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    processes = []
    for index in range(count if part == "processes" else 1):
        child = {
            "seconds": seconds,
            "devices": count,
            "processes": count // devices,
            "index": index,
            "port": port,
        }
        command = [sys.executable, __file__, part, "--child", json.dumps(child)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    (line,) = (line for line in outputs[0].splitlines() if line.startswith(MARK))
    return json.loads(line.removeprefix(MARK))


def measure(seconds: float, devices: int, processes: int, index: int, port: int) -> dict[str, Any]:
    """Updates/s, measured in this process, which may be one of several."""
    from rlcls.distributed import joined

    options = {
        "coordinator": f"127.0.0.1:{port}",
        "num_processes": processes,
        "process_id": index,
        "timeout": 120,
    }
    with joined(options, {}) as hosts:
        import jax

        from rlcls.cli import build
        from rlcls.cli.compose import compose
        from rlcls.training import Placement, memory, xla
        from rlcls.training.learner import Learner

        xla.choose_device("cpu")
        memory.reuse_freed_memory()
        config = compose(NETWORK)
        env = build.environment(config)
        agent = build.agent(config, env.spec)
        learner = Learner(agent, jax.random.key(0), jax.random.key(1), placement=Placement(devices))
        batches = [sample_batch(env.spec, BATCH // processes, 10 * index + seed) for seed in range(4)]

        def updates(count: int) -> None:
            for number in range(count):
                learner.submit(batches[number % 4], ())
            learner.end_round()

        updates(5)
        count, begun = 0, time.perf_counter()
        while hosts.broadcast(time.perf_counter() - begun < seconds):
            updates(10)
            count += 10
        elapsed = time.perf_counter() - begun
        learner.close()
    return {"updates_per_second": count / elapsed, "cores": len(os.sched_getaffinity(0))}


def _row(name: str, each: dict[str, Any]) -> list[Any]:
    sent = (f"{kind} {one['number']}: {one['bytes'] / 1e6:,.2f}" for kind, one in each["collectives"].items())
    return [
        name,
        each["devices"],
        f"{each['parameters']:,}",
        f"{sum(each['memory'].values()) / 1e6:,.0f} of {each['memory_of_device'] / 1e6:,.0f}",
        "-" if each["flops"] is None else f"{each['flops'] / 1e9:,.1f}",
        ", ".join(sent),
        each["seconds"],
    ]


def _write(known: dict[str, Any], out: Path) -> None:
    texts = ["# What an update costs as the mesh grows"]
    if known["compiled"]:
        header = [
            "update: target",
            "devices",
            "parameters",
            "memory, MB",
            "GFLOP",
            "sent, MB",
            "compiled in, s",
        ]
        rows = [_row(name, each) for name, each in known["compiled"].items()]
        note = "Compiled, not run. Memory, work and bytes sent are those of one device in one update."
        texts.append(f"## By the compiler\n\n{note}\n\n{_report.table(header, rows)}")
    for part in ("devices", "processes"):
        if known[part]:
            first = known[part]["1"]["updates_per_second"]
            rows = [
                [
                    count,
                    f"{each['updates_per_second']:.1f}",
                    f"{each['updates_per_second'] / first:.2f}",
                    each["cores"],
                ]
                for count, each in known[part].items()
            ]
            texts.append(
                f"## By the clock: {part} that share this CPU\n\n"
                f"{_report.describe(known[part]['1']['machine'])}\n\n"
                + _report.table([part, "updates/s", "of one", "cores"], rows)
            )
    _picture(known, out / "scaling.png")
    _report.write("scaling", known, "\n\n".join(texts), out)


def _picture(known: dict[str, Any], path: Path) -> None:
    """Draws the bytes that a device sends by the size of the mesh, and updates/s of devices and processes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, (sent, speed) = plt.subplots(1, 2, figsize=(8.6, 3.4), layout="constrained")
    colours = dict(zip(UPDATES, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"), strict=True))
    for name, (targets, _) in UPDATES.items():
        found = [each for target in targets if (each := known["compiled"].get(f"{name}: {target}"))]
        if found:
            megabytes = [sum(one["bytes"] for one in each["collectives"].values()) / 1e6 for each in found]
            devices = [each["devices"] for each in found]
            sent.plot(devices, megabytes, "o-", color=colours[name], markersize=4, label=name)
    sent.set_xscale("log", base=2)
    sent.set_yscale("log")
    ticks = sorted({each["devices"] for each in known["compiled"].values()})
    sent.set_xticks(ticks, [str(tick) for tick in ticks])
    sent.set_ylim(1, 10_000)
    sent.set_xlabel("devices")
    sent.set_ylabel("MB sent by a device in an update")
    sent.legend(frameon=False, fontsize=7)
    for part, colour in (("devices", "#0072b2"), ("processes", "#d55e00")):
        counts = sorted(map(int, known[part]))
        rates = [known[part][str(count)]["updates_per_second"] for count in counts]
        speed.plot(counts, rates, "o-", color=colour, label=f"{part} that share this CPU")
    speed.set_xscale("log", base=2)
    speed.set_xticks(COUNTS, [str(count) for count in COUNTS])
    speed.set_ylim(0, 1.2 * speed.get_ylim()[1])
    speed.set_xlabel("devices or processes")
    speed.set_ylabel("updates/s")
    speed.legend(frameon=False, fontsize=7)
    for axes in (sent, speed):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
