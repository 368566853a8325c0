"""A job's progress in a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from asyncjobs.client.documents import JobUpdate
from asyncjobs.core.status import JobStatus


class ProgressBar:
    """Draws a bar while it is entered; on the standard error unless a console is given."""

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Progress(
            TextColumn("{task.fields[status]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            # The job's own words: they may have brackets, which are no markup.
            TextColumn("{task.description}", markup=False),
            console=console or Console(stderr=True),
        )
        self._bar = self._bars.add_task("", total=None, status=str(JobStatus.PENDING))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, update: JobUpdate) -> None:
        """Draw what is new; a server that tells no progress gets a bar that only moves."""
        percent = 100 if update.status is JobStatus.COMPLETED else update.progress
        self._bars.update(
            self._bar,
            status=str(update.status),
            total=None if percent is None else 100,
            completed=percent or 0,
            description=update.error or update.message or "",
        )
