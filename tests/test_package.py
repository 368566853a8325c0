"""The modules that an import loads, and the package's public names."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import asyncjobs

HEAVY = (
    "sqlite3",
    "psycopg",
    "redis",
    "sqlalchemy",
    "starlette",
    "fastapi",
    "fast_depends",
    "flask",
    "httpx2",
    "uvicorn",
    "opentelemetry",
    "trio",
    "pytest",
)


def imported_by(statement: str) -> set[str]:
    script = f"{statement}; import sys; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(printed.split())


@pytest.mark.parametrize(
    "module", ["asyncjobs", "asyncjobs.http.endpoints", "asyncjobs.portal", "asyncjobs.adapters"]
)
def test_the_core_loads_no_driver_and_no_framework(module: str) -> None:
    assert imported_by(f"import {module}").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("memory://", None),
        ("sqlite:///jobs.db", "sqlite3"),
        ("redis://localhost", "redis"),
        ("postgresql://localhost/app", "psycopg"),
    ],
)
def test_a_queue_loads_the_driver_of_its_own_store_only(url: str, driver: str | None) -> None:
    loaded = imported_by(f"import asyncjobs; asyncjobs.AsyncJobs({url!r})")
    assert loaded & {"sqlite3", "redis", "psycopg"} == {driver} - {None}


def test_every_public_name_exists_and_is_listed_once() -> None:
    assert sorted(asyncjobs.__all__) == asyncjobs.__all__
    assert len(set(asyncjobs.__all__)) == len(asyncjobs.__all__)
    for name in asyncjobs.__all__:
        assert getattr(asyncjobs, name).__module__.startswith(("asyncjobs.", "typing"))


def test_the_distribution_is_installed_under_its_name() -> None:
    assert version("asyncjobs-http")
