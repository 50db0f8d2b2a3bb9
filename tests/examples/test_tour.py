"""The notebook runs from top to bottom and gives the stated results."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

TOUR = Path(__file__).parents[2] / "examples" / "tour.ipynb"
CELLS = json.loads(TOUR.read_text())["cells"]


def test_the_notebook_is_stored_with_its_outputs_and_is_small():
    assert TOUR.stat().st_size < 200_000
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert not any(output["output_type"] == "error" for output in cell["outputs"])
    assert (
        sum("image/png" in output.get("data", {}) for cell in CELLS for output in cell.get("outputs", []))
        == 3
    )


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            source = re.sub(r"STEPS = 20_000", "STEPS = 2_000", "".join(cell["source"]))
            exec(compile(source, str(TOUR), "exec"), scope)
            plt.close("all")
    assert np.shape(scope["agent"].q_values(scope["acting"], scope["upright"])) == (1, 2)
    assert sum(row["kind"] == "eval" for row in scope["run"].rows) == 4
    learnt = re.search(r"learnt (.*)", capsys.readouterr().out)[1]
    np.testing.assert_allclose(json.loads(learnt), [[0.5], [1.0]], atol=0.05)
