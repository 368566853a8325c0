"""No message shows any part of a password, for any URL of a store."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncjobs.errors import AsyncJobsError, ConfigurationError, NotOpen
from asyncjobs.stores import store_from_url
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.stores.redis import RedisStore

SCHEMES = ["postgresql", "postgres", "redis", "rediss", "valkey", "unix", "memory", "sqlite"]

# Words that occur nowhere else in a message, and digits that may be parsed as a port.
PARTS = ["Zq7x", "73915", "8246", "xXyYz"]
DELIMITERS = ["", "@", ":", "/", "?", "#", "[", "]", "%", "%40", "&", "=", ",", " ", "\\", "'", "℀"]

passwords = st.lists(
    st.tuples(st.sampled_from(PARTS), st.sampled_from(DELIMITERS)), min_size=1, max_size=4
).map(lambda parts: "".join(word for part in parts for word in part))

shapes = st.sampled_from(
    [
        "{scheme}://ann:{password}@127.0.0.1:1/{database}",
        "{scheme}://:{password}@127.0.0.1:1/{database}?client_encoding=utf8",
        "{scheme}://:{password}@/{database}",
        "{scheme}://ann:{password}@one,two/{database}?sentinel=jobs",
        "{scheme}://ann:{password}@[::1]:1/{database}",
        "{scheme}://an@n:{password}@127.0.0.1:1/{database}",
        "{scheme}://127.0.0.1:1/{database}?password={password}",
        "{scheme}://127.0.0.1:1/{database}?sentinel=jobs&sentinel_password={password}",
        "{scheme}://ann:{password}@127.0.0.1/{database}#fragment",
        "{scheme}:ann:{password}@127.0.0.1:1/{database}",
        "{scheme}:/ann:{password}@127.0.0.1:1/{database}",
        " {scheme}://ann:{password}@127.0.0.1:1/{database}",
        "{scheme}+driver://ann:{password}@127.0.0.1:1/{database}",
        "//ann:{password}@127.0.0.1:1/{database}",
    ]
)


def shown_of(url: str) -> str:
    """Return all visible texts of a URL: errors with their causes, and the store's texts."""
    try:
        store = store_from_url(url)
    except ConfigurationError as error:
        return "".join(traceback.format_exception(error, limit=0))
    texts = [repr(store)]
    try:
        store.get([]).send(None)
    except NotOpen as error:
        texts.append(str(error))
    if isinstance(store, PostgresStore):
        texts += [store.server.name, repr(store.server)]
    return "\n".join(texts)


@given(shape=shapes, scheme=st.sampled_from(SCHEMES), password=passwords)
@example("{scheme}://ann:{password}@127.0.0.1:1/{database}", "postgresql", "Zq7x@xXyYz")
@example("{scheme}://ann:{password}@127.0.0.1:1/{database}", "postgresql", "8246/xXyYz")
@example("{scheme}://ann:{password}@127.0.0.1:1/{database}", "redis", "8246#xXyYz")
@example("{scheme}://ann:{password}@127.0.0.1:1/{database}", "redis", "8246?xXyYz")
@example("{scheme}://ann:{password}@127.0.0.1:1/{database}", "redis", "[xXyYz]")
@example("{scheme}://ann:{password}@127.0.0.1:1/{database}", "redis", "xXyYz℀")
@example("{scheme}://127.0.0.1:1/{database}?password={password}", "redis", "Zq7x&xXyYz=")
@settings(deadline=None)
def test_no_part_of_a_password_is_shown(shape: str, scheme: str, password: str) -> None:
    database = "app" if scheme.startswith("postgres") else "0"
    url = shape.format(scheme=scheme, password=password, database=database)
    shown = shown_of(url)
    assert not [part for part in PARTS if part in shown], shown


@pytest.mark.parametrize("password", ["Zq7x@xXyYz", "8246/xXyYz", "Zq7x:xXyYz", "Zq7x%40xXyYz"])
@pytest.mark.parametrize("make", [PostgresStore, RedisStore])
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_part_of_a_password_is_shown_if_the_server_is_unavailable(
    make: type[PostgresStore | RedisStore], password: str
) -> None:
    scheme, database = ("postgresql", "app") if make is PostgresStore else ("redis", "0")
    shown = ""
    try:
        store = make(f"{scheme}://ann:{password}@127.0.0.1:1/{database}")
        async with store:
            raise AssertionError("there is a server at port 1")
    except AsyncJobsError as error:
        shown = "".join(traceback.format_exception(error, limit=0))
    assert shown
    assert not [part for part in PARTS if part in shown], shown


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://ann:x%40y@db.example:6432/app", "postgresql://db.example:6432/app"),
        ("postgresql://ann@db1,db2:5433/app?sslmode=require", "postgresql://db1,db2:,5433/app"),
        ("postgresql:///app?host=/run/postgresql", "postgresql:///run/postgresql:5432/app"),
        ("postgresql://%2Frun%2Fpostgresql/app", "postgresql:///run/postgresql:5432/app"),
        ("postgresql://[::1]:5433/app", "postgresql://::1:5433/app"),
    ],
)
def test_the_store_has_a_name_without_credentials(url: str, name: str) -> None:
    store = store_from_url(url)
    assert isinstance(store, PostgresStore)
    assert store.server.name == name


@pytest.mark.parametrize(
    "url",
    [
        "redis://:x%2Fy@cache.example:6380/1",
        "redis://ann:x%40y@one,two:26380,[::1]:26379/0?sentinel=jobs",
        "unix:///run/valkey.sock?db=1&password=x%26y",
        "rediss://ann@cache.example",
    ],
)
def test_an_escaped_password_is_accepted(url: str) -> None:
    assert isinstance(store_from_url(url), RedisStore)
