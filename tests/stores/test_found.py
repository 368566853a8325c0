"""Third-party stores are found by the scheme of their URL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncjobs.errors import ConfigurationError
from asyncjobs.stores import store_from_url
from asyncjobs.stores.memory import MemoryStore

SCRIPT = """
from asyncjobs import AsyncJobs
from asyncjobs.errors import ConfigurationError
print(type(AsyncJobs("shelf://anything").store).__name__)
for url in ("cupboard://me:secret@anything", "broken://anything"):
    try:
        AsyncJobs(url)
    except ConfigurationError as error:
        print(error)
"""


def test_a_store_registered_as_an_entry_point_is_found(tmp_path: Path) -> None:
    (tmp_path / "shelf.py").write_text(
        "from asyncjobs.stores.memory import MemoryStore\n"
        "class Shelf(MemoryStore): pass\n"
        "def from_url(url): return Shelf()\n"
    )
    info = tmp_path / "shelf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[asyncjobs.stores]\nshelf = shelf:from_url\nbroken = shelf_driver:from_url\n"
    )
    command = [sys.executable, "-c", SCRIPT]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    ).stdout
    found, unknown, broken = printed.splitlines()
    assert found == "Shelf"
    assert "'cupboard'" in unknown
    assert (
        "broken, memory, postgres, postgresql, redis, rediss, shelf, sqlite, unix, valkey"
        in unknown
    )
    assert "secret" not in unknown
    assert broken == (
        "The store for broken:// cannot be loaded from shelf_driver:from_url: "
        "No module named 'shelf_driver'"
    )


def test_built_in_stores_need_no_entry_point() -> None:
    assert isinstance(store_from_url("memory://"), MemoryStore)


@pytest.mark.parametrize("url", ["", "jobs.db", "://", "shelf", "redis://[secret"])
def test_an_unknown_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        store_from_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "url", "extra"),
    [
        ("redis", "valkey://:secret@localhost", "redis"),
        ("psycopg", "postgresql://me:secret@localhost/app", "postgres"),
    ],
)
def test_a_missing_driver_raises_an_error_with_the_extra_to_install(
    driver: str, url: str, extra: str
) -> None:
    script = f"""
import sys
sys.modules[{driver!r}] = None
from asyncjobs import AsyncJobs
from asyncjobs.errors import ConfigurationError
try:
    AsyncJobs({url!r})
except ConfigurationError as error:
    print(error)
"""
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"pip install 'asyncjobs-http[{extra}]'" in printed
    assert repr(driver) in printed
    assert "secret" not in printed


def test_an_incomplete_driver_raises_an_error_with_the_extra() -> None:
    script = """
from asyncjobs import AsyncJobs
from asyncjobs.errors import ConfigurationError
try:
    AsyncJobs("postgresql://me:secret@localhost/app")
except ConfigurationError as error:
    print(error)
"""
    # psycopg fails like this without libpq.
    environment = {**os.environ, "PSYCOPG_IMPL": "none"}
    command = [sys.executable, "-c", script]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout
    assert printed.startswith("The postgres store cannot load its driver (")
    assert printed.endswith("pip install 'asyncjobs-http[postgres]'.\n")
    assert len(printed.splitlines()) == 1
