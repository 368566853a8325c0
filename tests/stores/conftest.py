"""Servers for the state machines that compare stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.stores.machines import OnPostgres, OnRedis

if TYPE_CHECKING:
    from tests.conftest import PostgresServer


@pytest.fixture
def redis_for_machines(redis_url: str, namespace: str) -> None:
    OnRedis.url, OnRedis.namespace = redis_url, namespace


@pytest.fixture
def postgres_for_machines(postgres: PostgresServer) -> None:
    OnPostgres.server = postgres
