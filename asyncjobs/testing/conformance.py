"""What every store must do: inherit the class, give it one fixture, run pytest."""

from __future__ import annotations

import pytest

from asyncjobs.protocols import Store
from asyncjobs.testing.storing import StoringRules
from asyncjobs.testing.taking import TakingRules


@pytest.mark.anyio
class StoreConformance(StoringRules, TakingRules):
    """The contract of `asyncjobs.protocols.Store`, as tests.

    Override the fixture `store`: it returns a new, empty, unopened store for each test.
    """

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("Override the fixture `store`.")
