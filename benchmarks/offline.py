"""Measures the time and the memory that recorded data cost a learner.

    python benchmarks/offline.py --d3rlpy ~/d3rlpy/bin/python

loop    updates/s of the whole offline loop beside the bare jitted update, in turns
data    frames/s of the data path alone, from a memory map whose frames are all in memory and checked
d3rlpy  updates/s of d3rlpy's DiscreteCQL on the same recording and network, and of the loop with its 200 quantiles
memory  of a process that samples from 10 million transitions

All parts use Nature's network, CQL and HL-Gauss with batches of 32. The recording has random frames and is made in
--work, unless --recording names another. `memory` uses a sparse file of zeros, because a full one would take 70 GB.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _report
import numpy as np
from _bare_update import MARK

from rlcls.cli import build
from rlcls.cli.compose import compose
from rlcls.datasets import BEGINS, Layout, Rows, Writer, open_recording
from rlcls.datasets.recording import Manifest
from rlcls.training import memory, xla

LAYOUT = Layout(game="Pong", frame_shape=(84, 84), stack=4, num_actions=6)
OPTIONS = ["agent=cql", "recipe=paper", "game=Pong", "data=recording"]
EPISODE, ROWS, SPARSE_ROWS = 1000, 50_000, 10_000_000
BATCHES = (32, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recording", type=Path)
    parser.add_argument("--work", type=Path, default=_report.ROOT / "runs" / "offline-benchmark")
    parser.add_argument("--sparse-rows", type=int, default=SPARSE_ROWS)
    parser.add_argument("--d3rlpy", help="a Python that has d3rlpy")
    parser.add_argument("--out", type=Path, default=_report.RESULTS)
    parser.add_argument("--child", choices=["loop", "quantile", "data", "memory"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure = {"loop": _loop, "quantile": _quantile_loop, "data": _data, "memory": _memory}[
            arguments.child
        ]
        print(MARK + json.dumps(measure(arguments.recording, arguments.seconds)))
        return
    facts = _report.machine()
    recording = arguments.recording or _random_recording(arguments.work / "random")
    measured: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        measured += [
            {"what": "bare", **_bare(arguments.seconds)},
            {"what": "loop", **_child("loop", recording, arguments.seconds)},
            {"what": "data", **_child("data", recording, arguments.seconds)},
        ]
        if arguments.d3rlpy:
            measured.append({"what": "quantile", **_child("quantile", recording, arguments.seconds)})
            measured.append({"what": "d3rlpy", **_d3rlpy(arguments.d3rlpy, recording, arguments.seconds)})
        print(json.dumps(measured[-5:]), file=sys.stderr, flush=True)
    sparse = _sparse_recording(arguments.work / "sparse", arguments.sparse_rows)
    used = _child("memory", sparse, arguments.seconds) | {"rows": arguments.sparse_rows}
    data = {"machine": facts, "seconds": arguments.seconds, "measured": measured, "memory": used}
    _report.write("offline", data, _text(data), arguments.out)


def _quantile_loop(recording: Path, seconds: float) -> dict[str, Any]:
    return _loop(recording, seconds, "loss=quantile")


def _loop(recording: Path, seconds: float, *options: str) -> dict[str, Any]:
    """Updates/s of `Offline.advance`."""
    config = compose([*OPTIONS, *options, f"data.path={recording}", "eval.every=0"])
    _prepare(config.device)
    env, data = build.environment(config), build.dataset(config)
    assert data is not None
    _check_all(data)
    loop = build.loop(config, build.agent(config, data.spec), env, data)
    loop.warm_up(config.steps)
    for _ in range(3):
        loop.advance()
    first, begun = loop.counts["updates"], time.perf_counter()
    while time.perf_counter() - begun < seconds:
        loop.advance()
    elapsed = time.perf_counter() - begun
    return {"updates_per_second": (loop.counts["updates"] - first) / elapsed}


def _data(recording: Path, seconds: float) -> dict[str, Any]:
    """Transitions/s and frames/s of `Transitions.sample`. A transition with stacks of 4 has 8 frames."""
    memory.reuse_freed_memory()
    data = open_recording(recording)
    _check_all(data)
    rates = {}
    for size in BATCHES:
        number, begun = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begun) < seconds:
            data.sample(size, 0, number)
            number += 1
        frames = 2 * max(data.recording.manifest.layout.stack, 1)
        rates[str(size)] = {
            "transitions_per_second": number * size / elapsed,
            "frames_per_second": number * size * frames / elapsed,
        }
    return {"batches": rates}


def _memory(recording: Path, seconds: float) -> dict[str, Any]:
    """Memory of this process in MB: before the data set is opened, the maximum while it is opened, and after sampling.

    Pages of the file are counted separately, because the system can take them back.
    """
    memory.reuse_freed_memory()
    before, begun = _status(), time.perf_counter()
    data = open_recording(recording)
    opened, peak = time.perf_counter() - begun, _status()["VmHWM"]
    number, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        data.sample(32, 0, number)
        number += 1
    after = _status()
    return {
        "transitions": data.count,
        "seconds_to_open": opened,
        "before": before["RssAnon"],
        "peak_while_opening": peak,
        "after": after["RssAnon"],
        "file_pages_after": after["RssFile"],
        "sampled": 32 * number,
    }


def _status() -> dict[str, float]:
    """Lines of /proc/self/status in MB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1000 for words in lines if words[-1] == "kB"}


def _prepare(device: str | None) -> None:
    xla.choose_device(device)
    xla.cache_compilations()
    memory.reuse_freed_memory()


def _check_all(data: Any) -> None:
    """Reads all frames once, so that they are in memory and compared with their checksums."""
    data.recording.check(np.arange(data.recording.columns.num_rows))


def _bare(seconds: float) -> dict[str, Any]:
    driver = Path(__file__).parent / "_bare_update.py"
    return _marked_line([sys.executable, str(driver), "--seconds", str(seconds), *OPTIONS])


def _child(what: str, recording: Path, seconds: float) -> dict[str, Any]:
    options = ["--child", what, "--recording", str(recording), "--seconds", str(seconds)]
    return _marked_line([sys.executable, __file__, *options])


def _d3rlpy(python: str, recording: Path, seconds: float) -> dict[str, Any]:
    driver = Path(__file__).parent / "peers" / "run_d3rlpy.py"
    return _marked_line([python, str(driver), "--recording", str(recording), "--seconds", str(seconds)])


def _marked_line(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_report.environment())
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix(MARK))


def _random_recording(folder: Path) -> Path:
    """Episodes of random frames."""
    random = np.random.default_rng(0)
    with Writer(folder, LAYOUT, {"made": "random frames", "rows": ROWS}) as writer:
        for number in range(writer.progress or 0, ROWS // EPISODE):
            writer.append(
                Rows(
                    random.integers(1, 256, (EPISODE, *LAYOUT.frame_shape), np.uint8),
                    random.integers(0, 6, EPISODE, np.int32),
                    random.integers(-1, 2, EPISODE).astype(np.float32),
                    np.arange(EPISODE) == EPISODE - 2,
                    np.where(np.arange(EPISODE) == 0, BEGINS, 0).astype(np.uint8),
                )
            )
            writer.commit(number + 1)
        return writer.finish().path


def _sparse_recording(folder: Path, rows: int) -> Path:
    """A recording in sparse files. All values are 0 except the beginnings and ends of episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    rows -= rows % EPISODE
    place = np.arange(rows) % EPISODE
    columns = {"terminals": place == EPISODE - 2, "starts": np.where(place == 0, BEGINS, 0).astype(np.uint8)}
    manifest = Manifest(LAYOUT, {"made": "zeros"}, complete=True, chunks=[EPISODE] * (rows // EPISODE))
    for name in LAYOUT.columns:
        with open(folder / f"{name}.bin", "wb") as file:
            if name in columns:
                columns[name].tofile(file)
            file.truncate(manifest.bytes(name))
        dtype, shape = LAYOUT.columns[name]
        first = columns.get(name, np.zeros((EPISODE, *shape), dtype))[:EPISODE]
        manifest.sha256[name] = [hashlib.sha256(first.tobytes()).hexdigest()] * len(manifest.chunks)
    manifest.write(folder)
    return folder


def _text(data: dict[str, Any]) -> str:
    measured, used = data["measured"], data["memory"]

    def rate(what: str) -> float | None:
        rates = [
            line["updates_per_second"] for line in measured if line["what"] == what and "missing" not in line
        ]
        return statistics.median(rates) if rates else None

    def path(size: int, name: str) -> float:
        return statistics.median(
            line["batches"][str(size)][name] for line in measured if line["what"] == "data"
        )

    bare, loop, quantile, peer = (rate(what) for what in ("bare", "loop", "quantile", "d3rlpy"))
    assert bare is not None and loop is not None
    rows = [
        ["bare jitted update", f"{bare:.1f} updates/s"],
        ["whole offline loop", f"{loop:.1f} updates/s, {loop / bare:.1%} of it"],
        *(
            [f"data path alone, batch {size}", f"{path(size, 'frames_per_second') / 1e3:,.0f}k frames/s"]
            for size in BATCHES
        ),
        ["data path / learner, batch 32", f"{path(32, 'transitions_per_second') / (32 * bare):.1f}"],
        [
            "whole offline loop, 200 quantiles",
            "not measured" if quantile is None else f"{quantile:.1f} updates/s",
        ],
        [
            "d3rlpy DiscreteCQL, 200 quantiles",
            "not measured"
            if peer is None or quantile is None
            else f"{peer:.1f} updates/s; the loop above makes {quantile / peer:.2f} times as many",
        ],
        [
            f"memory at {used['transitions']:,} transitions",
            f"{used['after'] - used['before']:,.0f} MB more than before, at most "
            f"{used['peak_while_opening'] - used['before']:,.0f} MB while opening ({used['seconds_to_open']:.1f} s); "
            f"{used['file_pages_after']:,.0f} MB of mapped file pages",
        ],
    ]
    return "\n\n".join(
        [
            "# Offline training: what the data costs",
            f"Medians of {sum(line['what'] == 'bare' for line in measured)} rounds of {data['seconds']:g} s. "
            f"{_report.describe(data['machine'])}",
            _report.table(["measured", "result"], rows),
            "The recording of the last row is a sparse file of zeros.",
        ]
    )


if __name__ == "__main__":
    main()
