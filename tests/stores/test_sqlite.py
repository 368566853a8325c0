"""One file, whatever happens to it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.encoding import encode_state, encode_submission
from asyncjobs.core.job import Job, JobStatus, new_job_id
from asyncjobs.errors import (
    ConfigurationError,
    NotOpen,
    SchemaError,
    StoreUnavailable,
    UnreadableJob,
)
from asyncjobs.protocols import Change, ChangeNotices, Selection
from asyncjobs.stores import store_from_url
from asyncjobs.stores.sqlite import SqliteStore, from_url
from asyncjobs.stores.sqlite.file import APPLICATION_ID, MIGRATIONS, is_busy
from asyncjobs.testing import (
    ListingConformance,
    StoreConformance,
    sample_job,
)
from asyncjobs.testing.samples import NOW

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


class TestSqliteStore(StoreConformance, ListingConformance):
    @pytest.fixture
    def store(self, path: Path) -> SqliteStore:
        return SqliteStore(path)


class TestSqliteStoreOnASlowDisk(StoreConformance):
    """Where commits are slow, every write goes through the store's thread."""

    @pytest.fixture
    def store(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> SqliteStore:
        monkeypatch.setattr("asyncjobs.stores.sqlite._QUICK_SECONDS", -1.0)
        return SqliteStore(path)


# opening


def test_a_url_names_a_file() -> None:
    assert from_url("sqlite:///jobs.db").path == Path("jobs.db")
    assert from_url("sqlite:////var/jobs.db").path == Path("/var/jobs.db")


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite://jobs.db", "sqlite:///:memory:"]
)
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///relative/path"):
        store_from_url(url)


def test_an_unknown_scheme_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="memory, postgres, postgresql, redis, rediss, sq"):
        store_from_url("mongodb://localhost")


async def test_a_closed_store_says_so(path: Path) -> None:
    with pytest.raises(NotOpen):
        await SqliteStore(path).get([])


async def test_others_come_to_their_turn_while_somebody_reads_in_a_loop(path: Path) -> None:
    seen = False

    async def look() -> None:
        nonlocal seen
        seen = True

    async with SqliteStore(path) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        for _ in range(100):
            await store.get([new_job_id()])
        assert seen


async def test_the_file_is_durable_and_marked_as_ours(path: Path) -> None:
    async with SqliteStore(path) as store:
        assert isinstance(store, ChangeNotices)
        [mode] = store._opened.writer.execute("PRAGMA journal_mode").fetchone()
        [level] = store._opened.writer.execute("PRAGMA synchronous").fetchone()
        assert (mode, level) == ("wal", 2)
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert file.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    file.close()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="folder does not exist"):
        await opened(tmp_path / "nowhere" / "jobs.db")


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="unable to open"):
        await opened(tmp_path)


async def test_a_file_that_is_no_database_is_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"Dear diary, today " * 100)
    with pytest.raises(SchemaError, match="not an SQLite database"):
        await opened(path)
    assert path.read_bytes().startswith(b"Dear diary")


async def test_another_program_s_database_is_left_as_it_is(path: Path) -> None:
    write(path, "CREATE TABLE diary (day TEXT)")
    before = path.read_bytes()
    with pytest.raises(SchemaError, match="another program"):
        await opened(path)
    assert path.read_bytes() == before


async def test_a_database_of_a_newer_version_is_left_as_it_is(path: Path) -> None:
    await opened(path)
    write(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(SchemaError, match=f"schema version {len(MIGRATIONS) + 1}"):
        await opened(path)


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


async def test_an_interrupted_migration_leaves_nothing_half_made(path: Path) -> None:
    script = """
import sys, os, sqlite3
from asyncjobs.stores.sqlite import file as sqlite_file
sqlite_file.MIGRATIONS = (*sqlite_file.MIGRATIONS, ("CREATE TABLE more (x)", "NONSENSE"))
try:
    sqlite_file.File(sqlite_file.Path(sys.argv[1])).open()
except Exception as error:
    print(type(error).__name__)
"""
    await opened(path)
    assert run(script, str(path)).strip() == "StoreUnavailable"
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert file.execute("SELECT 1 FROM sqlite_schema WHERE name = 'more'").fetchone() is None
    file.close()
    await opened(path)


async def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path) -> None:
    script = """
import sys
from asyncjobs.stores.sqlite import file as sqlite_file
sqlite_file.MIGRATIONS = sqlite_file.MIGRATIONS[:1]
sqlite_file.File(sqlite_file.Path(sys.argv[1])).open()
"""
    run(script, str(path))
    jobs = [sample_job(), sample_job(user_id="ann", type="import")]
    with sqlite3.connect(path) as file:
        for seq, job in enumerate(jobs):
            hot = (seq, job.id, job.lane, None, job.revision, encode_state(job))
            file.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)", hot)
            wide = (seq, encode_submission(job), job.payload_json)
            file.execute("INSERT INTO submissions VALUES (?, ?, ?)", wide)
    file.close()
    async with SqliteStore(path) as store:
        mine = await store.list(Selection("ann", "import", JobStatus.PENDING), limit=9)
        every = await store.list(Selection(status=JobStatus.PENDING), limit=9)
    assert [job.id for job in mine.jobs] == [jobs[1].id]
    assert [job.id for job in every.jobs] == [jobs[1].id, jobs[0].id]


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("owner = ? AND seq < ? AND status = 'failed'", "jobs_owned"),
        ("type = ? AND seq < ? AND status = 'completed'", "jobs_completed"),
    ],
)
async def test_lists_that_are_read_often_have_an_index(path: Path, where: str, index: str) -> None:
    await opened(path)
    query = f"EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE {where} ORDER BY seq DESC"  # noqa: S608
    with sqlite3.connect(path) as file:
        [(*_, plan)] = file.execute(query, ("x", 9)).fetchall()
    file.close()
    assert f"USING INDEX {index}" in plan


async def test_many_processes_may_open_a_new_file_at_once(path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(opened, path)
    await opened(path)


# writing where it cannot be


async def test_a_removed_file_is_not_written_into_the_void(path: Path) -> None:
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
def test_a_full_disk_loses_nothing_and_writes_nothing_by_halves(path: Path) -> None:
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
    # Not in pytest's own folder, into which no other user may look.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        await opened(path)
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        said = run(READ_ONLY, str(path))
        Path(folder).chmod(0o755)
    assert "readonly" in said or "read-only" in said


async def test_a_relative_path_means_where_the_store_was_opened(
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


async def test_a_job_that_cannot_be_read_stops_no_other(
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
def test_a_file_is_not_opened_again_by_the_child_of_who_has_it_open(path: Path, which: str) -> None:
    said = run(FORKED, str(path), which).splitlines()
    assert said == [
        "it was open when this process was forked; open it after the fork only",
        "written without a lock",
    ]


def test_new_processes_may_all_open_a_new_file(path: Path) -> None:
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


def test_being_busy_has_several_kinds() -> None:
    for code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_BUSY_SNAPSHOT):
        assert is_busy(failed(code))
    assert not is_busy(failed(sqlite3.SQLITE_FULL))


def failed(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as told")
    error.sqlite_errorcode = code
    return error


async def test_slow_commits_stay_off_the_event_loop(path: Path) -> None:
    async with SqliteStore(path, notice=0.001) as store:
        opened_store = store._opened
        for _ in range(8):
            opened_store.note_commit(0.01)
        for _ in range(20):
            await store._in_thread(lambda: None)
        assert not opened_store.quick


# several at once


async def test_two_processes_share_a_file(path: Path) -> None:
    job = sample_job()
    async with SqliteStore(path) as one, SqliteStore(path) as other:
        await one.insert([job])
        started = lifecycle.start(job, NOW, None)
        assert list(await other.replace([Change(started, job.revision)])) == [True]
        assert list(await one.get([job.id])) == [started]
        assert list(await one.replace([Change(started, job.revision)])) == [False]


@pytest.mark.parametrize("seconds", [-1.0, 1.0], ids=["in its thread", "at once"])
async def test_many_writers_in_two_processes_lose_no_update(
    path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncjobs.stores.sqlite._QUICK_SECONDS", seconds)
    job = sample_job()
    async with SqliteStore(path) as one, SqliteStore(path) as other:
        await one.insert([job])

        async def count(store: SqliteStore) -> None:
            for _ in range(25):
                done = False
                while not done:
                    [found] = await store.get([job.id])
                    assert found is not None
                    change = Change(next_revision(found), found.revision)
                    [done] = await store.replace([change])

        async with anyio.create_task_group() as tasks:
            for store in (one, other):
                tasks.start_soon(count, store)
                tasks.start_soon(count, store)
        [found] = await one.get([job.id])
    assert found is not None
    assert found.revision == 101


def next_revision(job: Job) -> Job:
    return job.model_copy(update={"revision": job.revision + 1})


async def test_a_write_waits_for_another_process_s_lock_without_stopping_the_loop(
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


async def test_other_processes_writes_are_noticed_and_one_s_own_are_not(path: Path) -> None:
    async with SqliteStore(path, notice=0.005) as one, SqliteStore(path) as other:
        noticed, begun = 0, anyio.Event()

        async def watch() -> None:
            nonlocal noticed
            async for ids in one.changes():
                assert list(ids) == []
                noticed += 1
                begun.set()  # what was written before may not have been noticed
                if noticed == 2:
                    tasks.cancel_scope.cancel()

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch)
                await begun.wait()
                await one.insert([sample_job()])
                await anyio.sleep(0.05)
                assert noticed == 1
                await other.insert([sample_job()])
                await anyio.sleep_forever()
    assert noticed == 2


async def test_taking_needs_no_write_lock_where_nothing_is_due(path: Path) -> None:
    async with SqliteStore(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        later = NOW + timedelta(minutes=1)
        assert list(await store.take(["default"], now=NOW, until=later, limit=9)) == []
        other.execute("ROLLBACK")
        other.close()


async def test_a_reader_that_is_locked_out_waits_in_the_thread(path: Path) -> None:
    job = sample_job()
    async with SqliteStore(path) as store:
        await store.insert([job])
        store._opened.reader.close()
        store._opened.reader = locked_out()
        assert list(await store.get([job.id, new_job_id()])) == [job, None]


def locked_out() -> sqlite3.Connection:
    """Return a connection on which every read fails as one that is locked does."""
    return sqlite3.connect(":memory:", check_same_thread=False)


async def opened(path: Path) -> None:
    """Open and close a store."""
    async with SqliteStore(path):
        pass


def write(path: Path, statement: str) -> None:
    """Let another program write into the file."""
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def run(script: str, *arguments: str) -> str:
    """Run a script in a process of its own; return what it printed."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
