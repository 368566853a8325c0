"""A third party's dispatcher is found by its name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asyncjobs.dispatchers import dispatcher_from_name
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.dispatchers.worker import WorkerDispatcher
from asyncjobs.errors import ConfigurationError

SCRIPT = """
from asyncjobs import AsyncJobs
from asyncjobs.dispatchers import dispatcher_from_name
from asyncjobs.errors import ConfigurationError
print(type(dispatcher_from_name("pigeon")).__name__)
for name in ("carrier", "broken"):
    try:
        AsyncJobs("memory://", dispatcher=name)
    except ConfigurationError as error:
        print(error)
"""


def test_a_dispatcher_registered_as_an_entry_point_is_found(tmp_path: Path) -> None:
    (tmp_path / "pigeon.py").write_text(
        "from asyncjobs.dispatchers.worker import WorkerDispatcher\n"
        "class Pigeon(WorkerDispatcher): pass\n"
    )
    info = tmp_path / "pigeon-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeon\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[asyncjobs.dispatchers]\npigeon = pigeon:Pigeon\nbroken = pigeon_engine:make\n"
    )
    command = [sys.executable, "-c", SCRIPT]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    ).stdout
    found, unknown, broken = printed.splitlines()
    assert found == "Pigeon"
    assert unknown == "No dispatcher is named 'carrier' (known: broken, local, pigeon, worker)."
    assert broken == (
        "The dispatcher 'broken' cannot be loaded from pigeon_engine:make: "
        "No module named 'pigeon_engine'"
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("local", LocalDispatcher), ("worker", WorkerDispatcher)]
)
def test_built_in_dispatchers_need_no_entry_point(name: str, kind: type) -> None:
    assert isinstance(dispatcher_from_name(name), kind)


def test_an_unknown_dispatcher_name_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="'nothing'"):
        dispatcher_from_name("nothing")
