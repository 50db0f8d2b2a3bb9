"""Training on a TPU slice of Google Cloud, which is asked for, used and given back by one script."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from .jobs import STALE_NAMES, Job, parser, show

_SCRIPT = """#!/bin/bash
# Asks for a TPU slice, trains on all its workers, begins again after a preemption, and gives the slice back.
set -u
name={name}
flags=({flags})
gcloud="gcloud compute tpus"

slice_state() {{
  $gcloud queued-resources describe "$name" "${{flags[@]}}" --format="value(state.state)" 2>/dev/null
}}
create() {{
  $gcloud queued-resources create "$name" --node-id="$name" "${{flags[@]}}" {create}
}}
delete() {{
  $gcloud queued-resources delete "$name" "${{flags[@]}}" --force --quiet
}}
wait_until_active() {{
  while true; do
    state=$(slice_state)
    case "$state" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING) return 1 ;;
    esac
    echo "the slice is ${{state:-unknown}}"
    sleep {poll}
  done
}}
on_all_workers() {{
  $gcloud tpu-vm ssh "$name" "${{flags[@]}}" --worker=all --command="$1"
}}
install() {{
  $gcloud tpu-vm scp --recurse {folder} "$name:rlcls" "${{flags[@]}}" --worker=all &&
    on_all_workers {install}
}}

for attempt in $(seq 0 {restarts}); do
  if [ -z "$(slice_state)" ]; then create || exit 1; fi
  if wait_until_active && install; then
    on_all_workers {train}
    code=$?
    # 75: a worker died; 143: it was told to end; 255: ssh lost it.
    if [ "$code" -ne 75 ] && [ "$code" -ne 143 ] && [ "$code" -ne 255 ]; then break; fi
  else
    code=75
  fi
  echo "attempt $attempt ended with $code"
  if [ "$(slice_state)" != "ACTIVE" ]; then delete; fi
done
{end}
exit "$code"
"""


def main(options: list[str], jobs: list[Job]) -> int:
    """Runs each job on a slice of its own name, one after another."""
    parsed = parser("tpu", "Trains on a TPU slice of Google Cloud. It needs gcloud, logged in.")
    parsed.add_argument("--type", required=True, help="accelerator type, such as v5litepod-16")
    parsed.add_argument("--zone", required=True)
    parsed.add_argument("--project")
    parsed.add_argument("--runtime", default="v2-alpha-tpuv5-lite", help="runtime version")
    parsed.add_argument("--spot", action="store_true", help="a slice that may be taken away")
    parsed.add_argument(
        "--runs",
        required=True,
        help="folder of run folders, which every worker has mounted",
    )
    parsed.add_argument(
        "--mount", default="true", help="a command that mounts it on a worker; default: nothing"
    )
    parsed.add_argument("--restarts", type=int, default=100, help="attempts after the first; default: 100")
    parsed.add_argument(
        "--poll", type=int, default=30, help="seconds between two looks at the slice; default: 30"
    )
    parsed.add_argument("--keep", action="store_true", help="do not delete the slice at the end")
    parsed.add_argument(
        "--scripts", type=Path, default=Path("runs"), help="folder of the scripts; default: runs"
    )
    chosen = parsed.parse_args(options)
    files = {str(chosen.scripts / f"{job.name}.sh"): _script(job, chosen) for job in jobs}
    if chosen.dry_run:
        return show(files, [["bash", path] for path in files])
    chosen.scripts.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        Path(path).write_text(text)
        if code := subprocess.run(["bash", path], check=False).returncode:
            return code
    return 0


def _script(job: Job, chosen: object) -> str:
    options = vars(chosen)
    flags = [f"--zone={options['zone']}"] + (
        [f"--project={options['project']}"] if options["project"] else []
    )
    create = [f"--accelerator-type={options['type']}", f"--runtime-version={options['runtime']}"]
    given = [each for each in job.arguments if each.startswith("run_dir=")]
    run_dir = [] if given else [f"run_dir={options['runs']}/{job.name}"]
    train = shlex.join(["python3", "-m", "rlcls.train", *job.arguments, *run_dir])
    unset = " ".join(f"-u {name}" for name in STALE_NAMES)
    return _SCRIPT.format(
        name=shlex.quote(job.name),
        flags=shlex.join(flags),
        create=shlex.join([*create, *(["--spot"] if options["spot"] else [])]),
        poll=options["poll"],
        folder=shlex.quote(str(Path.cwd())),
        install=shlex.quote(f"{options['mount']} && cd rlcls && python3 -m pip install -q -e '.[atari,tpu]'"),
        train=shlex.quote(f"cd rlcls && env {unset} {train}"),
        restarts=options["restarts"],
        end="true" if options["keep"] else "delete",
    )
