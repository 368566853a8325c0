"""The documentation as a site: `sphinx-build -W docs site`.

The pages are plain Markdown and are read as such in a clone, too. So the navigation is made here,
from the lists of `index.md`, and links to files outside of `docs` become plain text.
"""

from __future__ import annotations

import re
from html import escape
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import asyncjobs

HERE = Path(__file__).parent

project = "asyncjobs"
author = "The asyncjobs developers"
release = version_of("asyncjobs-http")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
]
exclude_patterns = ["site"]
# Examples show parts of HTTP messages.
suppress_warnings = ["misc.highlighting_failure"]

# Quotes in docstrings are those of Python.
smartquotes = False

html_theme = "furo"
html_title = "asyncjobs"
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

# Docstrings are written with single backticks for code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True

# Diagrams are drawn by Mermaid, which is copied into the site: `npm install mermaid`.
_mermaid = HERE.parent / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"
if _mermaid.is_file():
    html_static_path = [str(_mermaid)]
    html_js_files = ["mermaid.min.js"]

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_PAGE = re.compile(r"\]\((?!http)([\w/-]+)\.md(?:#[\w-]+)?\)")
_DIAGRAM = re.compile(r"^```mermaid\n(.+?)^```$", re.MULTILINE | re.DOTALL)
# Folders, and pages that are not part of the documentation.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:[\w/-]+|[A-Z]+\.md(?:#[\w-]+)?)\)")


def add_navigation(index: str) -> str:
    """Add a table of contents for each section of the index that links pages."""
    parts = _SECTION.split(index)
    trees: list[str] = []
    seen: set[str] = set()
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        pages = [page for page in dict.fromkeys(_PAGE.findall(body)) if page not in seen]
        seen.update(pages)
        if pages:
            trees.append(
                "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"])
            )
    return "\n\n".join([index, *trees, ""])


def prepare(_: Sphinx, page: str, source: list[str]) -> None:
    """Make a page of the repository one of the site."""
    text = add_navigation(source[0]) if page == "index" else source[0]
    text = _DIAGRAM.sub(lambda found: f'<pre class="mermaid">\n{escape(found[1])}</pre>', text)
    source[0] = _OUTSIDE.sub(r"\1", text)


def mark_examples(*arguments: Any) -> None:
    """Mark the indented blocks of a docstring as Python code; reStructuredText quotes them."""
    lines: list[str] = arguments[-1]
    marked: list[str] = []
    for line in lines:
        begins = line.startswith("    ") and marked and not marked[-1]
        if begins and not any(one.startswith("    ") for one in marked[-2:-1]):
            marked += [".. code-block:: python", ""]
        marked.append(line)
    lines[:] = marked


def setup(app: Sphinx) -> None:
    """Connect what makes a page of the repository one of the site."""
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", mark_examples)
    # The package imports each name when it is first used; autodoc lists those that it has.
    for name in asyncjobs.__all__:
        getattr(asyncjobs, name)
