"""Print `name==version` for the lowest version of each dependency that the package declares.

python .ci/floors.py [extra ...]

These lines are a constraints file for pip. Without arguments every extra counts, except `test`,
`docs` and `dev`, whose packages are never installed by a user.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
TOOLS = ("dev", "docs", "test")

REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*>=\s*(?P<floor>[0-9][^\s,;]*)(?P<rest>.*)"
)


def version_key(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def floors(project: dict[str, object], extras: list[str]) -> dict[str, str]:
    """Return the lowest version by name; the highest of them if a name is declared twice."""
    optional = project["optional-dependencies"]
    assert isinstance(optional, dict)
    declared = [*project["dependencies"]]  # type: ignore[misc]
    for extra in extras or [name for name in optional if name not in TOOLS]:
        declared += optional[extra]
    found: dict[str, str] = {}
    for requirement in declared:
        if requirement.startswith(f"{project['name']}["):
            continue
        match = REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise SystemExit(f"{PROJECT.name}: {requirement!r} declares no lowest version")
        name, floor = match["name"], match["floor"]
        found[name] = max(found.get(name, "0"), floor, key=version_key)
    return found


if __name__ == "__main__":
    pyproject = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    for name, floor in floors(pyproject["project"], sys.argv[1:]).items():
        sys.stdout.write(f"{name}=={floor}\n")
