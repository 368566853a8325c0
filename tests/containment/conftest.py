"""Misbehaving handlers, in a module that child processes can import."""

from __future__ import annotations

import sys
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def anyio_backend(asyncio_alone: str) -> str:
    return asyncio_alone  # on trio, handlers in the runtime's task group may harm it


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Generator[ModuleType]:
    """Import the handlers' module by the name under which child processes find it."""
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    module = import_module("misbehaviour")
    yield module
    module.mend_the_log()
