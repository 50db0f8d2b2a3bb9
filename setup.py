"""Maps the top-level folders into the one import root `rlcls`; the rest of the build is in pyproject.toml.

The list of packages is computed: a hand-written one silently drops the next sub-package from the wheel.
"""

from setuptools import find_packages, setup

FOLDERS = ("agents", "configs", "envs", "kernels", "launch")  # as in rlcls/__init__.py: tested

packages = find_packages(include=["rlcls", "rlcls.*", *FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
mapping = {
    package if package.split(".")[0] == "rlcls" else f"rlcls.{package}": package.replace(".", "/")
    for package in packages
}

setup(packages=sorted(mapping), package_dir=mapping, package_data={"": ["*.yaml", "py.typed"]})
