"""A wheel and an sdist of this checkout, and environments that hold exactly what was asked for."""

import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import types
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FOLDERS = ("rlcls", "agents", "configs", "envs", "kernels", "launch")


def _run(*command, cwd, env=None):
    """The command's output; where it fails, what it said is in the failure."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=kept | {"JAX_PLATFORMS": "cpu"} | (env or {}),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def run():
    return _run


@pytest.fixture(scope="session")
def files():
    """What of the checkout belongs in a wheel: paths in the checkout by their paths in the wheel."""
    return {
        str(path.relative_to(ROOT) if top == "rlcls" else "rlcls" / path.relative_to(ROOT)): path
        for top in FOLDERS
        for path in (ROOT / top).rglob("*")
        if path.suffix in (".py", ".yaml", ".typed")
    }


@pytest.fixture(scope="session")
def modules(files):
    """The import names of all modules."""
    names = (file.removesuffix(".py").removesuffix("/__init__") for file in files if file.endswith(".py"))
    return sorted(name.replace("/", ".") for name in names)


@pytest.fixture(scope="session")
def copy_of_checkout(tmp_path_factory):
    """The checkout without what git ignores: a stale build/ would end up in the wheel."""
    place = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "__pycache__", "*.egg-info")
    for entry in sorted(ROOT.iterdir()):
        if entry.name in (*FOLDERS, "tests"):
            shutil.copytree(entry, place / entry.name, ignore=ignore)
        elif entry.is_file():
            shutil.copy2(entry, place)
    return place


@pytest.fixture(scope="session")
def distributions(copy_of_checkout, tmp_path_factory):
    """Paths `sdist` and `wheel`, the wheel built from the sdist, as an index would hold them."""
    out = tmp_path_factory.mktemp("dist")
    new_enough = int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    isolation = ["--no-isolation"] if new_enough else []
    _run(sys.executable, "-m", "build", *isolation, "-o", out, copy_of_checkout, cwd=out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return types.SimpleNamespace(sdist=sdist, wheel=wheel)


@pytest.fixture(scope="session")
def installed(distributions, tmp_path_factory):
    """A folder to put on PYTHONPATH that holds the wheel's contents, metadata included."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(distributions.wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def environment(installed, tmp_path_factory):
    """environment(*extras, wheel=True) -> the Python of an environment with the wheel and what those declare.

    It is linked together from what is installed here, so that a dependency which the wheel forgets to declare
    is missing there, and no registry is asked.
    """

    @functools.cache
    def make(*extras, wheel=True):
        folder = tmp_path_factory.mktemp("-".join(["core", *extras]))
        venv.create(folder, with_pip=False, symlinks=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        own = importlib.metadata.PathDistribution(next(installed.glob("*.dist-info")))
        _link_requirements(own, frozenset(extras), packages, own, set())
        for entry in installed.iterdir() if wheel else ():
            os.symlink(entry, packages / entry.name)
        return folder / "bin" / "python"

    return make


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _link_requirements(distribution, extras, packages, own, done):
    """Links into the folder `packages` all that a distribution requires, with these of its extras."""
    for text in distribution.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        key = _normal(requirement.name), frozenset(requirement.extras)
        if key in done:
            continue
        done.add(key)
        ours = key[0] == "rlcls"  # an extra of ours that includes another
        needed = own if ours else importlib.metadata.distribution(requirement.name)
        if not ours:
            _link(needed, packages)
        _link_requirements(needed, key[1], packages, own, done)


def _link(distribution, packages):
    names = (distribution.read_text("top_level.txt") or "").split()
    if (
        distribution.read_text("installed-files.txt") is not None
    ):  # by setup.py, whose list Python 3.11 does not read
        for place in (
            Path(distribution.locate_file(each)) for name in names for each in (name, f"{name}.py")
        ):
            if place.exists() and not (packages / place.name).exists():
                os.symlink(place, packages / place.name)
        return
    for file in distribution.files or []:
        target = packages / file
        if ".." not in file.parts and "__pycache__" not in file.parts and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(distribution.locate_file(file), target)
