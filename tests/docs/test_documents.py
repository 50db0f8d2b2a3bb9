"""What README and docs tell a user to type works, and what they point to is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONS = (
    "agent",
    "agent.optimizer",
    "agent.schedule",
    "replay",
    "training",
    "exploration",
    "eval",
    "checkpoint",
)
OPTIONS += ("logging", "loss", "mesh")
# What shortens a training command to seconds.
SHORT = [
    "steps=400",
    "env.num_envs=4",
    "replay.min_size=200",
    "replay.capacity=1000",
    "training.batch_size=4",
    "eval.episodes=1",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def commands() -> list[str]:
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def run(arguments: list[str], cwd: Path) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    # Empty XLA_FLAGS compile as for a user, with every optimisation.
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def names_of_rows(text: str) -> list[str]:
    phases = ("starting", "compiling")  # lines where these take long
    lines = (line for line in text.splitlines() if not line.startswith(phases))
    return [line.partition("  ")[0] for line in lines]


def test_the_readmes_commands_work_one_after_another(tmp_path):
    """Those that install or test are run by .ci/run; the others here, with a short budget."""
    seen = []
    for command in commands():
        words = shlex.split(command)
        if words[0] != "python":
            assert words[0] in ("pip", "pytest"), command
            continue
        module = words[2].removeprefix("rlcls.")
        seen.append(module)
        arguments = words[3:]
        if module == "train":
            arguments += SHORT
        else:  # the folder is named after the configuration, which the short budget changes
            (made,) = (tmp_path / "runs").iterdir()
            named = re.compile(r"runs/(\*|[^ ]*)")
            arguments = [named.sub(f"runs/{made.name}", argument) for argument in arguments]
            arguments = [re.sub(r"eval.episodes=\d+", "eval.episodes=1", argument) for argument in arguments]
        shown = run(["-m", words[2], *arguments], tmp_path)
        if module == "train":  # the header, and a line of progress, name what the README says they do
            assert names_of_rows(shown)[:9] == names_of_rows(blocks(ROOT / "README.md", "text")[0])[:9]
            promised = blocks(ROOT / "README.md", "text")[0].splitlines()[-1].split("  ")
            made_good = next(line for line in shown.splitlines() if "agent steps/s" in line).split("  ")
            assert [re.sub(r"[\d.:,-]+", "", part).strip() for part in promised[1:]] == [
                re.sub(r"[\d.:,-]+", "", part).strip() for part in made_good[1:]
            ]
    assert seen == ["train", "evaluate", "plot"]
    (made,) = (tmp_path / "runs").iterdir()
    assert (made / "learning_curve.png").stat().st_size > 10_000
    assert next((made / "videos").iterdir()).stat().st_size > 10_000


def test_the_run_folder_that_the_readme_names_is_that_of_its_command():
    from rlcls.cli import run_config
    from rlcls.cli.compose import compose

    command = next(shlex.split(line)[3:] for line in commands() if "rlcls.train" in line)
    named = set(re.findall(r"runs/[\w-]+", (ROOT / "README.md").read_text()))
    assert named == {str(run_config.run_dir(compose(command), "Pong"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_documents_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a block may write a file
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names_in_tables_exist(page):
    for path, names in re.findall(r"`([\w/]+\.py): ([\w., ]+)`", page.read_text()):
        text = (ROOT / path).read_text()
        for name in names.split(", "):
            assert re.search(rf"\b{name.split('.')[-1]}\b", text), f"{path}: {name}"


def test_the_options_that_the_documents_name_are_there():
    from rlcls.cli.compose import compose
    from rlcls.cli.help import choices

    known = [compose([f"agent={agent}"]) for agent in choices("agent")]
    known.append(compose(["env=minatar", "game=Breakout"]))
    for page in PAGES:
        for option in re.findall(r"`((?:\w+\.)+\w+)=", page.read_text()):
            section, name = option.rsplit(".", 1)
            if section in OPTIONS and not name.startswith("_"):
                sections = [OmegaConf.select(config, section) or {} for config in known]
                assert any(name in options for options in sections), option


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_training_command_of_the_documents_is_accepted(page):
    """Whatever classes of one's own it names: tests/docs/test_plug_in_page.py runs those."""
    from rlcls.cli.compose import compose, expand, split_flags

    text = page.read_text().replace("\\\n", " ")  # a backslash continues the line
    for command in re.findall(r"python -m rlcls\.train ([^`\n#]+)", text):
        flags, arguments = split_flags(shlex.split(command))
        (expand if "--multirun" in flags else compose)(arguments)
