"""Training on TPUs or GPUs of any cloud, by a task of SkyPilot."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from .jobs import DEATHS, PYTHON, STALE_NAMES, Job, install, parser, run_each, show, write

_PORT = 29_417
_RUNS = "/runs"  # where the bucket is mounted


def main(options: list[str], jobs: list[Job]) -> int:
    """Launches each job."""
    parsed = parser("sky", "Trains on a cloud by SkyPilot. It needs the command sky, set up for the cloud.")
    parsed.add_argument("--accelerators", required=True, help="such as H100:8 or tpu-v5litepod-8:1")
    parsed.add_argument("--nodes", type=int, default=1)
    parsed.add_argument(
        "--spot", action="store_true", help="machines that may be taken away; the job recovers"
    )
    parsed.add_argument("--bucket", required=True, help="bucket of run folders, such as gs://me/runs")
    parsed.add_argument(
        "--sky", action="append", default=[], help="a further option of sky, such as --infra=gcp"
    )
    parsed.add_argument(
        "--scripts", type=Path, default=Path("launches"), help="folder of the tasks; default: launches"
    )
    chosen = parsed.parse_args(options)
    files = {
        str(chosen.scripts / f"{job.name}.sky.yaml"): _yaml(
            task(job, chosen.accelerators, chosen.nodes, chosen.spot, chosen.bucket)
        )
        for job in jobs
    }
    # SkyPilot recovers a managed job after a preemption, and after an exit code in `DEATHS`.
    commands = [
        ["sky", "jobs", "launch", "--yes", "--name", job.name, *chosen.sky, path]
        for job, path in zip(jobs, files, strict=True)
    ]
    if chosen.dry_run:
        return show(files, commands)
    write(files)
    return run_each(commands)


def task(job: Job, accelerators: str, nodes: int, spot: bool, bucket: str) -> dict[str, Any]:
    """The SkyPilot task of a job."""
    extra = "tpu" if accelerators.lower().startswith("tpu") else "cuda"
    given = [each for each in job.arguments if each.startswith("run_dir=")]
    run_dir = [] if given else [f"run_dir={_RUNS}/{job.name}"]
    # For SkyPilot a TPU slice of several hosts is one node. SkyPilot runs the command on each host.
    train = [
        f"{PYTHON} -m rlcls.train",
        job.text,
        shlex.join(run_dir),
        f'distributed.coordinator="$(echo "$SKYPILOT_NODE_IPS" | head -n1):{_PORT}"',
        'distributed.num_processes="$SKYPILOT_NUM_NODES"',
        'distributed.process_id="$SKYPILOT_NODE_RANK"',
        "distributed.timeout=600",
    ]
    return {
        "name": job.name,
        "num_nodes": nodes,
        "resources": {
            "accelerators": accelerators,
            "use_spot": spot,
            "job_recovery": {"strategy": "EAGER_NEXT_REGION", "recover_on_exit_codes": list(DEATHS)},
        },
        "workdir": ".",
        "file_mounts": {_RUNS: {"source": bucket, "mode": "MOUNT"}},
        "setup": f"{install(extra)}\n",
        "run": f"unset {' '.join(STALE_NAMES)}\n{' '.join(filter(None, train))}\n",
    }


def _yaml(made: dict[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(made, Dumper=Dumper, sort_keys=False, width=1000)
