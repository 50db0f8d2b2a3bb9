"""The benchmark of encoding runs, and finds that portable histograms have equal bits."""

import json
import os
import subprocess
import sys


def test_histograms_of_numpy_against_those_of_a_compiled_program(pytestconfig, tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/encoding.py", "--lengths", "60", "--out", str(tmp_path)],
        cwd=pytestconfig.rootpath,
        env=os.environ | {"PYTHONPATH": str(pytestconfig.rootpath), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "encoding.json").read_text())
    assert data["rows"] == 60 * 61
    for cell in data["cells"]:
        assert cell["differing"] == 0 or cell["function"] == "head.encode"
        name = f"| `{cell['function']}`, `{cell['target']}` | {cell['differing']:,} |"
        assert name in (tmp_path / "encoding.md").read_text()
