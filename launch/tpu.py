"""Training on a TPU slice of Google Cloud. One script requests the slice, trains on it and deletes it."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from rlcls._errors import UserError

from .jobs import PYTHON, STALE_NAMES, Job, install, parser, run_each, show, write

_STOP = (
    'pid=$(cat ~/rlcls.pid 2>/dev/null) && grep -qs rlcls.train "/proc/$pid/cmdline" && kill "$pid" && '
    'for _ in $(seq 60); do kill -0 "$pid" 2>/dev/null || break; sleep 1; done; '
    'if grep -qs rlcls.train "/proc/${pid:-none}/cmdline"; then kill -9 "$pid"; fi'
)
"""Ends a training on a worker whose attempt lost its connection. That training would otherwise keep the chips."""
_SCRIPT = """#!/bin/bash
# Requests a TPU slice, trains on all its workers, starts again after a preemption, and deletes the slice.
# Commands in single quotes are for the workers' shells. A trap calls finish.
# shellcheck disable=SC2016,SC2329
set -u
name={name}
flags=({flags})
gcloud=(gcloud compute tpus)
code=1

slice_state() {{
  "${{gcloud[@]}}" queued-resources describe "$name" "${{flags[@]}}" --format="value(state.state)" 2>/dev/null
}}
create() {{
  "${{gcloud[@]}}" queued-resources create "$name" --node-id="$name" "${{flags[@]}}" {create}
}}
delete() {{
  "${{gcloud[@]}}" queued-resources delete "$name" "${{flags[@]}}" --force --quiet
}}
wait_until_active() {{
  while true; do
    state=$(slice_state)
    case "$state" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING) return 1 ;;
    esac
    echo "the slice is ${{state:-unknown}}"
    sleep {poll}
  done
}}
on_all_workers() {{
  "${{gcloud[@]}}" tpu-vm ssh "$name" "${{flags[@]}}" --worker=all --command="$1"
}}
install() {{
  tar -czf "$archive" --exclude-vcs --exclude=./runs --exclude=./launches --exclude='.venv*' -C {folder} . &&
    "${{gcloud[@]}}" tpu-vm scp "$archive" "$name:rlcls.tar.gz" "${{flags[@]}}" --worker=all &&
    on_all_workers {install}
}}
finish() {{
  rm -f "$archive"
  if [ "$(slice_state)" = ACTIVE ]; then on_all_workers {stop}; fi
  {end}
}}

archive=$(mktemp) || exit 1
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
for attempt in $(seq {attempts}); do
  if [ -z "$(slice_state)" ]; then create || exit 1; fi
  code=75
  if wait_until_active && install; then
    on_all_workers "attempt=$$-$attempt; "{train}
    code=$?
  fi
  # 75: a worker died. 128 and more: a signal ended the training. 255: ssh lost the connection.
  if [ "$code" -ne 75 ] && [ "$code" -lt 128 ]; then break; fi
  echo "attempt $attempt ended with exit code $code"
  if [ "$attempt" -lt {attempts} ]; then
    if [ "$(slice_state)" != ACTIVE ]; then delete; fi
    sleep {poll}
  fi
done
exit "$code"
"""


def main(options: list[str], jobs: list[Job]) -> int:
    """Runs the jobs one after another, each on a slice with its name."""
    parsed = parser("tpu", "Trains on a TPU slice of Google Cloud. It needs gcloud, logged in.")
    parsed.add_argument("--type", required=True, help="accelerator type, such as v5litepod-16")
    parsed.add_argument("--zone", required=True)
    parsed.add_argument("--project")
    parsed.add_argument("--runtime", default="v2-alpha-tpuv5-lite", help="runtime version")
    parsed.add_argument("--spot", action="store_true", help="a slice that may be taken away")
    parsed.add_argument("--runs", required=True, help="folder of run folders, which every worker has mounted")
    parsed.add_argument(
        "--mount", default="true", help="a command that mounts it on a worker; default: nothing"
    )
    parsed.add_argument("--restarts", type=int, default=100, help="attempts after the first; default: 100")
    parsed.add_argument(
        "--poll", type=int, default=30, help="seconds between two looks at the slice; default: 30"
    )
    parsed.add_argument("--keep", action="store_true", help="do not delete the slice at the end")
    parsed.add_argument(
        "--scripts", type=Path, default=Path("launches"), help="folder of the scripts; default: launches"
    )
    chosen = parsed.parse_args(options)
    if not jobs:
        return 0
    project = Path("pyproject.toml")
    if not project.exists() or not re.search(r'^name = "rlcls"$', project.read_text(), flags=re.M):
        raise UserError("the workers get a copy of the working directory, which must be a checkout of rlcls")
    files = {str(chosen.scripts / f"{job.name}.sh"): _script(job, chosen) for job in jobs}
    commands = [["bash", path] for path in files]
    if chosen.dry_run:
        return show(files, commands)
    write(files)
    return run_each(commands)


def _script(job: Job, chosen: argparse.Namespace) -> str:
    flags = [f"--zone={chosen.zone}", *([f"--project={chosen.project}"] if chosen.project else [])]
    create = [f"--accelerator-type={chosen.type}", f"--runtime-version={chosen.runtime}"]
    given = [each for each in job.arguments if each.startswith("run_dir=")]
    run_dir = [] if given else [f"run_dir={chosen.runs}/{job.name}"]
    unset = " ".join(f"-u {name}" for name in STALE_NAMES)
    # gcloud repeats a command whose connection was lost. In a repeated command `before` equals `attempt`. The command
    # then ends the training and exits with 75, so that the next attempt starts all workers again. `exec` turns the
    # shell into the training, so $$ in rlcls.pid is the training's process id.
    train = (
        f'before=$(cat ~/rlcls.attempt 2>/dev/null); {_STOP}; if [ "$before" = "$attempt" ]; then exit 75; fi; '
        'echo "$attempt" >~/rlcls.attempt; echo $$ >~/rlcls.pid; cd ~/rlcls && '
        f"exec env {unset} {PYTHON} -m rlcls.train {shlex.join([*job.arguments, *run_dir])}"
    )
    unpack = "rm -rf ~/rlcls && mkdir ~/rlcls && tar -xzf ~/rlcls.tar.gz -C ~/rlcls && cd ~/rlcls"
    return _SCRIPT.format(
        name=shlex.quote(job.name),
        flags=shlex.join(flags),
        create=shlex.join([*create, *(["--spot"] if chosen.spot else [])]),
        poll=chosen.poll,
        folder=shlex.quote(str(Path.cwd())),
        install=shlex.quote(f"{unpack} && {{ {chosen.mount}; }} && {install('tpu')}"),
        stop=shlex.quote(_STOP),
        train=shlex.quote(train),
        attempts=chosen.restarts + 1,
        end="true" if chosen.keep else "delete",
    )
