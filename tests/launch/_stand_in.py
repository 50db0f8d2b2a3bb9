"""Replaces gcloud, uv, sbatch, srun, scontrol and sky: records its arguments, and does the work on this machine.

$STAND_IN/calls.jsonl gets a line for each call. A TPU slice has two workers, whose home folders are in $STAND_IN.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN"])
STATE = FOLDER / "slice"
WORKERS = [FOLDER / "worker-0", FOLDER / "worker-1"]


def gcloud(arguments):
    assert arguments[:2] == ["compute", "tpus"], arguments
    about, what, *rest = arguments[2:]
    return {
        "queued-resources create": create,
        "queued-resources describe": describe,
        "queued-resources delete": delete,
        "tpu-vm scp": scp,
        "tpu-vm ssh": ssh,
    }[f"{about} {what}"](rest)


def create(rest):
    assert not STATE.exists()
    STATE.write_text("WAITING_FOR_RESOURCES\nACTIVE")
    return 0


def describe(rest):
    if not STATE.exists():
        return 1
    now, *later = STATE.read_text().splitlines()
    print(now)
    STATE.write_text("\n".join(later or [now]))
    return 0


def delete(rest):
    STATE.unlink()
    for worker in WORKERS:
        shutil.rmtree(worker, ignore_errors=True)
    return 0


def scp(rest):
    source, target, *_ = rest
    for worker in WORKERS:
        worker.mkdir(exist_ok=True)
        shutil.copy(source, worker / target.partition(":")[2])
    return 0


def ssh(rest):
    (text,) = (each.removeprefix("--command=") for each in rest if each.startswith("--command="))
    running = []
    for index, worker in enumerate(WORKERS):
        place = {"TPU_WORKER_ID": str(index), "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1"}
        environment = os.environ | place | {"HOME": str(worker), "MEGASCALE_NUM_SLICES": "7"}
        running.append(subprocess.Popen(["bash", "-c", text], env=environment, start_new_session=True))
    if "rlcls.train" in text and "exec" in text and (FOLDER / "lose").exists():
        (FOLDER / "lose").unlink()  # the connection ends, and the training continues
        wait_for("begun-0-0", "begun-1-0")
        return 255
    if "rlcls.train" in text and "exec" in text and (FOLDER / "reconnect").exists():
        (
            FOLDER / "reconnect"
        ).unlink()  # like gcloud, it connects again to worker 0, which alone lost its connection
        wait_for("begun-0-0", "begun-1-0")
        environment = os.environ | {"HOME": str(WORKERS[0])}
        running[0] = subprocess.Popen(["bash", "-c", text], env=environment, start_new_session=True)
    codes = [process.wait() for process in running]
    codes = [128 - code if code < 0 else code for code in codes]
    if any(codes) and (FOLDER / "preempt").exists():
        (FOLDER / "preempt").unlink()
        STATE.write_text("SUSPENDED")
    return next((code for code in codes if code), 0)


def uv(arguments):
    if arguments[0] == "venv":
        python = Path(arguments[-1]) / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.unlink(missing_ok=True)
        python.symlink_to(FOLDER / "bin" / "train")
    return 0


def sbatch(arguments):
    text = Path(arguments[-1]).read_text()
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, flags=re.M))
    assert directives["signal"].startswith("B:USR1@")
    tasks = int(directives["nodes"]) * int(directives["ntasks-per-node"])
    for attempt in range(5):
        job = {"SLURM_JOB_ID": "100", "SLURM_RESTART_COUNT": str(attempt), "SLURM_NTASKS": str(tasks)}
        output = directives["output"].replace("%j", "100")
        with open(output, "a") as file:
            batch = subprocess.Popen(
                ["bash", arguments[-1]],
                env=os.environ | job,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        if (FOLDER / "warn").exists():
            (FOLDER / "warn").unlink()
            wait_for(*(f"begun-{index}-{attempt}" for index in range(tasks)))
            batch.send_signal(signal.SIGUSR1)
        if (FOLDER / "cancel").exists():
            (FOLDER / "cancel").unlink()
            wait_for(*(f"begun-{index}-{attempt}" for index in range(tasks)))
            for index in range(tasks):  # scancel signals the tasks of a step
                lines = (FOLDER / f"train-{index}.jsonl").read_text().splitlines()
                os.kill(json.loads(lines[-1])["pid"], signal.SIGTERM)
        batch.wait()
        if not (FOLDER / "requeue").exists():
            break
        (FOLDER / "requeue").unlink()
    print("Submitted batch job 100")
    return 0


def srun(arguments):
    while arguments[0].startswith("-"):
        arguments.pop(0)
    running = []
    for index in range(int(os.environ["SLURM_NTASKS"])):
        step = {"SLURM_PROCID": str(index), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"}
        running.append(subprocess.Popen(arguments, env=os.environ | step))

    def pass_on(number, frame):
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    codes = [process.wait() for process in running]
    return max(128 - code if code < 0 else code for code in codes)


def scontrol(arguments):
    assert arguments == ["requeue", os.environ["SLURM_JOB_ID"]]
    (FOLDER / "requeue").touch()
    return 0


def sky(arguments):
    return 0


def wait_for(*names):
    end = time.monotonic() + 30
    while not all((FOLDER / name).exists() for name in names):
        assert time.monotonic() < end, names
        time.sleep(0.05)


name, *arguments = sys.argv[1:]
with (FOLDER / "calls.jsonl").open("a") as file:
    file.write(json.dumps([name, *arguments]) + "\n")
sys.exit(globals()[name](arguments))
