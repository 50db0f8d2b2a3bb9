"""Makes Markdown of docstrings that are plain text: doctests become code, and asterisks stay asterisks."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^( *)>>> .*?(?=\n *\n|\Z)", flags=re.M | re.S)
# Code that stays as it is: indented blocks and backticks.
_CODE = re.compile(r"(^ {4,}.*$|`[^`\n]+`|```.*?```)", flags=re.M | re.S)


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    fenced = _DOCTEST.sub(lambda block: f"{block[1]}```pycon\n{block[0]}\n{block[1]}```", docstring)
    parts = re.split(r"(^ *```pycon.*?```$)", fenced, flags=re.M | re.S)
    return "".join(part if "```pycon" in part else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    parts = _CODE.split(text)
    return "".join(
        part if number % 2 else re.sub(r"\*(?! )", r"\\*", part) for number, part in enumerate(parts)
    )
