"""A server that many share, whatever happens to it."""

from __future__ import annotations

import pytest

from asyncjobs.stores.redis import RedisStore
from asyncjobs.testing import CountingConformance, ListingConformance, StoreConformance

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(redis_url: str, namespace: str) -> RedisStore:
    return RedisStore(redis_url, namespace=namespace)


class TestRedisStore(StoreConformance, ListingConformance, CountingConformance):
    @pytest.fixture
    def store(self, redis_url: str, namespace: str) -> RedisStore:
        return RedisStore(redis_url, namespace=namespace)
