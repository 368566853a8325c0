"""`migrate`: the tables of a store."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import checked

if TYPE_CHECKING:
    from tests.cli.conftest import Shell
    from tests.conftest import PostgresServer


pytestmark = pytest.mark.every_store(without="memory")


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


@pytest.mark.parametrize("store", ["sqlite:///jobs.db", "postgresql://localhost/app"])
def test_migrating_from_an_unknown_version_is_an_error(asyncjobs: Shell, store: str) -> None:
    result = asyncjobs("migrate", "--sql", "--since", "99", "--store", store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "99" in result.stderr


def test_a_store_without_tables_has_no_script(asyncjobs: Shell) -> None:
    result = asyncjobs("migrate", "--sql", "--store", "redis://localhost")
    assert (result.exit_code, "no tables" in result.stderr) == (2, True)
