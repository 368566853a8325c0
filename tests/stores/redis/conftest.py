"""Fixtures of the Redis store's tests."""

from __future__ import annotations

import pytest

from asyncjobs.stores.redis import RedisStore


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, which the driver needs."""
    return "asyncio"


@pytest.fixture
def store(redis_url: str, namespace: str) -> RedisStore:
    return RedisStore(redis_url, namespace=namespace)


@pytest.fixture
def other(redis_url: str, namespace: str) -> RedisStore:
    """Make a second store of the same jobs, as another process does."""
    return RedisStore(redis_url, namespace=namespace)
