"""`python examples/demo.py --once`, with and without faults."""

from __future__ import annotations

import socket
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

Demo = Callable[..., subprocess.CompletedProcess[str]]


def test_the_demo_exports_the_whole_database_and_shows_each_step(
    demo: Demo, tmp_path: Path
) -> None:
    shown = demo()
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "202 Accepted" in shown.stdout
    assert "completed" in shown.stdout
    [file] = (tmp_path / "asyncjobs-demo").glob("characters.csv")
    with file.open(encoding="utf-8", newline="") as lines:
        header = lines.readline()
    assert header.startswith("code_point,character,name,category")
    rows = sum(
        unicodedata.category(chr(code)) not in {"Cn", "Cs", "Co"} for code in range(0x110000)
    )
    assert rows > 100_000
    assert f"{rows:,} rows" in shown.stdout
    assert (tmp_path / "asyncjobs-demo" / "jobs.db").exists()


def test_the_demo_exports_one_category_as_json_lines(demo: Demo, tmp_path: Path) -> None:
    shown = demo("--format", "jsonl", "--category", "Lu", "--folder", "here")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert len(list((tmp_path / "here").glob("characters.jsonl"))) == 1


@pytest.mark.parametrize(
    ("category", "reason"), [("Xx", "No character has the category Xx"), ("nonsense", "202")]
)
def test_the_demo_fails_if_the_export_is_wrong(demo: Demo, category: str, reason: str) -> None:
    shown = demo("--category", category)
    assert shown.returncode == 1
    assert "Not as promised" in shown.stdout
    assert reason in shown.stdout
    assert "Traceback" not in shown.stderr


def test_the_demo_fails_if_its_port_is_in_use(demo: Demo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert demo("--port", str(taken.getsockname()[1])).returncode != 0


def test_the_demo_fails_if_its_store_cannot_be_opened(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "jobs.db").write_text("This is no database. " * 100)
    shown = demo("--folder", "here")
    assert shown.returncode == 1
    assert "the server did not start" in shown.stdout
