"""Arrays packed by the store arrive at the server as the driver's own would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from asyncjobs.stores.postgres.connections import address_of, connect

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

pytestmark = pytest.mark.anyio

CASES: list[tuple[str, list[Any]]] = [
    ("text", []),
    ("text", ["", "a", "Grüße, 世界 🌍", "a" * 100_000]),
    ("text", [None, "a", None]),
    ("text", [None, None]),
    ("bigint", []),
    ("bigint", [0, -1, 2**63 - 1, -(2**63)]),
    ("bigint", [7, None]),
    ("bytea", []),
    ("bytea", [b"", b"\x00\xff", None]),
]


@pytest.mark.parametrize(("kind", "values"), CASES, ids=str)
async def test_an_array_arrives_as_it_was_given(
    postgres: PostgresServer, kind: str, values: list[Any]
) -> None:
    server = address_of(postgres.url, schema="any", pgbouncer=False, timeout=30)
    session = await connect(server)
    rows = await session.rows(f"SELECT %b::{kind}[], %b::text", values, "after")
    await session.close()
    assert rows == [(values, "after")]
