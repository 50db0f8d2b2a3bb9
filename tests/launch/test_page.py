"""The launches in the documents are accepted."""

import re
import shlex
from pathlib import Path

import pytest

from rlcls.launch.__main__ import main

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = [
    shlex.split(command)
    for page in sorted(DOCS.glob("*.md"))
    for command in re.findall(
        r"^    python -m rlcls\.launch (.+)", page.read_text().replace("\\\n", " "), flags=re.M
    )
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_launch_in_the_documents_is_accepted(machine, command):
    assert main([command[0], "--dry-run", *command[1:]]) == 0


def test_the_page_has_a_launch_for_each_place():
    assert {command[0] for command in COMMANDS} == {"local", "slurm", "tpu", "sky"}
