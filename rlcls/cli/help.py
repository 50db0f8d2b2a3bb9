"""The text of `python -m rlcls.train --help`, made from the YAML files and the comments in them."""

from __future__ import annotations

import importlib.resources
import re
from typing import Any

from rlcls.runs.identity import plain

GROUPS = (
    "agent",
    "agent/optimizer",
    "agent/schedule",
    "loss",
    "backbone",
    "env",
    "data",
    "loop",
    "eval",
    "recipe",
)
FLAGS = {
    "--help": "print this text",
    "--config": "print the whole configuration and stop",
    "--config-file": "read options from a YAML file, which those of the command line override",
    "--multirun": "train every combination of values such as seed=0,1,2, one run after another",
}
_EXAMPLES = {
    "": "HL-Gauss on Pong with recipe=fast",
    "loss=mse game=Breakout seed=1": "regression, another game",
    "recipe=paper game=Asterix": "200 million frames, as Farebrother et al. 2024",
    "run_dir=runs/pong steps=1000000": "run again to resume, or with more steps to extend",
    "loss._target_=package.Head +loss.bins=9": "a head of your own",
    "--multirun loss=mse,hlgauss seed=0,1,2": "six runs",
    "--config-file mine.yaml seed=1": "options from a file and from the command line",
}


def choices(group: str) -> list[str]:
    """The names that a configuration group can be given, sorted."""
    folder = importlib.resources.files("rlcls.configs").joinpath(group)
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def render(defaults: dict[str, Any]) -> str:
    """The help text.

    Args:
      defaults: the default value of every option, by its dotted name.
    """
    lines = ["Trains an agent whose values are learnt by classification or regression.", ""]
    lines += ["usage: python -m rlcls.train [flag ...] [name=value ...]", "", "examples:"]
    examples = [(f"python -m rlcls.train {options}".rstrip(), about) for options, about in _EXAMPLES.items()]
    lines += _table(examples)
    lines += ["", "flags:", *_table(list(FLAGS.items()))]
    for group in GROUPS:
        lines += ["", f"{group}= (default {defaults[f'choices.{group}']}):"]
        lines += _table([(name, _opening(f"{group}/{name}.yaml")) for name in choices(group)])
    lines += ["", "options, with their default values:"]
    docs = _docs("config.yaml")
    for group in GROUPS[:-1]:
        path = f"{group}/{defaults[f'choices.{group}']}.yaml"
        # A file for the whole configuration names its sections itself.
        prefix = "" if "# @package _global_" in _read(path) else group.replace("/", ".") + "."
        docs |= {prefix + name: doc for name, doc in _docs(path).items()}
    rows = [
        (f"{name}={plain(defaults[name]).replace(' ', '')}", doc)
        for name, doc in docs.items()
        if name in defaults
    ]
    rows.append(("+evals.NAME._target_=CLASS", docs["evals"]))
    return "\n".join(
        [
            *lines,
            *_table(rows),
            "",
            "--config lists the options of other choices: python -m rlcls.train --config loss=c51",
        ]
    )


def _table(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in rows) + 2
    return [f"  {left:{width}}{right}".rstrip() for left, right in rows]


def _read(path: str) -> list[str]:
    return importlib.resources.files("rlcls.configs").joinpath(path).read_text(encoding="utf-8").splitlines()


def _opening(path: str) -> str:
    """The first comment of a file that is not for Hydra. It says what the file is for."""
    comments = (line[1:].strip() for line in _read(path) if line.startswith("#"))
    return next(comment for comment in comments if not comment.startswith("@"))


def _docs(path: str) -> dict[str, str]:
    """The comment on each option of a file, by the name of the option."""
    docs, section = {}, ""
    for line in _read(path):
        if match := re.fullmatch(r"(\w+):", line):
            section = f"{match[1]}."
        elif match := re.fullmatch(r"( *)(\w+): .*?# (.*)", line):
            docs[f"{section if match[1] else ''}{match[2]}"] = match[3]
    return docs
