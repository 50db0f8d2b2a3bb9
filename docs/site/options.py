"""Writes docs/options.md from the comments in configs/ and the constructors: python docs/site/options.py"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

from rlcls import heads
from rlcls.cli.compose import FIXED
from rlcls.cli.help import FLAGS, GROUPS, choices
from rlcls.runs.identity import plain

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "options.md"
ABOUT = {
    "agent": "What learns.",
    "agent/optimizer": "How gradients become steps. The options are optax's.",
    "agent/schedule": "How the learning rate changes during the run. The options are optax's.",
    "loss": "The value head.",
    "backbone": "What turns observations into features.",
    "env": "What is played.",
    "data": "Recorded experience, for `loop=offline`.",
    "loop": "How data and updates take turns.",
    "eval": "How the agent is scored.",
    "recipe": "Values of many options together.",
}
# Arguments that rlcls.train passes itself.
_PASSED = {
    "agent",
    "data",
    "diagnostics_batch_size",
    "diagnostics_every",
    "env",
    "exploration",
    "head",
    "log_every",
    "placement",
}
_PASSED |= {
    "make_backbone",
    "num_envs",
    "observation_shape",
    "optimizer",
    "replay",
    "rngs",
    "schedule",
    "seed",
    "spec",
}
_OPENING = """\
# Options

Every option of `python -m rlcls.train`, from the comments of the files in `configs/` and the constructors that the
options are passed to. `???` is a value that the recipe, the loop or the command line must give, `${returns.low}` the
value of another option. `--config` prints what a command line comes to.

    python -m rlcls.train agent=cql loss=two_hot agent.alpha=0.5 --config

An option with a plus is not in the file and is added: `+loss.label_smoothing=0.1`. `GROUP._target_=package.Class` puts
a class of your own in the place of a part: see [plug in your own](plug-in.md).
"""


def page() -> str:
    """The text of docs/options.md."""
    parts = [
        _OPENING,
        "## Flags\n",
        _table("flag", [(f"`{flag}`", "", about) for flag, about in FLAGS.items()]),
    ]
    parts += ["## Every run\n", _options("config.yaml", "")]
    for group in GROUPS:
        parts.append(f"## `{group}=`\n\n{ABOUT[group]}\n")
        if group == "recipe":
            files = [f"configs/recipe/{name}.yaml" for name in choices(group)]
            rows = [(f"[`{Path(file).stem}`](../{file})", "", _comment(ROOT / file)) for file in files]
            parts.append(_table("recipe", rows))
            continue
        for choice in choices(group):
            parts += [f"### `{group}={choice}`\n", _choice(group, choice)]
    return "\n".join(parts).rstrip() + "\n"


def _choice(group: str, choice: str) -> str:
    path = f"{group}/{choice}.yaml"
    text = (ROOT / "configs" / path).read_text(encoding="utf-8")
    prefix = "" if "# @package _global_" in text else group.replace("/", ".") + "."
    config = yaml.safe_load(text)
    comment = _comment(ROOT / "configs" / path)
    parts = [f"{comment[0].upper()}{comment[1:]}.\n"]
    if options := _options(path, prefix):
        parts.append(options)
    if added := list(_added(config, prefix)):
        parts.append(f"Also: {', '.join(added)}.\n")
    targets = [section["_target_"] for section in _sections(config) if section["_target_"]]
    if links := [_link(target) for target in targets if target.startswith("rlcls.")]:
        parts.append(f"Passed to {', '.join(links)}.\n")
    return "\n".join(parts)


def _options(path: str, prefix: str) -> str:
    rows, section = [], ""
    for line in (ROOT / "configs" / path).read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(\w+):( *#.*)?$", line):
            section = f"{match[1]}."
        elif (match := re.fullmatch(r"( *)(\w+): (.*?)(?: +# (.*))?", line)) and not match[2].startswith("_"):
            name = f"{prefix}{section if match[1] else ''}{match[2]}"
            if name not in FIXED:
                rows.append((f"`{name}`", f"`{match[3]}`", match[4] or ""))
    return _table("option", rows) if rows else ""


def _added(config: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Options that a constructor takes and the file does not have, with their default values."""
    for section in _sections(config):
        target = section["_target_"]
        if target and target.startswith("rlcls."):
            for name, default in _parameters(target, section).items():
                if name not in section and name not in _PASSED:
                    yield f"`+{prefix}{name}={plain(default)}`"


def _parameters(target: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor that have a default value."""
    if target == "rlcls.heads.make":
        kind = heads.BY_NAME[section["name"]]
        kinds = [kind, heads.Support] if issubclass(kind, heads.CategoricalHead) else [kind]
        fields = [field for each in kinds for field in dataclasses.fields(each)]
        # The default of `on` depends on the head.
        return {
            field.name: field.default
            for field in fields
            if field.default is not dataclasses.MISSING and field.name != "on"
        }
    constructor = get_object(target)
    parameters = inspect.signature(
        constructor.__init__ if inspect.isclass(constructor) else constructor
    ).parameters
    return {name: each.default for name, each in parameters.items() if each.default is not each.empty}


def _sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a file that are passed to a class."""
    return [each for each in (config, *config.values()) if isinstance(each, dict) and "_target_" in each]


def _link(target: str) -> str:
    """A link to the API reference, whose pages have the names of the packages."""
    name = target.removesuffix(".of")
    return f"[`{target}`](api/{target.split('.')[1]}.md#{name})"


def _comment(path: Path) -> str:
    """The first comment of a file that is not Hydra's: it says what the file is."""
    comments = (
        line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    return next(comment for comment in comments if not comment.startswith("@"))


def _table(first: str, rows: list[tuple[str, str, str]]) -> str:
    values = any(value for _, value, _ in rows)
    lines = [
        f"| {first} | value | is |" if values else f"| {first} | is |",
        "|---|---|---|" if values else "|---|---|",
    ]
    for cells in rows:
        kept = [cell.replace("|", "\\|").replace("**", "\\*\\*").replace("<", "\\<") for cell in cells]
        lines.append(f"| {' | '.join(kept if values else (kept[0], kept[2]))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
