"""Check what no linter knows: `python .ci/conventions.py` prints each offence and exits with 1.

- No private attribute of any object in the Python blocks of the documentation. For Python files
  ruff has the same rule, SLF001.
- Tests wait by `tests/waiting.py`: no helper of their own that polls.
- No module, class or function of the package exceeds its ceiling.
- The paths by which `tests/selection.py` selects tests exist, and so do those in quarantine.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

MODULE_LINES, CLASS_LINES, BODY_LINES = 600, 500, 60

BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)```python[^\n]*\n(?P<fenced>.*?)^[ \t]*```"
    r"|<!--+[^\S\n]*invisible-code-block:[^\S\n]*python[^\n]*\n(?P<hidden>.*?)--+>",
    re.DOTALL | re.MULTILINE,
)
WAITING_NAMES = re.compile(r"until|until_\w+|eventually|wait_until\w*|poll_until\w*")


def documentation() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def private_names_in_docs() -> Iterator[str]:
    for page in documentation():
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            kind = "fenced" if block["fenced"] is not None else "hidden"
            first_line = text.count("\n", 0, block.start(kind))
            code = compile(
                textwrap.dedent(block[kind]),
                str(page),
                "exec",
                flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            )
            for node in ast.walk(code):
                if isinstance(node, ast.Attribute) and is_private(node):
                    yield f"{place(page, first_line + node.lineno)}: private {node.attr}"


def is_private(node: ast.Attribute) -> bool:
    own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
    return node.attr.startswith("_") and not node.attr.startswith("__") and not own


def polling_in_tests() -> Iterator[str]:
    for path in sorted(TESTS.rglob("*.py")):
        if path == TESTS / "waiting.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if WAITING_NAMES.fullmatch(node.name) and polls(node):
                yield f"{place(path, node.lineno)}: {node.name} polls; use tests/waiting.py"


def polls(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a loop of the function sleeps."""
    return any(
        isinstance(call, ast.Call) and ast.unparse(call.func).endswith("sleep")
        for loop in ast.walk(function)
        if isinstance(loop, ast.While | ast.For | ast.AsyncFor)
        for call in ast.walk(loop)
    )


def lost_selections() -> Iterator[str]:
    sys.path.insert(0, str(ROOT))
    from tests import selection

    named = (*selection.THOROUGH, *selection.QUICK, *selection.NOT_QUICK, *selection.quarantined())
    for name in named:
        path, _, test = name.partition("::")
        found = [*TESTS.glob(f"{path.rstrip('/')}*")]
        function = test.rpartition("::")[2].partition("[")[0]
        if not found or (test and f"def {function}" not in found[0].read_text(encoding="utf-8")):
            yield f"tests/selection.py, tests/quarantine.txt: there is no {name}"


def oversized() -> Iterator[str]:
    for path in sorted((ROOT / "asyncjobs").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > MODULE_LINES:
            yield f"{place(path, 1)}: {lines} lines, more than {MODULE_LINES}"
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            is_class = isinstance(node, ast.ClassDef)
            ceiling = CLASS_LINES if is_class else BODY_LINES
            first = node.lineno if is_class else node.body[0].lineno
            lines = (node.end_lineno or first) - first + 1
            if lines > ceiling:
                yield f"{place(path, node.lineno)}: {node.name} has {lines} lines, not {ceiling}"


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


if __name__ == "__main__":
    offences = [*private_names_in_docs(), *polling_in_tests(), *oversized(), *lost_selections()]
    print("\n".join(offences) or "conventions: all kept")
    sys.exit(1 if offences else 0)
