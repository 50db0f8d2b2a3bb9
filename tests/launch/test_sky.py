"""SkyPilot accepts a generated task, and the processes of its nodes meet."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from rlcls.launch.__main__ import main

TRAIN = ["agent=dqn", "game=Pong", "mesh.rules=[[layers/1/kernel,[null,model]]]"]
VALIDATE = """
import sys, yaml, sky
from sky.utils import common_utils, schemas
config = yaml.safe_load(open(sys.argv[1]))
common_utils.validate_schema(config, schemas.get_task_schema(), "")
common_utils.validate_schema(config["resources"], schemas.get_resources_schema(), "")
for mount in config.pop("file_mounts").values():  # SkyPilot asks the cloud for the bucket of a whole task
    common_utils.validate_schema(mount, schemas.get_storage_schema(), "")
print(sky.Task.from_yaml_config(config).resources)
"""


def launch(*options, arguments=TRAIN):
    return main(["sky", "--bucket", "gs://me/runs", *options, "--", *arguments])


def task():
    (path,) = Path("launches").glob("*.yaml")
    return yaml.safe_load(path.read_text())


def test_a_task_has_the_values_of_the_options(machine):
    assert launch("--accelerators", "H100:8", "--nodes", "2", "--spot", "--sky=--infra=gcp") == 0
    command = ["jobs", "launch", "--yes", "--name", "rlcls-dqn-pong", "--infra=gcp"]
    assert machine.calls("sky") == [[*command, "launches/rlcls-dqn-pong.sky.yaml"]]
    made = task()
    assert made["num_nodes"] == 2 and made["file_mounts"] == {
        "/runs": {"source": "gs://me/runs", "mode": "MOUNT"}
    }
    resources = made["resources"]
    assert resources["accelerators"] == "H100:8" and resources["use_spot"] is True
    assert 75 in resources["job_recovery"]["recover_on_exit_codes"]
    assert not {1, 2, 143} & set(resources["job_recovery"]["recover_on_exit_codes"])
    assert ".[atari,cuda]" in made["setup"]


def test_the_nodes_of_a_task_meet(machine):
    machine.plan("done")
    assert launch("--accelerators", "tpu-v5litepod-16") == 0
    running = []
    for index in range(2):
        place = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1", "SKYPILOT_NUM_NODES": "2"}
        place |= {"SKYPILOT_NODE_RANK": str(index), "HOME": str(machine.folder / f"node-{index}")}
        environment = os.environ | place | {"MEGASCALE_NUM_SLICES": "7"}
        for step in ("setup", "run"):
            process = subprocess.Popen(["bash", "-c", task()[step]], env=environment)
            if step == "setup":
                assert process.wait() == 0
        running.append(process)
    assert [process.wait() for process in running] == [0, 0]
    for index in range(2):
        (begun,) = machine.trained(index)
        assert begun["place"] == ["127.0.0.1:29417", 2, index, 600]
        assert begun["arguments"][:4] == [*TRAIN, "run_dir=/runs/rlcls-dqn-pong"]
        assert "MEGASCALE_NUM_SLICES" not in begun["variables"]
    assert machine.calls("uv")[1][-1] == ".[atari,tpu]"


def test_each_run_of_a_sweep_is_a_job(machine):
    assert launch("--accelerators", "H100:1", arguments=["--multirun", "game=Pong", "seed=0,1"]) == 0
    assert [call[-1] for call in machine.calls("sky")] == [
        "launches/rlcls-pong-0.sky.yaml",
        "launches/rlcls-pong-1.sky.yaml",
    ]


# SkyPilot pins versions of its dependencies, so it needs an environment of its own, whose `sky` is on PATH.
SKY = shutil.which("sky")


@pytest.mark.skipif(SKY is None, reason="SkyPilot is not installed")
@pytest.mark.parametrize("accelerators", ["H100:8", "tpu-v5litepod-16", "A100-80GB:1"])
def test_skypilot_accepts_the_task(machine, accelerators):
    assert launch("--accelerators", accelerators, "--nodes", "2", "--spot") == 0
    python = Path(SKY).read_text().splitlines()[0].removeprefix("#!")
    command = [python, "-c", VALIDATE, "launches/rlcls-dqn-pong.sky.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert accelerators.partition(":")[0] in done.stdout
