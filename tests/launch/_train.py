"""Replaces rlcls.train: meets the other processes, and follows the plan for its attempt.

$STAND_IN/plan.json has an entry for each attempt: "done", "mistake", "wait" (for SIGTERM), or "die N", which kills
process N. $STAND_IN/train-INDEX.jsonl gets a line for each attempt of a process.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from rlcls._errors import UserError, command
from rlcls.distributed import joined
from rlcls.distributed.joining import place

FOLDER = Path(os.environ["STAND_IN"])


def is_training(pid):
    try:
        return b"_train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def main(argv):
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    options = {
        name.removeprefix("distributed."): int(value) if value.isdecimal() else value
        for name, _, value in (each.partition("=") for each in argv)
        if name.startswith("distributed.")
    }
    where = place(options, os.environ)
    index = where.process if where else 0
    record = FOLDER / f"train-{index}.jsonl"
    before = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    attempt = len(before)
    line = {"place": where, "arguments": argv, "variables": dict(os.environ), "pid": os.getpid()}
    line["earlier ones live"] = any(is_training(each["pid"]) for each in before)
    with record.open("a") as file:
        file.write(json.dumps(line) + "\n")
    plan = json.loads((FOLDER / "plan.json").read_text())[attempt]
    with joined(options, {}, runtime=False) as hosts:
        hosts.gather(None)
        print(f"{plan} on process {index}", flush=True)
        if plan == f"die {index}":
            os.kill(os.getpid(), signal.SIGKILL)
        if plan == "mistake" and index == hosts.count - 1:
            raise UserError("the disk is full")
        (FOLDER / f"begun-{index}-{attempt}").touch()
        while plan != "done" and not hosts.stops(asked=bool(received)):
            time.sleep(0.01)
    return 0 if plan == "done" else 143


sys.exit(command(main, sys.argv[3:]))  # after: -m rlcls.train
