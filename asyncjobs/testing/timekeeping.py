"""What a store must do that has a clock."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest


@pytest.mark.anyio
class ClockedConformance:
    """The contract of `asyncjobs.protocols.Clocked`; override the fixture `store`."""

    @pytest.fixture
    def store(self) -> Any:
        raise NotImplementedError("Override the fixture `store`.")

    async def test_the_store_s_time_is_aware_and_in_utc(self, store: Any) -> None:
        async with store:
            assert (await store.now()).utcoffset() == timedelta(0)

    async def test_the_store_s_time_goes_on(self, store: Any) -> None:
        async with store:
            times = [await store.now() for _ in range(50)]
        assert times == sorted(times)
        assert times[0] < times[-1]
