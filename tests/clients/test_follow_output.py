"""`asyncjobs follow --output`: print what a job emits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from asyncjobs.cli.app import commands

if TYPE_CHECKING:
    from tests.clients.conftest import Served, ServedJob


def follow(*words: str) -> Result:
    return CliRunner().invoke(commands, ["follow", *words], catch_exceptions=False)


def emitted(served: Served, items: list[Any], stream: str = "output") -> ServedJob:
    """Submit a job that emits these items, and end it."""
    job = served.submit("emits", name=f"{stream} {items}", items=items, stream=stream)
    job.release()
    return job


def test_json_values_are_printed_one_a_line(served: Served) -> None:
    values = [{"a": "ü\x1b"}, 1, None, [2]]
    result = follow("--output", emitted(served, values).status_url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [json.loads(line) for line in result.stdout.splitlines()] == values
    assert "\x1b" not in result.stdout


def test_text_is_printed_as_it_is(served: Served) -> None:
    text = [" a\n", "\n ü", "\tb "]
    result = follow("--stream", "log", emitted(served, text, "log").status_url)
    assert (result.exit_code, result.stdout) == (0, "".join(text))


def test_bytes_are_printed_as_they_are(served: Served) -> None:
    job = emitted(served, [[0, 255], [10, 13]], "raw")
    assert follow("--stream", "raw", job.status_url).stdout_bytes == b"\x00\xff\n\r"


def test_output_is_printed_before_the_job_has_ended(served: Served) -> None:
    job = served.submit("emits", name="early", items=["first\n", "second\n"], stream="output")
    with subprocess.Popen(
        [sys.executable, "-m", "asyncjobs", "follow", "--output", job.status_url],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        job.release()
        assert process.communicate(timeout=60)[0] == "second\n"
    assert process.returncode == 0


def test_an_interrupted_command_names_the_offset_with_which_another_goes_on(
    served: Served,
) -> None:
    job = served.submit("emits", name="interrupted", items=["first\n", "second\n"], stream="output")
    command = [sys.executable, "-m", "asyncjobs", "follow", "--output", job.status_url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    job.release()
    [line] = [line for line in errors.splitlines() if "--after" in line]
    rest = follow(*line.partition("add ")[2].split(), "--output", job.status_url)
    assert (rest.exit_code, rest.stdout) == (0, "second\n")


def test_an_offset_is_refused_where_it_has_no_meaning(served: Served) -> None:
    job = emitted(served, ["a\n"])
    for words in (("--after", "-1"), ("--after", "", "--output"), ("--after", "é", "--output")):
        assert follow(*words, job.status_url).exit_code == 2, words
    of_another = follow("--after", "000001-0000000000000001-00000000", "--output", job.status_url)
    assert (of_another.exit_code, of_another.stdout) == (1, "")
    assert "offset" in of_another.stderr


def test_a_terminal_gets_no_escape_sequences(served: Served) -> None:
    job = emitted(served, ["a\x1b[31mb\n", "c\n"])
    job.until(status="completed")
    terminal, side = os.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        command = [sys.executable, "-m", "asyncjobs", "follow", "--output", job.status_url]
        assert subprocess.run(command, stdout=side, check=False, timeout=60).returncode == 0
        os.close(side)
        shown = b""
        while b"c" not in shown:
            shown += screen.read(65536)
    assert b"\x1b" not in shown


def test_the_error_of_a_failed_job_is_printed_after_its_output(served: Served) -> None:
    result = follow("--output", served.submit("full").status_url)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: The disk is full.\n")


def test_an_unknown_job_exits_with_4(served: Served) -> None:
    assert follow("--output", f"{served.url}/api/jobs/job_x").exit_code == 4


@pytest.mark.parametrize("option", ["--output", "--stream=log"])
def test_output_and_documents_are_not_combined(option: str) -> None:
    result = follow("--json", option, "http://localhost/api/jobs/job_x")
    assert (result.exit_code, "only one of --json" in result.stderr) == (2, True)
