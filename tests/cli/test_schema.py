"""`migrate` and `check`: the tables and the settings of a store."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asyncjobs.protocols import Finding

if TYPE_CHECKING:
    from tests.cli.conftest import Shell
    from tests.conftest import PostgresServer, Serve


pytestmark = pytest.mark.every_store(without="memory")


def checked(asyncjobs: Shell, url: str) -> tuple[int, dict[str, tuple[str, str]]]:
    result = asyncjobs("check", "--json", "--store", url)
    findings = [Finding(**found) for found in json.loads(result.stdout)["findings"]]
    return result.exit_code, {it.subject: (it.found, it.advice) for it in findings}


def test_migrate_creates_the_tables_and_may_be_repeated(asyncjobs: Shell, url: str) -> None:
    for _ in "12":
        result = asyncjobs("migrate", "--store", url)
        assert (result.exit_code, result.stdout) == (0, "The store is up to date.\n")
    assert asyncjobs("list", "--store", url).exit_code == 0


def test_the_script_for_sqlite_creates_the_same_file_as_the_store(
    asyncjobs: Shell, file: str, tmp_path: Path
) -> None:
    script = asyncjobs("migrate", "--sql", "--store", file).stdout
    assert list(tmp_path.iterdir()) == []
    with sqlite3.connect(tmp_path / "jobs.db", isolation_level=None) as db:
        db.executescript(script)
        made = db.execute("SELECT name, sql FROM sqlite_schema").fetchall()
    db.close()
    code, found = checked(asyncjobs, file)
    assert (code, found["schema version"]) == (0, ("1 of 1", ""))
    other = f"sqlite:///{tmp_path}/other.db"
    asyncjobs("migrate", "--store", other)
    with sqlite3.connect(tmp_path / "other.db") as db:
        assert db.execute("SELECT name, sql FROM sqlite_schema").fetchall() == made
    db.close()


def test_the_script_for_postgresql_names_the_schema_of_the_url(
    asyncjobs: Shell, postgres: PostgresServer, schema: str
) -> None:
    url = f"{postgres.url}?asyncjobs_schema={schema}"
    script = asyncjobs("migrate", "--sql", "--store", url).stdout
    postgres.execute(script)
    _, found = checked(asyncjobs, url)
    assert found["schema version"] == ("1 of 1", "")
    none = asyncjobs("migrate", "--sql", "--since", "1", "--store", url).stdout
    assert "CREATE TABLE" in script
    assert f'CREATE TABLE "{schema}".jobs' not in none


def test_migrate_prints_json(asyncjobs: Shell, file: str) -> None:
    script = asyncjobs("migrate", "--sql", "--store", file).stdout
    shown = asyncjobs("migrate", "--sql", "--json", "--store", file)
    assert json.loads(shown.stdout) == {"sql": script}
    done = asyncjobs("migrate", "--json", "--store", file)
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"upToDate": True})


def test_check_prints_the_settings_of_every_store(asyncjobs: Shell, url: str) -> None:
    asyncjobs("migrate", "--store", url)
    code, found = checked(asyncjobs, url)
    assert found
    assert bool(code) is any(advice for _, advice in found.values())
    sheet = asyncjobs("check", "--store", url)
    assert sheet.exit_code == code
    assert sheet.stdout.split()[:3] == ["what", "found", "advice"]
    assert all(f"\n{subject} " in sheet.stdout for subject in found)


@pytest.mark.parametrize("store", ["sqlite:///jobs.db", "postgresql://localhost/app"])
def test_there_is_no_script_since_an_unknown_version(asyncjobs: Shell, store: str) -> None:
    result = asyncjobs("migrate", "--sql", "--since", "99", "--store", store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "99" in result.stderr


def test_a_store_without_tables_has_no_script(asyncjobs: Shell) -> None:
    result = asyncjobs("migrate", "--sql", "--store", "redis://localhost")
    assert (result.exit_code, "no tables" in result.stderr) == (2, True)


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
    assert (code, found["settings"][0]) == (1, "not told")
