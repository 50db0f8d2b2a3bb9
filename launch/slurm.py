"""Training in the queue of a cluster that runs SLURM."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from rlcls._errors import UserError

from .jobs import STALE_NAMES, Job, parser, show

# JAX's and our own processes find each other by SLURM's variables. TERM comes before the time is over, so that every
# process saves and ends with 143; 75 is the code after the death of one of them.
_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --time={time}
#SBATCH --signal=TERM@{notice}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={output}
{directives}
set -u
unset {stale}
cd {folder} || exit 2
{setup}
srun --kill-on-bad-exit=1 {python} -m rlcls.train {arguments}
code=$?
if [ "$code" -eq 75 ] || [ "$code" -ge 128 ]; then
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    echo "exit code $code: queued again"
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
"""


def main(options: list[str], jobs: list[Job]) -> int:
    """Submits each job."""
    parsed = parser("slurm", "Submits a training to SLURM's queue; it is queued again when it is preempted.")
    parsed.add_argument("--nodes", type=int, default=1)
    parsed.add_argument("--tasks", type=int, default=1, help="processes on a node; default: 1")
    parsed.add_argument("--time", default="24:00:00", help="limit of one attempt; default: 24:00:00")
    parsed.add_argument(
        "--notice", type=int, default=120, help="seconds before the limit to save; default: 120"
    )
    parsed.add_argument("--restarts", type=int, default=100, help="attempts after the first; default: 100")
    parsed.add_argument(
        "--sbatch", action="append", default=[], help="a further option, such as --gpus-per-node=8"
    )
    parsed.add_argument(
        "--setup", default="", help="a shell command before training, such as module load cuda"
    )
    parsed.add_argument("--python", default="python", help="the interpreter on the nodes; default: python")
    parsed.add_argument(
        "--logs", type=Path, default=Path("runs"), help="folder of scripts and output; default: runs"
    )
    chosen = parsed.parse_args(options)
    files = {
        str(chosen.logs / f"{job.name}.sbatch"): _SCRIPT.format(
            name=job.name,
            nodes=chosen.nodes,
            tasks=chosen.tasks,
            time=chosen.time,
            notice=chosen.notice,
            output=chosen.logs / f"{job.name}-%j.log",
            directives="\n".join(f"#SBATCH {each}" for each in chosen.sbatch) or "#",
            stale=" ".join(STALE_NAMES),
            folder=shlex.quote(str(Path.cwd())),
            setup=chosen.setup or "true",
            python=chosen.python,
            arguments=job.text,
            restarts=chosen.restarts,
        )
        for job in jobs
    }
    commands = [["sbatch", path] for path in files]
    if chosen.dry_run:
        return show(files, commands)
    for path, text in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    for command in commands:
        try:
            code = subprocess.run(command, check=False).returncode
        except FileNotFoundError:
            raise UserError("sbatch is not on PATH; --dry-run prints the scripts") from None
        if code:
            return code
    return 0
