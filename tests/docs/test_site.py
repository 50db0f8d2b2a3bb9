"""The site shows every public name, option and page; `.ci/run` builds it, which checks links and headings."""

import importlib
import importlib.util
import inspect
import re
import types
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "api"
PACKAGES = (
    *("agents", "datasets", "distributed", "envs", "evaluation", "heads", "kernels"),
    *("networks", "plotting", "replay", "runs", "training"),
)
# Modules without `__all__`, whose functions and classes are public.
MODULES = ("diagnostics", "spec", "statistics", "trained", "transition")


def documented() -> list[str]:
    """What the pages of the API reference describe, by full names."""
    return [
        name
        for page in API.glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), flags=re.M)
    ]


def sources() -> list[Path]:
    folders = (ROOT / folder for folder in ("rlcls", "agents", "envs", "kernels", "launch"))
    return [path for folder in folders if folder.exists() for path in folder.rglob("*.py")]


def test_no_package_with_public_names_is_left_out():
    listing = {
        path.parent.name for path in sources() if re.search(r"^__all__ = ", path.read_text(), flags=re.M)
    }
    assert listing == set(PACKAGES), "a package with __all__ stands in PACKAGES and has a page in docs/api/"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_api_reference_has_every_public_name(package):
    names = importlib.import_module(f"rlcls.{package}").__all__
    missing = {f"rlcls.{package}.{name}" for name in names} - set(documented())
    assert not missing, f"add '::: NAME' to docs/api/{package}.md for {sorted(missing)}"


@pytest.mark.parametrize("module", MODULES)
def test_the_api_reference_has_every_module_of_functions(module):
    assert f"rlcls.{module}" in documented()
    members = vars(importlib.import_module(f"rlcls.{module}"))
    own = [value for value in members.values() if getattr(value, "__module__", None) == f"rlcls.{module}"]
    public = [
        value for value in own if isinstance(value, (type, types.FunctionType)) and value.__name__[0] != "_"
    ]
    assert public and all(inspect.getdoc(value) for value in public)


def test_the_api_reference_has_everything_that_a_configuration_names():
    named = {
        match.removesuffix(".of")
        for path in (ROOT / "configs").rglob("*.yaml")
        for match in re.findall(r"_target_: (rlcls\.[\w.]+)", path.read_text())
    }
    assert named and named <= set(documented())


def test_the_api_reference_has_each_name_once_and_no_other():
    names = documented()
    assert len(names) == len(set(names))
    for name in names:
        parent, _, own = name.rpartition(".")
        found = (
            importlib.import_module(name)
            if parent == "rlcls"
            else getattr(importlib.import_module(parent), own)
        )
        assert found is not None


def test_every_page_stands_in_the_navigation():
    navigation = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    listed = set(re.findall(r"[\w/.-]+\.md", navigation))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= listed, f"add {sorted(pages - listed)} to nav in mkdocs.yml"


def test_the_option_reference_is_what_its_script_writes():
    spec = importlib.util.spec_from_file_location("options", ROOT / "docs" / "site" / "options.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text() == script.page(), "run python docs/site/options.py"


def test_the_command_takes_every_option_that_the_reference_adds():
    from rlcls.cli.compose import compose

    sections = re.split(r"^### `(.+)`$", (ROOT / "docs" / "options.md").read_text(), flags=re.M)[1:]
    for choice, section in zip(sections[::2], sections[1::2], strict=True):
        if added := re.search(r"^Also: (.+)\.$", section, flags=re.M):
            compose([choice, *re.findall(r"`(.+?)`", added[1])])
