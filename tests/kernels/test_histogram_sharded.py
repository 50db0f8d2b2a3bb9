"""The fused cross-entropy under shard_map."""

import subprocess
import sys
from pathlib import Path


def test_sharding_over_rows_and_over_bins_gives_the_same(pytestconfig):
    program = Path(__file__).parent / "sharded.py"
    result = subprocess.run(
        [sys.executable, "-c", program.read_text()], cwd=pytestconfig.rootpath, capture_output=True, text=True
    )
    assert result.stdout == "sharded\n", result.stderr
