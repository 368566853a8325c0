"""What browsers are served: its rules by Node's own test runner, its types, and its weight."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncjobs

BROWSER = Path(asyncjobs.__file__).parent / "browser"

Node = Callable[..., str]


def test_the_client_keeps_its_rules(node: Node) -> None:
    # Forced: a following that a failed test has left behind would go on for a day.
    # Browsers have an EventSource; Node has it behind a flag.
    how = ("--experimental-eventsource", "--test-timeout=60000", "--test-force-exit")
    said = node("--test", *how, "--test-reporter=tap")
    assert "# fail 0" in said
    assert int(said.partition("# pass ")[2].split()[0]) > 60


def test_the_declarations_are_what_the_compiler_takes_them_for(node: Node) -> None:
    node("node_modules/typescript/bin/tsc", "-p", ".")


def test_the_client_weighs_less_than_six_kibibytes() -> None:
    weight = len(gzip.compress((BROWSER / "client.js").read_bytes(), 9))
    assert weight < 6 * 1024


def test_the_package_exports_every_script_with_its_types() -> None:
    package: dict[str, Any] = json.loads((BROWSER / "package.json").read_text())
    own = package["exports"].pop("./package.json")
    exported: list[dict[str, str]] = [*package["exports"].values()]
    named = {name.removeprefix("./") for one in exported for name in one.values()}
    assert own == "./package.json"
    assert named == {path.name for path in BROWSER.iterdir()} - {"package.json"}


def test_the_package_has_the_version_of_the_library() -> None:
    project = (BROWSER.parents[1] / "pyproject.toml").read_text()
    version = json.loads((BROWSER / "package.json").read_text())["version"]
    assert f'\nversion = "{version}"\n' in project
