"""Every part of a store's URL has an effect or is refused with the reason."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncjobs import AsyncJobs, JobContext
from asyncjobs.errors import ConfigurationError, StoreUnavailable
from asyncjobs.stores import store_from_url
from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.stores.redis import RedisStore
from asyncjobs.stores.sqlite import SqliteStore
from asyncjobs.testing import sample_job
from custom_store import from_url as folder_from_url
from tests.stores.opening import open_and_close

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("memory://?mode=ro", "none."),
        ("sqlite:///jobs.db?mode=ro", "none."),
        ("sqlite:////var/jobs.db?cache=shared&mode=ro", "none."),
        ("redis://localhost/0?mode=ro", "namespace, password"),
        ("valkeys://localhost/0?decode_responses=1&mode=ro", "namespace, password"),
        ("redis://one,two/0?sentinel=jobs&sentinel_mode=ro", "sentinel_password"),
        ("unix:///run/redis.sock?mode=ro", "namespace, password"),
        ("unix:///run/redis.sock?sentinel=mode", "namespace, password"),
        ("postgresql://localhost/app?mode=ro", "asyncjobs_schema, channel_binding"),
        ("postgres://localhost/app?pgbouncer=true&mode=ro", "pgbouncer, port"),
        ("postgresql:///app?namespace=mode", "sslmode"),
    ],
)
def test_an_unknown_parameter_is_refused_with_the_known_ones(url: str, known: str) -> None:
    with pytest.raises(ConfigurationError, match=r"mode|sentinel|namespace") as caught:
        store_from_url(url)
    assert "has an unknown parameter" in str(caught.value)
    assert known in str(caught.value)


def test_a_parameter_of_a_third_party_s_store_is_refused_too() -> None:
    with pytest.raises(ConfigurationError, match="mode=ro"):
        folder_from_url("folder:///var/jobs?mode=ro")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:top?hunter=1@db/app",
        "redis://:top?hunter&hidden=1@host/0",
        "postgresql://db/app?Password=top&hunter",
        "postgresql://db/app?PassWord=top&hunter=1",
        "redis://host/0?timeout=top&hunter",
    ],
)
def test_a_password_that_looks_like_parameters_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        store_from_url(url)
    assert not any(part in str(caught.value) for part in ("hunter", "hidden", "top"))


@pytest.mark.parametrize("character", ["\0", "\ud800"])
@pytest.mark.parametrize(
    "url",
    [
        "memory://{}",
        "sqlite:///jobs{}.db",
        "redis://localhost{}/0",
        "redis://localhost/0?namespace=a{}b",
        "unix:///run/redis{}.sock",
        "postgresql://localhost{}:5433/app",
        "postgresql://localhost/app?application_name={}",
        "{}",
    ],
)
def test_a_url_with_an_invalid_character_is_refused(url: str, character: str) -> None:
    with pytest.raises(ConfigurationError, match=r"NUL|UTF-8"):
        store_from_url(url.format(character))


@pytest.mark.parametrize("character", ["\0", "\ud800"])
@pytest.mark.parametrize(
    ("store", "place"),
    [
        (SqliteStore, "jobs{}.db"),
        (RedisStore, "redis://localhost{}/0"),
        (PostgresStore, "postgresql://localhost{}:5433/app"),
    ],
)
def test_a_store_made_in_python_refuses_the_same_characters(
    store: Callable[[str], Any], place: str, character: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"NUL|UTF-8"):
        store(place.format(character))


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + "/jobs.db"])
async def test_a_path_that_the_system_refuses_raises_store_unavailable(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(StoreUnavailable):
        await open_and_close(SqliteStore(tmp_path / name))


@pytest.mark.parametrize("url", ["unix://", "unix:///", "unix://run/redis.sock", "unix:redis.sock"])
def test_a_socket_is_named_by_its_absolute_path(url: str) -> None:
    with pytest.raises(ConfigurationError, match="unix:///path"):
        store_from_url(url)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Make a folder whose path leaves room for a socket's name: the limit is about 100 bytes."""
    folder = tempfile.mkdtemp(prefix="asyncjobs-")
    yield Path(folder)
    shutil.rmtree(folder)


async def test_redis_is_reached_by_a_unix_socket(serve: Any, short_folder: Path) -> None:
    socket = short_folder / "redis.sock"
    server = serve("--unixsocket", str(socket), "--requirepass", "", "--unixsocketperm", "700")
    url = f"unix://{socket}?db=1&namespace=shop"
    jobs = AsyncJobs(url)

    @jobs.handler("double")
    async def double(number: int, _job: JobContext) -> int:
        return 2 * number

    async with jobs, store_from_url(url) as beside:
        job = await jobs.enqueue(double, 21)
        assert await job.result(timeout=60) == 42
        [stored] = await beside.get([job.id])
        assert stored is not None
    assert server.ask("KEYS", "*") == []  # those of database 0


async def test_a_socket_without_a_server_raises_store_unavailable(short_folder: Path) -> None:
    url = f"unix://ann:secret@{short_folder}/redis.sock"
    with pytest.raises(StoreUnavailable, match=r"unix:///.*redis\.sock is") as caught:
        async with store_from_url(url) as store:
            await store.insert([sample_job()])
    assert "secret" not in str(caught.value)
