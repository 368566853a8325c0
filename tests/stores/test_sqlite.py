from __future__ import annotations

from pathlib import Path

import pytest

from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import StoreConformance


class TestSqliteStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SqliteStore:
        return SqliteStore(tmp_path / "jobs.db")
