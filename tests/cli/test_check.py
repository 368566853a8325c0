"""`check`: the settings of a store, and warnings of the queue and the web server."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import checked

if TYPE_CHECKING:
    from tests.cli.conftest import Shell
    from tests.conftest import PostgresServer, Serve


pytestmark = pytest.mark.every_store(without="memory")

SOUND = """
from datetime import timedelta

from asyncjobs import AsyncJobs, Policy, Settings

jobs = AsyncJobs({url!r})

@jobs.handler("export")
async def export(month: str) -> str:
    return month
"""


@pytest.fixture
def warned(asyncjobs: Shell, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Check a queue whose module ends with `code`; return its warnings."""
    asyncjobs("migrate", "--store", file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def check(code: str = "", *words: str, url: str = file) -> list[str]:
        monkeypatch.delitem(sys.modules, "shop", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        (tmp_path / "shop.py").write_text(SOUND.format(url=url) + code)
        result = asyncjobs("check", "--json", "--jobs", "shop:jobs", *words)
        assert result.exit_code == 0, result.output
        warnings: list[str] = json.loads(result.stdout)["warnings"]
        return warnings

    return check


def gunicorn(tmp_path: Path, *lines: str) -> tuple[str, str]:
    file = tmp_path / "gunicorn.conf.py"
    file.write_text("\n".join(lines))
    return "--gunicorn", str(file)


FLASK = """
from flask import Flask
from asyncjobs import MountOptions
from asyncjobs.adapters.flask import mount

app = Flask("shop")
mount(app, jobs, options=MountOptions(max_held={held}))
"""


def test_a_sound_queue_has_no_warnings(warned: Any) -> None:
    assert warned() == []
    assert warned("", "--queues", "default,slow", "--keep-alive", "75") == []


WARNINGS = {
    "timeout of 900 s": 'jobs.handler("late", policy=Policy(deadline=60))(export.function)',
    "never deleted": 'jobs.handler("kept", policy=Policy(retention=None))(export.function)',
    "Stopping takes up to 65 s": "jobs = AsyncJobs(jobs.store, settings=Settings(grace=60))",
    "cannot find export in the module shop": (
        'declared = jobs.handler("render", run_in="process")(export.function)\n'
        "del export\ndel declared"
    ),
    "The queue cannot be opened": (
        "from contextlib import asynccontextmanager\n"
        "def make():\n"
        "    @asynccontextmanager\n"
        "    async def inside():\n"
        "        yield\n"
        "    return AsyncJobs(jobs.store, lifespan=inside)\n"
        "jobs = make()\n"
        'jobs.handler("render", run_in="process")(export.function)\n'
    ),
}


@pytest.mark.parametrize("warning", WARNINGS)
def test_each_mistake_of_a_queue_has_its_warning(warned: Any, warning: str) -> None:
    [found] = warned(WARNINGS[warning])
    assert warning in found


def test_a_memory_store_has_a_warning(warned: Any) -> None:
    [found] = warned(url="memory://")
    assert "sqlite:///" in found


def test_a_longer_stop_timeout_permits_a_longer_grace_period(warned: Any) -> None:
    code = WARNINGS["Stopping takes up to 65 s"]
    assert warned(code, "--stop-timeout", "65") == []
    [found] = warned(code, "--stop-timeout", "64")
    assert "64 s" in found


def test_a_queue_without_workers_has_a_warning(warned: Any) -> None:
    [found] = warned("", "--queues", "slow, slower")
    assert "'default'" in found
    assert "'export'" in found


NAMED = """
class Engine(type(AsyncJobs(jobs.store, dispatcher="worker").dispatcher)):
    def queue_for(self, job_type, queue):
        return None if queue == "default" else "engine-" + queue

    def how_to_serve(self, job_type, queue):
        return f"Start a worker with -Q engine-{queue}."

    def served_queues(self):
        return frozenset({"engine-slow"})


jobs = AsyncJobs(jobs.store, dispatcher=Engine())
jobs.handler("any")(export.function)
jobs.handler("slow", policy=Policy(queue="slow"))(export.function)
jobs.handler("image", policy=Policy(queue="images"))(export.function)
"""


def test_a_queue_without_workers_of_its_engine_has_a_warning(warned: Any) -> None:
    [found] = warned(NAMED)
    assert found == (
        "No worker serves the queue 'engine-images' of handler 'image'. "
        "Start a worker with -Q engine-images."
    )
    assert warned(NAMED, "--queues", "engine-slow,engine-images") == []


@pytest.mark.parametrize(
    ("seconds", "warns"),
    [
        *((0, False), (1, False), (2, False), (2.5, True), (3, True)),
        *((4.5, True), (5, False), (5.5, True), (6.5, True), (7, False)),
    ],
)
def test_a_keep_alive_near_the_polling_interval_has_a_warning(
    warned: Any, seconds: float, warns: bool
) -> None:
    found = warned("", "--keep-alive", str(seconds))
    assert [("Retry-After" in one) for one in found] == [True] * warns


@pytest.mark.parametrize(
    ("held", "threads", "warns"),
    [(63, 64, False), (64, 64, True), (None, 4, False), (None, 3, True), (None, 1, False)],
)
def test_held_requests_that_may_use_all_threads_have_a_warning(
    warned: Any, held: int | None, threads: int, warns: bool
) -> None:
    found = warned(FLASK.format(held=held), "--app", "shop:app", "--threads", str(threads))
    assert [("max_held" in one) for one in found] == [True] * warns


def test_the_polling_interval_is_read_from_the_application(warned: Any) -> None:
    code = """
from starlette.applications import Starlette
from asyncjobs import MountOptions, Pacing
from asyncjobs.adapters.starlette import mount

def make_app():
    app = Starlette()
    mount(app, jobs, options=MountOptions(pacing=Pacing(20, 60)))
    return app
"""
    assert warned(code, "--app", "shop:make_app", "--keep-alive", "5") == []
    [found] = warned(code, "--app", "shop:make_app", "--keep-alive", "30")
    assert "every 20 to 60 s" in found


def test_a_gunicorn_file_is_read(warned: Any, tmp_path: Path) -> None:
    threads = ["import os", "worker_class = 'gthread'", "threads = 4 * 16", "keepalive = 75"]
    app = FLASK.format(held=48), "--app", "shop:app"
    assert warned(*app, *gunicorn(tmp_path, *threads)) == []
    [found] = warned(*app, *gunicorn(tmp_path, *threads, "graceful_timeout = 10"))
    assert "graceful_timeout" in found
    [found] = warned(*app, *gunicorn(tmp_path, *threads), "--threads", "8")
    assert "8 threads" in found
    [found] = warned(*app, *gunicorn(tmp_path, "threads = 64", "keepalive = 3"))
    assert "after 3 s" in found
    assert warned(*app, *gunicorn(tmp_path, "threads = 64")) == []


def test_a_sync_worker_of_gunicorn_with_held_requests_has_a_warning(
    warned: Any, tmp_path: Path
) -> None:
    app = FLASK.format(held=1), "--app", "shop:app"
    [found] = warned(*app, *gunicorn(tmp_path))
    assert 'worker_class = "gthread"' in found
    assert warned(*app, *gunicorn(tmp_path, "timeout = 0"))[0].count("one of 1 threads") == 1
    assert warned("", *gunicorn(tmp_path)) == []
    asgi = gunicorn(tmp_path, "worker_class = 'uvicorn.workers.UvicornWorker'", "keepalive = 75")
    assert warned("", *asgi) == []


@pytest.mark.parametrize("line", ["1 / 0", "threads = 'many'", "keepalive = None"])
def test_a_gunicorn_file_that_cannot_be_read_is_an_error(
    asyncjobs: Shell, file: str, tmp_path: Path, line: str
) -> None:
    result = asyncjobs("check", "--store", file, *gunicorn(tmp_path, line))
    assert result.exit_code in (2, 3)


def test_an_app_without_a_mounted_queue_is_an_error(
    asyncjobs: Shell, file: str, warned: Any
) -> None:
    assert warned("from flask import Flask\napp = Flask('shop')") == []
    result = asyncjobs("check", "--store", file, "--app", "shop:app")
    assert (result.exit_code, "--app" in result.stderr) == (2, True)


def test_warnings_fail_the_command_with_strict(asyncjobs: Shell, file: str) -> None:
    asyncjobs("migrate", "--store", file)
    words = "check", "--store", file, "--keep-alive", "4"
    assert asyncjobs(*words).exit_code == 0
    assert "Warning: The server closes" in asyncjobs(*words).stdout
    assert asyncjobs(*words, "--strict").exit_code == 1
    assert asyncjobs("check", "--store", file, "--strict").exit_code == 0


def test_check_prints_the_settings_of_every_store(asyncjobs: Shell, url: str) -> None:
    asyncjobs("migrate", "--store", url)
    code, found = checked(asyncjobs, url)
    assert found
    assert bool(code) is any(advice for _, advice in found.values())
    sheet = asyncjobs("check", "--store", url)
    assert sheet.exit_code == code
    assert sheet.stdout.split()[:3] == ["what", "found", "advice"]
    assert all(f"\n{subject} " in sheet.stdout for subject in found)


def test_check_passes_for_a_sound_file(asyncjobs: Shell, file: str) -> None:
    asyncjobs("migrate", "--store", file)
    code, found = checked(asyncjobs, file)
    assert (code, found["journal_mode"], found["synchronous"]) == (0, ("wal", ""), ("FULL", ""))


def test_check_finds_a_damaged_file(asyncjobs: Shell, file: str, tmp_path: Path) -> None:
    asyncjobs("migrate", "--store", file)
    damaged = tmp_path / "jobs.db"
    with sqlite3.connect(damaged) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [size] = db.execute("PRAGMA page_size").fetchone()
        [page] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'results'").fetchone()
    db.close()
    with damaged.open("r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\xff" * size)
    code, found = checked(asyncjobs, file)
    assert (code, found["quick_check"][1]) == (1, "restore the file from a backup")


def test_a_database_of_another_program_is_refused(
    asyncjobs: Shell, file: str, tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "jobs.db") as db:
        db.execute("CREATE TABLE invoices (id)")
    db.close()
    result = asyncjobs("check", "--store", file)
    assert (result.exit_code, "another program" in result.stderr) == (3, True)


def test_check_finds_a_postgresql_that_loses_commits(
    asyncjobs: Shell, postgres: PostgresServer, schema: str
) -> None:
    safe = f"{postgres.url}?asyncjobs_schema={schema}"
    _, found = checked(asyncjobs, safe)
    assert found["synchronous_commit"] == ("on", "")
    assert (found["role"], found["clock offset"][1]) == (("primary", ""), "")
    [(fsync,)] = postgres.execute("SELECT current_setting('fsync')")
    assert bool(found["fsync"][1]) is (fsync == "off")
    code, found = checked(asyncjobs, f"{safe}&options=-csynchronous_commit%3Doff")
    assert (code, found["synchronous_commit"][0]) == (1, "off")
    assert "set it to on" in found["synchronous_commit"][1]


def test_check_finds_a_valkey_that_loses_data_and_passes_one_that_does_not(
    asyncjobs: Shell, serve: Serve
) -> None:
    server = serve("--appendonly", "yes")
    code, found = checked(asyncjobs, server.url)
    assert (code, found["appendonly"], found["appendfsync"][0]) == (0, ("yes", ""), "everysec")
    for name, value in (
        ("maxmemory-policy", "allkeys-lru"),
        ("appendonly", "no"),
        ("appendfsync", "no"),
    ):
        server.ask("CONFIG", "SET", name, value)
    code, found = checked(asyncjobs, server.url)
    assert code == 1
    assert all(found[name][1] for name in ("maxmemory-policy", "appendonly", "appendfsync"))


def test_check_does_not_pass_a_server_that_hides_its_settings(
    asyncjobs: Shell, serve: Serve
) -> None:
    server = serve("--appendonly", "yes", "--rename-command", "CONFIG", "")
    code, found = checked(asyncjobs, server.url)
    assert (code, found["settings"][0]) == (1, "unknown")
