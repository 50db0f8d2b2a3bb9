"""From a bare checkout, an editable install, and an installed wheel with the checkout as working folder."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("agents", "configs", "envs", "kernels")

# Nothing of ours but the one root may become importable, from the checkout or beside an installed wheel.
SCRIPT = """
import importlib, pathlib, sys
import rlcls
for folder in sys.argv[1:]:
    importlib.import_module("rlcls." + folder)
for name in ("rlcls", "tests", "setup", "docs", "benchmarks", "no_such"):
    try:
        importlib.import_module("rlcls." + name)
    except ImportError:
        continue
    sys.exit("rlcls." + name + " was imported")
import rlcls.heads, rlcls.configs.recipe.paper
print(pathlib.Path(rlcls.__file__).parent)
print(pathlib.Path(rlcls.configs.__file__).parent)
"""


def test_from_a_bare_checkout(environment, run, tmp_path):
    # An environment that has the dependencies, and a path on which the checkout comes before the wheel.
    for cwd, env in ((ROOT, {}), (tmp_path, {"PYTHONPATH": str(ROOT)})):
        places = run(environment("train"), "-c", SCRIPT, *FOLDERS, cwd=cwd, env=env)
        assert places.split() == [str(ROOT / "rlcls"), str(ROOT / "configs")]


def test_from_an_installed_wheel_with_the_checkout_as_the_working_directory(environment, run):
    python = environment("train")
    # -P is what a console script does: the working directory is not on the path, and the wheel is taken.
    package, configs = run(python, "-P", "-c", SCRIPT, *FOLDERS, cwd=ROOT).split()
    assert Path(package).is_relative_to(python.parents[1]) and configs == f"{package}/configs"
    # `python -m rlcls.train` there takes the checkout, and all of it.
    assert run(python, "-c", SCRIPT, *FOLDERS, cwd=ROOT).split() == [
        str(ROOT / "rlcls"),
        str(ROOT / "configs"),
    ]


def test_from_an_installed_wheel_beside_other_peoples_folders(installed, run, tmp_path):
    for name in ("agents", "docs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "rlcls").symlink_to(installed / "rlcls")
    script = "import rlcls, rlcls.agents; print(rlcls.__path__, rlcls.agents.__file__)"
    where = run(sys.executable, "-c", script, cwd=tmp_path)
    assert str(tmp_path / "agents") not in where


@pytest.mark.slow
def test_from_an_editable_install(copy_of_checkout, environment, run, tmp_path):
    python = environment("train", wheel=False)
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "-q", "--no-deps", "-e", copy_of_checkout, cwd=tmp_path)
    places = run(python, "-c", SCRIPT, *FOLDERS, cwd=tmp_path)
    assert places.split() == [str(copy_of_checkout / "rlcls"), str(copy_of_checkout / "configs")]


def test_the_heads_import_no_framework_and_no_emulator(run):
    script = """
import sys

class Absent:
    names = "flax haiku ale_py gymnasium hydra optax orbax rich matplotlib imageio tensorboardX".split()
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Absent())
import rlcls.heads, rlcls.kernels
import numpy as np
head = rlcls.heads.make("hlgauss", vmin=-10, vmax=10, num_bins=51)
print(head.loss(np.zeros(51), 1.0).shape, [name for name in Absent.names if name in sys.modules])
"""
    assert run(sys.executable, "-c", script, cwd=ROOT).strip() == "() []"
