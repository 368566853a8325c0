"""`asyncjobs schedules`: lists, pauses, resumes, runs and removes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from asyncjobs import AsyncJobs, Selection
from asyncjobs.cli.target import find_jobs

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

pytestmark = pytest.mark.every_store(without="memory")

APP = """
from datetime import timedelta
from asyncjobs import AsyncJobs

jobs = AsyncJobs({url!r})

@jobs.handler("export")
def export(number: int) -> int:
    return number

jobs.schedule("nightly", export, 7, cron="0 3 * * *", timezone="Europe/Berlin")
jobs.schedule("often", export, 8, every=timedelta(minutes=90), missed="once")
"""


def same(number: int) -> int:
    return number


@pytest.fixture
def app(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the application whose schedules the store has, and one that is not declared."""
    (tmp_path / "scheduled_app.py").write_text(APP.format(url=url))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "scheduled_app", raising=False)

    async def begin() -> None:
        jobs = AsyncJobs(url)
        export = jobs.handler("export")(same)
        for name in ("nightly", "often", "past"):
            jobs.schedule(name, export, 1, every=3600)
        async with jobs:
            assert len(await jobs.schedules()) == 3
        async with find_jobs("scheduled_app:jobs") as declared:
            await declared.schedules()

    anyio.run(begin)
    return "scheduled_app:jobs"


def test_schedules_are_listed_with_their_next_and_latest_run(
    asyncjobs: Shell, url: str, app: str
) -> None:
    result = asyncjobs("schedules", "--store", url, "--json")
    found = json.loads(result.stdout)["schedules"]
    assert [one["name"] for one in found] == ["nightly", "often", "past"]
    nightly = next(one for one in found if one["name"] == "nightly")
    assert (nightly["cron"], nightly["timezone"]) == ("0 3 * * *", "Europe/Berlin")
    assert nightly["nextAt"][14:] == "00:00Z"
    assert (nightly["lastAt"], nightly["lastStatus"], nightly["declared"]) == (None, None, None)
    table = asyncjobs("schedules", "--jobs", app).stdout.splitlines()
    assert table[0].split() == ["name", "type", "when", "next", "last", "job", "status"]
    assert "0 3 * * * Europe/Berlin" in table[1]
    assert "every 90m" in table[2]
    assert "(not declared)" in table[3]


def test_a_schedule_is_paused_and_resumed(asyncjobs: Shell, url: str, app: str) -> None:
    assert asyncjobs("schedules", "pause", "often", "--store", url).stdout == "often is paused\n"
    rows = asyncjobs("schedules", "--jobs", app).stdout.splitlines()
    assert "paused" in next(row for row in rows if row.startswith("often"))
    result = asyncjobs("schedules", "--store", url, "resume", "often", "--json")
    assert json.loads(result.stdout) == {"name": "often", "done": "resumed"}
    assert "paused" not in asyncjobs("schedules", "--jobs", app).stdout


def test_a_schedule_is_run_by_the_application_that_declares_it(
    asyncjobs: Shell, url: str, app: str
) -> None:
    result = asyncjobs("schedules", "run", "often", "--jobs", app)
    job_id, *_ = result.stdout.split()

    async def stored() -> None:
        async with AsyncJobs(url, dispatcher="worker") as jobs:
            [job] = (await jobs.list(Selection())).jobs
            assert (job.id, (await jobs.find(job.id)).payload) == (job_id, 8)

    anyio.run(stored)
    refused = asyncjobs("schedules", "run", "often", "--store", url)
    assert (refused.exit_code, "--jobs" in refused.stderr) == (2, True)
    assert asyncjobs("schedules", "run", "past", "--jobs", app).exit_code == 2


def test_only_schedules_that_are_not_declared_are_removed(
    asyncjobs: Shell, url: str, app: str
) -> None:
    assert asyncjobs("schedules", "remove", "often", "--jobs", app).exit_code == 2
    assert asyncjobs("schedules", "remove", "past", "--jobs", app).exit_code == 0
    names = [
        one["name"]
        for one in json.loads(asyncjobs("schedules", "--store", url, "--json").stdout)["schedules"]
    ]
    assert names == ["nightly", "often"]


def test_a_removed_schedule_is_listed_until_the_application_stores_it_again(
    asyncjobs: Shell, url: str, app: str
) -> None:
    removed = asyncjobs("schedules", "remove", "often", "--store", url)
    assert removed.stdout.splitlines() == [
        "often is removed",
        "It returns if a running application declares it.",
    ]
    rows = asyncjobs("schedules", "--jobs", app).stdout.splitlines()
    assert "every 90m" in rows[2]
    assert "not stored yet" in rows[2]
    assert "not stored" not in rows[1]
    found = json.loads(asyncjobs("schedules", "--jobs", app, "--json").stdout)["schedules"]
    assert [(one["name"], one["stored"], one["declared"]) for one in found] == [
        ("nightly", True, True),
        ("often", False, True),
        ("past", True, False),
    ]


@pytest.mark.parametrize("action", ["pause", "resume", "remove"])
def test_an_unknown_schedule_has_the_exit_code_of_an_unknown_job(
    asyncjobs: Shell, url: str, app: str, action: str
) -> None:
    assert app
    result = asyncjobs("schedules", action, "nothing", "--store", url)
    assert (result.exit_code, result.stderr) == (4, "Error: There is no schedule 'nothing'.\n")
