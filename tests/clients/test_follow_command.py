"""`asyncjobs follow`: a job at its status URL, from a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from asyncjobs.cli.app import commands

if TYPE_CHECKING:
    from tests.clients.conftest import Job, Served

pytestmark = pytest.mark.every_store


def follow(*words: str, **options: Any) -> Result:
    return CliRunner().invoke(commands, ["follow", *words], catch_exceptions=False, **options)


def test_a_job_is_followed_to_its_result(served: Served) -> None:
    url = served.submit("double", count=4).status_url
    result = follow(url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"doubled": 8}
    assert json.loads(follow("--json", url).stdout)["status"] == "completed"


def test_a_terminal_shows_a_bar_and_the_output_is_the_result_alone(served: Served) -> None:
    url = served.submit("double", count=4).status_url
    terminal, side = os.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncjobs", "follow", url],
            stdout=subprocess.PIPE,
            stderr=side,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        )
        os.close(side)
        printed, _ = process.communicate(timeout=60)
        shown = screen.read(65536).decode()
    assert (process.returncode, json.loads(printed)) == (0, {"doubled": 8})
    assert "completed" in shown
    assert "━" in shown
    assert "100%" in shown


def test_a_failed_job_ends_it_in_the_jobs_words(served: Served) -> None:
    result = follow(served.submit("full").status_url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: The disk is full.\n"


def test_who_waits_long_enough_gives_up_and_the_job_goes_on(gate: Job) -> None:
    result = follow("--timeout", "0.3", gate.status_url)
    assert (result.exit_code, "It goes on" in result.stderr) == (1, True)


def test_a_job_that_is_not_there_has_a_code_of_its_own(served: Served) -> None:
    assert follow(f"{served.url}/api/jobs/job_x").exit_code == 4


def test_what_is_no_header_is_refused(served: Served) -> None:
    result = follow("--header", "secret", served.url)
    assert (result.exit_code, "is no header" in result.stderr) == (2, True)
