"""The reference store."""

from __future__ import annotations

import pytest

from asyncjobs.errors import ConfigurationError
from asyncjobs.stores.memory import MemoryStore, from_url
from asyncjobs.testing import (
    ListingConformance,
    StoreConformance,
)


class TestMemoryStore(StoreConformance, ListingConformance):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


def test_its_url_has_nothing_after_the_scheme() -> None:
    assert isinstance(from_url("memory://"), MemoryStore)
    with pytest.raises(ConfigurationError, match="memory://"):
        from_url("memory://jobs")
