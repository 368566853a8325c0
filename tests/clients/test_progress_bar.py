"""The progress bar of the client."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.progress_bar import ProgressBar
from asyncjobs.core.status import JobStatus


def test_the_bar_shows_no_escape_sequence_of_the_server() -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=False, width=100)
    with ProgressBar(console) as bar:
        bar.show(JobUpdate(JobStatus.PROCESSING, message="\x1b]0;owned\a12 rows\x9b2J \ud800 [b]"))
    shown = screen.getvalue()
    assert "12 rows" in shown
    assert "[b]" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_the_bar_shows_the_title_of_the_job() -> None:
    screen = StringIO()
    with ProgressBar(Console(file=screen, width=100)) as bar:
        bar.show(JobUpdate(JobStatus.PROCESSING, title="Customers", message="12 rows"))
    assert "Customers · 12 rows" in screen.getvalue()
