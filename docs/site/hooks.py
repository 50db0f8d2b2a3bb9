"""What mkdocs does beyond its configuration: the site shows files of the repository that docs/ links to.

Each such file takes its path in the repository as its path on the site, and links are rewritten to it. The README
becomes the first page; Python files, configurations and notebooks become pages. mkdocstrings reads the sources of
`rlcls` from build/docs/, where `agents`, `envs` and `kernels` stand inside the package as they do in a wheel.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
FIRST_PAGE = "README.md"
# Pages of the navigation that do not stand in docs/.
OTHER_PAGES = (
    FIRST_PAGE,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CODE_OF_CONDUCT.md",
    "examples/tour.ipynb",
)
_LANGUAGES = {".py": "python", ".yaml": "yaml"}  # of files that become pages
# The target of a link or picture in Markdown, without its fragment.
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_startup(command: str, dirty: bool) -> None:
    sources = ROOT / "build" / "docs"
    shutil.rmtree(sources, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rlcls", sources / "rlcls", ignore=ignored)
    for folder in ("agents", "envs", "kernels", "launch"):
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, sources / "rlcls" / folder, ignore=ignored)


def on_files(files: Files, config: Any) -> Files:
    paths = [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")] + list(OTHER_PAGES)
    seen = set(paths)
    for path in paths:  # grows while it is read: a page that is linked to may link to others
        if not path.startswith("docs/"):
            files.append(_file(path, config))
        for target in _links(path):
            if target not in seen and (ROOT / target).is_file():
                seen.add(target)
                if not target.startswith("docs/"):
                    paths.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    path, here = _repository_path(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        return posixpath.relpath(_site_path(target), here or ".")

    return _outside_code(markdown, lambda text: _LINK.sub(rewritten, text))


def _links(path: str) -> Iterator[str]:
    if path.endswith((".md", ".ipynb")):
        for target in _LINK.findall((ROOT / path).read_text(encoding="utf-8")):
            yield posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _file(path: str, config: Any) -> File:
    source, site_path = ROOT / path, _site_path(path)
    listed = InclusionLevel.INCLUDED if path in OTHER_PAGES else InclusionLevel.NOT_IN_NAV
    if path.endswith(".ipynb"):
        content = _notebook(json.loads(source.read_text(encoding="utf-8")))
    elif source.suffix in _LANGUAGES:
        content = f"# {path}\n\n```{_LANGUAGES[source.suffix]}\n{source.read_text(encoding='utf-8')}```\n"
    else:
        return File.generated(config, site_path, abs_src_path=str(source), inclusion=listed)
    return File.generated(config, site_path, content=content, inclusion=listed)


def _notebook(notebook: dict[str, Any]) -> str:
    """The cells of a notebook as Markdown, with the texts and pictures that they show."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in shown:
                picture = "".join(shown["image/png"]).replace("\n", "")
                parts.append(
                    f'<img alt="the picture that the cell above draws" src="data:image/png;base64,{picture}">'
                )
            else:
                parts.append(f"```text\n{''.join(shown['text/plain'])}\n```")
    return "\n\n".join(parts)


def _site_path(path: str) -> str:
    """Where a file of the repository stands on the site."""
    if path == FIRST_PAGE:
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{path}.md" if Path(path).suffix in (*_LANGUAGES, ".ipynb") else path


def _repository_path(site_path: str) -> str:
    """The inverse of `_site_path`."""
    if site_path == "index.md":
        return FIRST_PAGE
    if (ROOT / "docs" / site_path).exists():
        return f"docs/{site_path}"
    path = site_path.removesuffix(".md")
    return path if Path(path).suffix in (*_LANGUAGES, ".ipynb") else site_path


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else change(part) for part in parts)
