"""One file under all conditions."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from pathlib import Path

import anyio
import pytest

from asyncjobs.core.job import Job, JobId, new_job_id
from asyncjobs.errors import (
    ConfigurationError,
    NotOpen,
    SchemaError,
    StoreUnavailable,
    UnreadableJob,
)
from asyncjobs.stores import store_from_url
from asyncjobs.stores.sqlite import SqliteStore, from_url
from asyncjobs.stores.sqlite.file import is_busy
from asyncjobs.testing import (
    ChangeNoticesConformance,
    InlineReadsConformance,
    InspectionConformance,
    ListingConformance,
    MigrationScriptConformance,
    OutputStreamsConformance,
    SharingConformance,
    StoreConformance,
    TalliesConformance,
    sample_job,
)
from asyncjobs.testing.samples import NOW
from tests.stores.opening import open_and_close
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


class TestSqliteStore(
    StoreConformance,
    ChangeNoticesConformance,
    InlineReadsConformance,
    InspectionConformance,
    ListingConformance,
    MigrationScriptConformance,
    OutputStreamsConformance,
    TalliesConformance,
):
    @pytest.fixture
    def store(self, path: Path) -> SqliteStore:
        return SqliteStore(path, notice=0.005)

    @pytest.fixture
    def opener(self, path: Path) -> Callable[[], SqliteStore]:
        return partial(SqliteStore, path)


class TestSqliteStoreOnASlowDisk(StoreConformance, OutputStreamsConformance):
    """If commits are slow, every write goes through the store's thread."""

    tested_elsewhere = SqliteStore.powers

    @pytest.fixture
    def store(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> SqliteStore:
        monkeypatch.setattr("asyncjobs.stores.sqlite.store.MAX_COMMIT_SECONDS_IN_LOOP", -1.0)
        return SqliteStore(path, notice=0.005)

    @pytest.fixture
    def opener(self, path: Path) -> Callable[[], SqliteStore]:
        return partial(SqliteStore, path)


# opening


class TestSqliteStoreOnAFastDisk(SharingConformance):
    """If commits are quick, writes happen on the event loop unless a lock is in the way."""

    @pytest.fixture
    def store(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> SqliteStore:
        monkeypatch.setattr("asyncjobs.stores.sqlite.store.MAX_COMMIT_SECONDS_IN_LOOP", 1e9)
        return SqliteStore(path, notice=0.005)

    @pytest.fixture
    def opener(self, path: Path) -> Callable[[], SqliteStore]:
        return partial(SqliteStore, path)


def test_a_url_names_a_file() -> None:
    assert from_url("sqlite:///jobs.db").path == Path("jobs.db")
    assert from_url("sqlite:////var/jobs.db").path == Path("/var/jobs.db")


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite://jobs.db", "sqlite:///:memory:"]
)
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///relative/path"):
        store_from_url(url)


async def test_a_closed_store_raises_not_open(path: Path) -> None:
    with pytest.raises(NotOpen):
        await SqliteStore(path).get([])


async def test_a_loop_of_reads_lets_other_tasks_run(path: Path) -> None:
    seen = False

    async def look() -> None:
        nonlocal seen
        seen = True

    async with SqliteStore(path) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while not seen:
            await store.get([new_job_id()])
            assert time.monotonic() < give_up_at


async def test_the_file_is_durable_and_marked_as_ours(path: Path) -> None:
    async with SqliteStore(path) as store:
        found = {finding.subject: finding.found for finding in await store.inspect()}
    assert (found["journal_mode"], found["synchronous"]) == ("wal", "FULL")
    assert found["schema version"] == "1 of 1"
    assert read(path, "PRAGMA application_id") == int.from_bytes(b"asyn")
    assert read(path, "PRAGMA user_version") == 1


async def test_a_missing_folder_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="folder does not exist"):
        await open_and_close(SqliteStore(tmp_path / "nowhere" / "jobs.db"))


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="unable to open"):
        await open_and_close(SqliteStore(tmp_path))


async def test_a_file_that_is_no_database_is_refused_and_not_changed(path: Path) -> None:
    path.write_bytes(b"Dear diary, today " * 100)
    with pytest.raises(SchemaError, match="not an SQLite database"):
        await open_and_close(SqliteStore(path))
    assert path.read_bytes().startswith(b"Dear diary")


async def test_a_database_of_another_program_is_refused_and_not_changed(path: Path) -> None:
    write(path, "CREATE TABLE diary (day TEXT)")
    before = path.read_bytes()
    with pytest.raises(SchemaError, match="another program"):
        await open_and_close(SqliteStore(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, 2])
async def test_a_database_of_another_version_is_refused_and_not_changed(
    path: Path, version: int
) -> None:
    await open_and_close(SqliteStore(path))
    write(path, f"PRAGMA user_version = {version}")
    with pytest.raises(SchemaError, match=f"schema version {version}"):
        await open_and_close(SqliteStore(path))
    assert read(path, "PRAGMA user_version") == version


async def test_a_corrupt_file_is_unavailable_and_never_replaced(path: Path) -> None:
    async with SqliteStore(path) as store:
        jobs = [sample_job() for _ in range(200)]
        await store.insert(jobs)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 3 * 4096)
    with pytest.raises(StoreUnavailable, match="malformed"):
        async with SqliteStore(path) as store:
            await store.get([job.id for job in jobs])
    assert path.stat().st_size > 4 * 4096


NO_ROOM = """
import anyio, resource, signal, sys
from asyncjobs.errors import StoreUnavailable
from asyncjobs.stores.sqlite import SqliteStore

async def main() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))
    try:
        async with SqliteStore(sys.argv[1]):
            print("opened")
    except StoreUnavailable:
        print("refused")

anyio.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
async def test_a_full_disk_leaves_no_partial_schema(path: Path) -> None:
    assert run(NO_ROOM, str(path)) == "refused\n"
    assert read(path, "SELECT count(*) FROM sqlite_schema") == 0
    assert read(path, "PRAGMA application_id") == 0
    await open_and_close(SqliteStore(path))


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("owner = ? AND seq < ? AND status = 'failed'", "jobs_owned"),
        ("type = ? AND seq < ? AND status = 'completed'", "jobs_completed"),
    ],
)
async def test_frequent_lists_use_an_index(path: Path, where: str, index: str) -> None:
    await open_and_close(SqliteStore(path))
    query = f"EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE {where} ORDER BY seq DESC"  # noqa: S608
    with sqlite3.connect(path) as file:
        [(*_, plan)] = file.execute(query, ("x", 9)).fetchall()
    file.close()
    assert f"USING INDEX {index}" in plan


async def test_lists_of_a_label_are_read_in_the_order_of_their_index(path: Path) -> None:
    await open_and_close(SqliteStore(path))
    query = (
        "EXPLAIN QUERY PLAN SELECT jobs.seq FROM labels CROSS JOIN jobs ON jobs.seq = labels.seq"
        " WHERE label = ? AND labels.seq < ? AND status = 'failed' ORDER BY labels.seq DESC"
    )
    with sqlite3.connect(path) as file:
        plan = [row[-1] for row in file.execute(query, ("x", 9)).fetchall()]
    file.close()
    assert len(plan) == 2  # and no sorting
    assert "SEARCH labels USING PRIMARY KEY" in plan[0]
    assert "SEARCH jobs USING INTEGER PRIMARY KEY" in plan[1]


# writes that must fail


async def test_writes_to_a_removed_file_are_refused(path: Path) -> None:
    async with SqliteStore(path) as store:
        await store.insert([sample_job()])
        path.unlink()
        with pytest.raises(StoreUnavailable, match="removed"):
            await store.insert([sample_job()])
    assert not path.exists()


async def test_a_replaced_file_is_noticed(path: Path) -> None:
    async with SqliteStore(path) as store:
        other = path.with_name("other.db")
        other.write_bytes(b"")
        other.replace(path)
        with pytest.raises(StoreUnavailable, match="replaced"):
            await store.insert([sample_job()])


FULL_DISK = """
import anyio, resource, signal, sys
from asyncjobs.errors import StoreUnavailable
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import sample_job

async def main() -> None:
    stored = []
    async with SqliteStore(sys.argv[1]) as store:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        try:
            while True:
                jobs = [sample_job(payload_json=b'"' + b"x" * 5000 + b'"') for _ in range(5)]
                await store.insert(jobs)
                stored += jobs
        except StoreUnavailable as error:
            assert error.__cause__ is not None
        assert list(await store.get([job.id for job in stored])) == stored
        assert list(await store.get([job.id for job in jobs])) == [None] * 5
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert list(await store.insert(jobs)) == jobs
    print(len(stored) > 5)

anyio.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_full_disk_loses_nothing_and_makes_no_partial_write(path: Path) -> None:
    assert run(FULL_DISK, str(path)).strip() == "True"


READ_ONLY = """
import anyio, os, sys
from asyncjobs.errors import StoreUnavailable
from asyncjobs.stores.sqlite import SqliteStore

async def main() -> None:
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        async with SqliteStore(sys.argv[1]):
            print("opened")
    except StoreUnavailable as error:
        print(error)

anyio.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX")
async def test_an_unwritable_file_is_refused_when_it_is_opened() -> None:
    # Other users cannot read pytest's own folder.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        await open_and_close(SqliteStore(path))
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        said = run(READ_ONLY, str(path))
        Path(folder).chmod(0o755)
    assert "readonly" in said or "read-only" in said


async def test_a_relative_path_is_resolved_when_the_store_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with SqliteStore("jobs.db") as store:
        monkeypatch.chdir("/")
        job = sample_job()
        assert await store.insert([job]) == [job]


async def test_a_removed_log_is_noticed(path: Path) -> None:
    async with SqliteStore(path) as store:
        await store.insert([sample_job()])
        path.with_name("jobs.db-wal").unlink()
        with pytest.raises(StoreUnavailable, match="removed"):
            await store.insert([sample_job()])


async def test_an_unreadable_job_does_not_block_others(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = sample_job(), sample_job()
    async with SqliteStore(path) as store:
        await store.insert([bad, good])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("UPDATE jobs SET state = CAST('{}' AS BLOB) WHERE id = ?", (bad.id,))
        other.close()
        later = NOW + timedelta(minutes=1)
        taken = await store.take(["default"], now=NOW, until=later, limit=9)
        assert [job.id for job in taken] == [good.id]
        with pytest.raises(UnreadableJob, match=bad.id):
            await store.get([bad.id])
        assert [job and job.id for job in await store.get([good.id])] == [good.id]
    assert bad.id in caplog.text


FORKED = """
import anyio, os, sys
from asyncjobs.errors import StoreUnavailable
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import sample_job

async def child(store: SqliteStore) -> None:
    try:
        async with store:
            await store.insert([sample_job()])
        print("written without a lock")
    except StoreUnavailable as error:
        print(error.reason)

async def main(store: SqliteStore) -> None:
    async with store:
        await store.insert([sample_job()])
        if os.fork() == 0:
            os._exit(run_child(store))
        os.wait()
        await store.insert([sample_job()])

def run_child(store: SqliteStore) -> int:
    import threading
    def work() -> None:
        anyio.run(child, other)
    other = store if sys.argv[2] == "same" else SqliteStore(sys.argv[1])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    sys.stdout.flush()
    return 0

store = SqliteStore(sys.argv[1])
anyio.run(main, store)
if os.fork() == 0:
    anyio.run(child, SqliteStore(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forking is POSIX")
@pytest.mark.parametrize("which", ["same", "another"])
def test_a_forked_child_cannot_open_a_file_that_its_parent_has_open(path: Path, which: str) -> None:
    said = run(FORKED, str(path), which).splitlines()
    assert said == [
        "it was open when this process was forked; open it only after the fork",
        "written without a lock",
    ]


def test_many_processes_can_open_a_new_file_at_once(path: Path) -> None:
    script = """
import anyio, sys
from asyncjobs.stores.sqlite import SqliteStore

async def main() -> None:
    sys.stdin.readline()
    async with SqliteStore(sys.argv[1]):
        print("opened")

anyio.run(main)
"""
    for number in range(3):
        file = str(path.with_name(f"{number}.db"))
        command = [sys.executable, "-c", script, file]
        started = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        for one in started:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        assert [one.communicate()[0].strip() for one in started] == ["opened"] * 4


def test_every_busy_code_is_recognised() -> None:
    for code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_BUSY_SNAPSHOT):
        assert is_busy(failed(code))
    assert not is_busy(failed(sqlite3.SQLITE_FULL))


def failed(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as told")
    error.sqlite_errorcode = code
    return error


class CommitTimer:
    """A clock by which every commit takes the same time; it records the calling thread."""

    def __init__(self) -> None:
        self.commit_seconds = 0.0
        self.thread = 0
        self._now = 0.0

    def __call__(self) -> float:
        self.thread = threading.get_ident()
        self._now += self.commit_seconds
        return self._now


async def test_only_quick_commits_are_made_on_the_event_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = CommitTimer()
    monkeypatch.setattr("asyncjobs.stores.sqlite.store.perf_counter", timer)
    async with SqliteStore(path) as store:
        for _ in range(3):
            await store.insert([sample_job()])
        assert timer.thread == threading.get_ident()
        timer.commit_seconds = 0.01
        for _ in range(2):
            await store.insert([sample_job()])
        assert timer.thread != threading.get_ident()
        for _ in range(20):
            await store.inspect()  # no commit, and so no quick one
        await store.insert([sample_job()])
        assert timer.thread != threading.get_ident()


# several processes


async def test_a_write_waits_for_a_lock_without_blocking_the_loop(
    path: Path,
) -> None:
    job, beats = sample_job(), 0
    async with SqliteStore(path) as store:
        await store.insert([sample_job()])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        async def beat() -> None:
            nonlocal beats
            for _ in range(5):
                await anyio.sleep(0.01)
                beats += 1
            other.execute("ROLLBACK")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat)
            assert await store.insert([job]) == [job]
        other.close()
    assert beats == 5


async def test_writes_of_this_process_send_no_notice(path: Path) -> None:
    noticed: list[Sequence[JobId]] = []

    async def listen(changes: AsyncIterator[Sequence[JobId]]) -> None:
        noticed.append(await anext(changes))

    async with SqliteStore(path, notice=0.0001) as store, aclosing(store.changes()) as changes:
        await anext(changes)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, changes)
            for _ in range(50):
                await store.insert([sample_job()])
                await anyio.sleep(0.0002)  # in which it polls
            assert noticed == []
            async with SqliteStore(path) as other:
                await other.insert([sample_job()])
    assert [*map(list, noticed)] == [[]]


async def test_taking_needs_no_write_lock_if_nothing_is_due(path: Path) -> None:
    async with SqliteStore(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        later = NOW + timedelta(minutes=1)
        assert list(await store.take(["default"], now=NOW, until=later, limit=9)) == []
        other.execute("ROLLBACK")
        other.close()


# A process in the middle of a recovery: the index of the log is void, and its locks are held.
RECOVERING = """
import fcntl, sys
with open(sys.argv[1], "r+b") as shared:
    fcntl.lockf(shared, fcntl.LOCK_EX, 3, 120)  # SQLite's locks to write, checkpoint and recover
    shared.write(bytes(96))
    shared.flush()
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="these locks are POSIX")
async def test_a_read_waits_for_a_recovery_without_blocking_the_loop(path: Path) -> None:
    job = sample_job()
    found: list[Job | None] = []

    async def read_job(store: SqliteStore) -> None:
        found.extend(await store.get([job.id, new_job_id()]))

    async with SqliteStore(path) as store:
        await store.insert([job])
        recovering = subprocess.Popen(  # noqa: ASYNC220  # waiting for it is short
            [sys.executable, "-c", RECOVERING, f"{path}-shm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert recovering.stdout is not None
        assert recovering.stdout.readline() == "locked\n"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_job, store)
            await anyio.wait_all_tasks_blocked()
            assert found == []
            recovering.communicate("go\n")
    assert found == [job, None]


def write(path: Path, statement: str) -> None:
    """Let another program write to the file."""
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def read(path: Path, query: str) -> object:
    """Read one value as another program does."""
    with sqlite3.connect(path) as connection:
        [value] = connection.execute(query).fetchone()
    connection.close()
    return value


def run(script: str, *arguments: str) -> str:
    """Run a script in its own process; return its output."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
