"""`--jobs` and `--store`: which queue or store a command uses; clear errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asyncjobs import JobStatus

if TYPE_CHECKING:
    from tests.cli.conftest import Fill, Made, Shell

pytestmark = pytest.mark.every_store(without="memory")

APP = """
from asyncjobs import AsyncJobs

jobs = AsyncJobs({url!r})

def make():
    return AsyncJobs({url!r})

class config:
    queue = jobs

number = 7

def broken():
    raise RuntimeError("no settings")
"""


@pytest.fixture
def app(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write an application with a new module name into the working directory."""
    name = f"app_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(APP.format(url=url))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.mark.parametrize("attribute", ["jobs", "make", "config.queue"])
def test_jobs_names_an_object_or_a_function(
    asyncjobs: Shell, app: str, url: str, fill: Fill, made: Made, attribute: str
) -> None:
    job = made()
    fill(url, [job])
    result = asyncjobs("list", "--jobs", f"{app}:{attribute}")
    assert (result.exit_code, job.id in result.stdout) == (0, True)


def test_every_command_sees_the_same_jobs_by_queue_and_by_store(
    asyncjobs: Shell, app: str, url: str, fill: Fill, made: Made
) -> None:
    job = made(JobStatus.COMPLETED)
    fill(url, [job])
    for words in (
        ("list", "--json"),
        ("show", "--json", job.id),
        ("watch", "--json", job.id),
        ("cancel", "--json", job.id),
        ("purge", "--json", "--dry-run"),
        ("migrate", "--json"),
    ):
        by_store = asyncjobs(*words, "--store", url)
        by_queue = asyncjobs(*words, "--jobs", f"{app}:jobs")
        assert by_store.exit_code == by_queue.exit_code == 0, words
        assert by_store.stdout == by_queue.stdout
    again = json.loads(asyncjobs("retry", "--json", "--jobs", f"{app}:jobs", job.id).stdout)
    assert again["jobs"][0]["retryOf"] == job.id
    checks = [asyncjobs("check", *one) for one in (("--store", url), ("--jobs", f"{app}:jobs"))]
    assert checks[0].exit_code == checks[1].exit_code


def test_the_command_line_takes_precedence_over_the_environment(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    job = made()
    fill(url, [job])
    named = asyncjobs("list", env={"ASYNCJOBS_STORE": url})
    assert job.id in named.stdout
    both = asyncjobs("list", "--store", url, env={"ASYNCJOBS_JOBS": "no:where"})
    assert job.id in both.stdout
    first = asyncjobs("list", env={"ASYNCJOBS_STORE": url, "ASYNCJOBS_JOBS": "nowhere:jobs"})
    assert (first.exit_code, "nowhere" in first.stderr) == (2, True)


def test_a_missing_target_is_a_usage_error(asyncjobs: Shell) -> None:
    result = asyncjobs("list")
    assert result.exit_code == 2
    assert "--store URL or --jobs MODULE:ATTRIBUTE" in result.stderr


def test_jobs_and_store_exclude_each_other(asyncjobs: Shell, file: str) -> None:
    result = asyncjobs("list", "--store", file, "--jobs", "app:jobs")
    assert (result.exit_code, "not both" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("attribute", "error"),
    [
        ("missing", "has no attribute 'missing'"),
        ("number", "must be an AsyncJobs, got int"),
        ("broken", "RuntimeError: no settings ("),
    ],
)
def test_an_error_of_the_module_is_printed_in_one_line(
    asyncjobs: Shell, app: str, attribute: str, error: str
) -> None:
    result = asyncjobs("list", "--jobs", f"{app}:{attribute}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert error in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_error_in_a_module_names_its_line(
    asyncjobs: Shell, app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{app}_faulty"
    (tmp_path / f"{name}.py").write_text("import os\n\n1 / 0\n")
    monkeypatch.delitem(sys.modules, name, raising=False)
    result = asyncjobs("list", "--jobs", f"{name}:jobs")
    assert f"ZeroDivisionError: division by zero ({tmp_path / name}.py, line 3)" in result.stderr


@pytest.mark.parametrize("spec", ["app", "app:", ":jobs"])
def test_a_name_without_module_or_attribute_is_refused(asyncjobs: Shell, spec: str) -> None:
    result = asyncjobs("list", "--jobs", spec)
    assert (result.exit_code, "module:attribute" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["list", "check", "migrate", "purge"])
@pytest.mark.parametrize("scheme", ["postgresql", "redis", "sqlite", "memory"])
def test_a_password_with_an_unescaped_delimiter_is_not_printed(
    asyncjobs: Shell, scheme: str, command: str
) -> None:
    for url in (f"{scheme}://ann:Zq7x@xXyYz@127.0.0.1:1/0", f"{scheme}://ann:8246/xXyYz@127.0.0.1"):
        result = asyncjobs(command, "--store", url)
        assert result.exit_code == 2
        assert not any(part in result.output for part in ("Zq7x", "xXyYz", "8246"))


def test_an_unknown_scheme_is_a_usage_error(asyncjobs: Shell) -> None:
    result = asyncjobs("list", "--store", "carrier-pigeon://roof")
    assert (result.exit_code, "known schemes" in result.stderr) == (2, True)


@pytest.mark.parametrize("words", [("list",), ("check",), ("cancel", "x"), ("purge", "--yes")])
def test_commands_create_no_file(
    asyncjobs: Shell, file: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    result = asyncjobs(*words, "--store", file)
    assert (result.exit_code, "the file does not exist" in result.stderr) == (3, True)
    assert list(tmp_path.iterdir()) == []


def test_an_unavailable_store_exits_with_3(asyncjobs: Shell) -> None:
    url = "postgresql://127.0.0.1:1/app"
    result = asyncjobs("list", "--store", url)
    assert (result.exit_code, "is unavailable" in result.stderr) == (3, True)
