"""Training on TPUs or GPUs of any cloud, by a task of SkyPilot."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

from rlcls._errors import UserError

from .jobs import STALE_NAMES, Job, parser, show

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
        "--restarts", type=int, default=100, help="after the death of a process; default: 100"
    )
    parsed.add_argument(
        "--sky", action="append", default=[], help="a further option of sky, such as --infra=gcp"
    )
    parsed.add_argument(
        "--scripts", type=Path, default=Path("runs"), help="folder of the tasks; default: runs"
    )
    chosen = parsed.parse_args(options)
    files = {
        str(chosen.scripts / f"{job.name}.sky.yaml"): _yaml(
            task(job, chosen.accelerators, chosen.nodes, chosen.spot, chosen.bucket, chosen.restarts)
        )
        for job in jobs
    }
    # A managed job is recovered after a preemption, and after the exit code of a death.
    commands = [
        ["sky", "jobs", "launch", "--yes", "--name", job.name, *chosen.sky, path]
        for job, path in zip(jobs, files, strict=True)
    ]
    if chosen.dry_run:
        return show(files, commands)
    chosen.scripts.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        Path(path).write_text(text)
    for command in commands:
        try:
            code = subprocess.run(command, check=False).returncode
        except FileNotFoundError:
            raise UserError("sky is not on PATH; --dry-run prints the tasks") from None
        if code:
            return code
    return 0


def task(job: Job, accelerators: str, nodes: int, spot: bool, bucket: str, restarts: int) -> dict[str, Any]:
    """The task of a job, as SkyPilot reads it."""
    extra = "tpu" if accelerators.lower().startswith("tpu") else "cuda"
    given = [each for each in job.arguments if each.startswith("run_dir=")]
    run_dir = [] if given else [f"run_dir={_RUNS}/{job.name}"]
    train = ["python -m rlcls.train", job.text, shlex.join(run_dir)]
    if nodes > 1:
        train += [
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
            "job_recovery": {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": restarts},
        },
        "workdir": ".",
        "file_mounts": {_RUNS: {"source": bucket, "mode": "MOUNT"}},
        "setup": f"python -m pip install -q -e '.[atari,{extra}]'\n",
        "run": f"unset {' '.join(STALE_NAMES)}\n{' '.join(filter(None, train))}\n",
    }


def _yaml(made: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(made, sort_keys=False, width=1000)
