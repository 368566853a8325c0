"""A progress bar in the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from asyncjobs.client.documents import JobUpdate
from asyncjobs.core.printable import plain
from asyncjobs.core.status import JobStatus


class ProgressBar:
    """Draws a bar inside a `with` block, on standard error unless a console is given."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[status]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            # Brackets in the job's message are not markup.
            TextColumn("{task.description}", markup=False),
            console=console or Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=None, status=str(JobStatus.PENDING))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, update: JobUpdate) -> None:
        """Draw a new state; without a known progress the bar is indeterminate."""
        percent = 100 if update.status is JobStatus.COMPLETED else update.progress
        self._progress.update(
            self._task,
            status=str(update.status),
            total=None if percent is None else 100,
            completed=percent or 0,
            description=" · ".join(
                plain(text) for text in (update.title, update.error or update.message) if text
            ),
        )
