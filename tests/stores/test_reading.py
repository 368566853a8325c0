"""An unreadable row does not affect others, for any logging of the application."""

from __future__ import annotations

from typing import Any

import pytest

from asyncjobs.core.job import Job
from asyncjobs.errors import UnreadableJob
from asyncjobs.stores.reading import readable
from asyncjobs.testing import sample_job


def read(row: Job | str) -> Job:
    if isinstance(row, str):
        raise UnreadableJob(row)
    return row


def test_unreadable_rows_are_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    one, two = sample_job(), sample_job()
    rows: list[Job | str] = [one, "job_x", two]
    assert readable(rows, read) == [one, two]
    assert [(vars(record)["job_id"], record.levelname) for record in caplog.records] == [
        ("job_x", "ERROR")
    ]


def test_a_log_filter_that_raises_hides_no_job(broken_filter: Any) -> None:
    job = sample_job()
    rows: list[Job | str] = ["job_x", job]
    assert readable(rows, read) == [job]
    assert broken_filter.asked == 1
