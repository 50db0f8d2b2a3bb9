"""Training in the queue of a cluster that runs SLURM."""

from __future__ import annotations

import shlex
from pathlib import Path

from .jobs import DEATHS, STALE_NAMES, Job, parser, run_each, show, write

# The processes find each other by SLURM's variables. When one dies they end each other, so srun need not kill them. The
# job is queued again after a death, and after SLURM's warning (USR1) before the time limit, but not after a user's
# scancel, which sends TERM. SLURM itself queues a preempted job again.
_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --time={time}
#SBATCH --signal=B:USR1@{notice}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={output}
{directives}
set -u
unset {stale}
cd {folder} || exit 2
{setup}
warned=0
srun --kill-on-bad-exit=0 {python} -m rlcls.train {arguments} &
step=$!
trap 'warned=1; kill -TERM "$step"' USR1
while true; do # a signal ends wait, too
  wait "$step"
  code=$?
  kill -0 "$step" 2>/dev/null || break
done
wait "$step"
code=$?
again=0
case "$code" in
  {deaths}) again=1 ;;
  143) again=$warned ;;
esac
if [ "$again" -eq 1 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
  echo "exit code $code: queued again"
  scontrol requeue "$SLURM_JOB_ID"
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
        "--logs", type=Path, default=Path("launches"), help="folder of scripts and output; default: launches"
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
            deaths=" | ".join(map(str, DEATHS)),
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
    write(files)
    return run_each(commands)
