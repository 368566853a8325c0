"""How the Redis store finds the primary where Sentinels know it.

They are asked for each connection. So a failover needs no care: what it breaks is connected anew,
to whatever is in charge by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio import Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

_PORT = 26379


class Sentinels:
    """Those who know the primary that goes by a name; `timeout` is for asking all of them."""

    def __init__(self, name: str, urls: Sequence[str], *, timeout: float) -> None:
        self._name = name
        self._urls = urls
        self._seconds = timeout / len(urls)

    async def primary(self) -> tuple[str, int]:
        """Ask one after the other; raise the driver's error where none knows."""
        asked = cast("Any", Sentinel)([])
        asked.sentinels = self._clients()
        try:
            host, port = await asked.discover_master(self._name)
        except MasterNotFoundError as error:
            # The driver's own words describe its objects, options included.
            reason = f"no Sentinel that answers knows a primary {self._name!r} that is up"
            raise RedisConnectionError(reason) from error
        finally:
            for client in asked.sentinels:
                await client.aclose()
        return str(host), int(port)

    def lead(self, pool: Any) -> None:
        """Let each connection of a pool ask where it shall lead."""
        secure = issubclass(pool.connection_class, SSLConnection)
        pool.connection_class = _SecurelyLed if secure else _Led
        pool.connection_kwargs["sentinels"] = self
        for client in self._clients():
            cast(
                "Any", client.connection_pool
            ).make_connection()  # only now the driver looks at the options

    def _clients(self) -> list[Redis]:
        options = {
            "socket_timeout": self._seconds,
            "socket_connect_timeout": self._seconds,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        return [cast("Any", Redis).from_url(url, **options) for url in self._urls]


class _Led(Connection):
    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        cast("Any", super()).__init__(**options)
        self._sentinels = sentinels

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = await self._sentinels.primary()
        await cast("Any", super()).connect()


class _SecurelyLed(_Led, SSLConnection):
    pass


def sentinels_of(url: str, *, timeout: float) -> tuple[str, Sentinels | None]:
    """Return the URL for the driver, and the Sentinels where `?sentinel=` names what they watch.

    The hosts are theirs then. So are options that begin with `sentinel_`, and those for TLS.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    name = query.pop("sentinel", None)
    if name is None:
        return url, None
    theirs = {
        key.removeprefix("sentinel_"): value
        for key, value in query.items()
        if key.startswith(("sentinel_", "ssl_"))
    }
    ours = {key: value for key, value in query.items() if not key.startswith("sentinel_")}
    credentials, at, hosts = parts.netloc.rpartition("@")
    urls = [_url_of(parts.scheme, host, theirs) for host in hosts.split(",")]
    # Which host does not matter: it is asked for.
    plain = parts._replace(netloc=f"{credentials}{at}localhost", query=urlencode(ours))
    return plain.geturl(), Sentinels(name, urls, timeout=timeout)


def _url_of(scheme: str, host: str, options: dict[str, str]) -> str:
    port = "" if urlsplit(f"//{host}").port else f":{_PORT}"
    return f"{scheme}://{host}{port}?{urlencode(options)}"
