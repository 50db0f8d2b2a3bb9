"""The benchmark of meshes reports only what was compiled for the target in question."""

import json
import types

import pytest


@pytest.fixture
def scaling(pytestconfig, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    import scaling

    monkeypatch.setattr(scaling._report, "ROOT", tmp_path)
    monkeypatch.setattr(scaling._report, "machine", lambda: {"revision": "none"})
    monkeypatch.setattr(scaling._report, "environment", dict)
    return scaling


def test_a_compiler_that_crashes_leaves_no_earlier_report_to_read(scaling, monkeypatch):
    def run(command, **options):
        (out,) = (each.partition("=")[2] for each in command if each.startswith("out="))
        if "target=v5e:2x2" in command:
            with open(out, "w") as file:
                json.dump({"devices": 4}, file)
        return types.SimpleNamespace(returncode=1)  # of an update that does not fit, and of a traceback

    monkeypatch.setattr(scaling.subprocess, "run", run)
    assert scaling.compiled("v5e:2x2", []) == {"devices": 4, "revision": "none"}
    with pytest.raises(FileNotFoundError):
        scaling.compiled("v5e:4x4", [])
