"""The rules of dispatchers hold for whole ones and are broken, by name, by broken ones."""

import pytest

from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import Crew, DispatcherConformance


class TestLocalDispatcher(DispatcherConformance):
    @pytest.fixture
    def crew(self) -> Crew:
        return Crew(MemoryStore(), LocalDispatcher(concurrency=Crew.slots))
