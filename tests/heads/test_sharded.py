"""Heads on several devices, under shard_map and under a jit that divides the batch by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlcls import heads


@pytest.mark.slow
def test_every_head_gives_the_same_on_four_devices_without_communication(pytestconfig):
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("_sharded.py")],
        cwd=pytestconfig.rootpath,
        env=os.environ
        | {"PYTHONPATH": str(pytestconfig.rootpath), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == set(heads.BY_NAME)
