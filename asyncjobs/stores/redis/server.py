"""The server of `stores.redis`: how it is found, reached, asked, and asked again.

Sentinels are asked for the primary at each connection. So a failover needs no care: a broken
connection is made anew, to the server that is in charge by then.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import anyio
from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    Redis,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)
from typing_extensions import override

from asyncjobs.errors import ConfigurationError, StoreUnavailable
from asyncjobs.stores.redis.scripts import Argument, Script
from asyncjobs.stores.retries import with_retries
from asyncjobs.stores.urls import check_characters, check_credentials, check_parameters

T = TypeVar("T")

# The schemes of our URLs, and what the driver calls them.
_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
}

# Of the driver's options those that a text can express, and that do not change what calls mean.
_OPTIONS = frozenset(
    {
        *("namespace", "db", "username", "password", "client_name"),
        *("health_check_interval", "max_connections"),
        *("socket_connect_timeout", "socket_keepalive", "socket_timeout"),
        *("ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile"),
        *("ssl_check_hostname", "ssl_ciphers", "ssl_keyfile", "ssl_min_version", "ssl_password"),
    }
)

# An idle connection is tried before it is used, as something in between may have dropped it.
_IDLE_SECONDS = 30

_FORM = (
    "The Redis store's URL is redis://host:port/database (valkey://, and with TLS rediss:// or "
    "valkeys://), or unix:///path/of/socket?db=database"
)
_DATABASE = re.compile(r"(/\d*)?")

_SENTINEL_OPTIONS = frozenset(
    {
        *("sentinel", "sentinel_username", "sentinel_password", "sentinel_client_name"),
        *(
            "sentinel_socket_connect_timeout",
            "sentinel_socket_keepalive",
            "sentinel_socket_timeout",
        ),
    }
)

# The server's words, and the driver's; not every version of it knows them all.
_NOT_IN_CHARGE = (
    *("READONLY", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN"),
    *("ReadOnlyError", "AskError", "TryAgainError", "ClusterDownError", "MasterDownError"),
)

_SENTINEL_PORT = 26379

_MOVED = re.compile(r"(?:MOVED )?\d+ (.*):(\d+)")


def split_url(url: str) -> tuple[str, str | None]:
    """Return the URL as the driver wants it, and the namespace it names."""
    check_characters("The URL of the Redis store", url)
    check_credentials("The URL of the Redis store", url)
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(f"{_FORM}; got the scheme {parts.scheme!r}.")
    # The driver would go to the database 0 of this machine, or to another socket, without a word.
    if parts.scheme == "unix":
        if "://" not in url or parts.netloc.rpartition("@")[2] or len(parts.path) < 2:
            raise ConfigurationError(f"{_FORM}; a socket's path is absolute, this one is not.")
    elif "://" not in url or _DATABASE.fullmatch(parts.path) is None:
        # Nothing of it may be shown: a password with a slash in it looks like a path.
        raise ConfigurationError(f"{_FORM}, where the database is a number; this one is not so.")
    known = _OPTIONS if parts.scheme == "unix" else _OPTIONS | _SENTINEL_OPTIONS
    check_parameters("Redis", url, known)
    query = parse_qsl(parts.query, keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in query if name != "namespace"])
    return (
        parts._replace(scheme=_SCHEMES[parts.scheme], query=rest).geturl(),
        dict(query).get("namespace"),
    )


def name_of(url: str) -> str:
    """Name the server of a URL, without password and options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2] or 'localhost'}{parts.path}"


class _PackingConnection(AbstractConnection):
    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack the call of a script, which has hundreds of arguments; all else as the driver does.

        The driver joins what it has to each further argument, and asks of each what it is.
        """
        if args[0] != "EVALSHA":
            packed: list[bytes] = cast("Any", super()).pack_command(*args)
            return packed
        parts = [b"*%d\r\n" % len(args)]
        for arg in args:
            if type(arg) is bytes:
                value = arg
            else:
                value = arg.encode() if isinstance(arg, str) else b"%d" % arg
            parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
        return [b"".join(parts)]

    @override
    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send at once what the socket takes; the driver makes a task for each command."""
        driver, connection = cast("Any", super()), cast("Any", self)
        if not self.is_connected or isinstance(command, str):
            await driver.send_packed_command(command, check_health)
            return
        if check_health:
            await connection.check_health()
        writer = connection._writer  # noqa: SLF001  # of the class that this one extends
        writer.writelines([command] if isinstance(command, bytes) else command)
        if writer.transport.get_write_buffer_size():
            # With its time-out the driver waits for the rest.
            await driver.send_packed_command([], check_health=False)


class _Connection(_PackingConnection, Connection):
    pass


class _SSLConnection(_Connection, SSLConnection):
    pass


class _UnixConnection(_PackingConnection, UnixDomainSocketConnection):
    pass


_CLASSES = {
    Connection: _Connection,
    SSLConnection: _SSLConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class Sentinels:
    """The servers that know the primary of a name; `timeout` is for asking all of them."""

    def __init__(self, name: str, urls: Sequence[str], *, timeout: float) -> None:
        self._name = name
        self._urls = urls
        self._seconds = timeout / len(urls)

    async def primary(self) -> tuple[str, int]:
        """Ask one after the other; raise the driver's error if none knows."""
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
        """Let each connection of a pool ask for its server."""
        secure = issubclass(pool.connection_class, SSLConnection)
        pool.connection_class = _LedSSLConnection if secure else _LedConnection
        pool.connection_kwargs["sentinels"] = self
        for client in self._clients():
            # Only now the driver looks at the options.
            cast("Any", client.connection_pool).make_connection()

    def _clients(self) -> list[Redis]:
        options = {
            "socket_timeout": self._seconds,
            "socket_connect_timeout": self._seconds,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        return [cast("Any", Redis).from_url(url, **options) for url in self._urls]


class _LedConnection(_Connection):
    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        cast("Any", super()).__init__(**options)
        self._sentinels = sentinels

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = await self._sentinels.primary()
        await cast("Any", super()).connect()


class _LedSSLConnection(_LedConnection, _SSLConnection):
    pass


def sentinels_of(url: str, *, timeout: float) -> tuple[str, Sentinels | None]:
    """Return the URL for the driver, and the Sentinels if `?sentinel=` names their primary.

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
    port = "" if urlsplit(f"//{host}").port else f":{_SENTINEL_PORT}"
    return f"{scheme}://{host}{port}?{urlencode(options)}"


class RedisServer:
    """A pool of connections to where the keys are.

    In a cluster that is one node, since all keys share one slot. Where another one than the URL's
    is named as being in charge, it is followed, until it cannot be reached.
    """

    def __init__(self, url: str, *, timeout: float, connections: int) -> None:
        self.name = name_of(url)
        self.timeout = timeout
        try:
            self._url, self._sentinels = sentinels_of(url, timeout=timeout)
        except ValueError as error:
            raise self._unusable(error) from error
        self._is_socket = url.startswith("unix:")
        self._connections = connections
        self._client = self.connect(connections)
        self._retired: list[Redis] = []
        #: How often another server was found to be in charge.
        self.turns = 0
        self._node: tuple[str, int] | None = None

    def connect(self, connections: int, *, idle: int = _IDLE_SECONDS) -> Redis:
        """Make a client; no connection is opened yet."""
        try:
            pool = cast("Any", BlockingConnectionPool).from_url(
                self._url,
                max_connections=connections,
                timeout=self.timeout,
                socket_timeout=self.timeout,
                socket_connect_timeout=self.timeout,
                **({} if self._is_socket else {"socket_keepalive": True}),
                health_check_interval=idle,
                # What may be repeated, and what may not, the driver cannot know.
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
            pool.connection_class = _CLASSES[pool.connection_class]
            if self._sentinels is not None:
                self._sentinels.lead(pool)
            # Only now the driver looks at the options.
            pool.make_connection()
        except (TypeError, ValueError, RedisError) as error:
            raise self._unusable(error) from error
        return Redis(connection_pool=pool)

    async def close(self) -> None:
        """Close all connections."""
        for client in (self._client, *self._retired):
            await disconnect(client)
        self._retired = []

    async def command(self, *words: Argument) -> Any:
        """Ask for what changes nothing when it is repeated."""
        return await self.ask(lambda client: execute(client, *words), repeat=True)

    async def read(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Ask several such things in one round trip."""

        async def pipelined(client: Redis) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            for words in commands:
                cast("Any", pipeline).execute_command(*words)
            answers = await pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return list(answers)

        return await self.ask(pipelined, repeat=True)

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[Argument], *, repeat: bool
    ) -> Any:
        """Run a script; `repeat` says whether doing so twice does no harm."""

        async def evaluate(client: Redis) -> Any:
            try:
                return await execute(client, "EVALSHA", script.digest, len(keys), *keys, *args)
            except NoScriptError:  # a new server, or one whose scripts were flushed
                return await execute(client, "EVAL", script.text, len(keys), *keys, *args)

        return await self.ask(evaluate, repeat=repeat)

    async def ask(self, call: Callable[[Redis], Awaitable[T]], *, repeat: bool) -> T:
        """Call, and call again where that may be; every error comes out as `StoreUnavailable`.

        What a server has refused because it is not in charge was not done, and may be repeated. A
        cancelled caller waits for the answer, or it would not know what was done; the driver's
        time-outs bound it.
        """
        give_up_at = anyio.current_time() + self.timeout

        async def once() -> T:
            with self.errors():
                return await self._once(call)

        def may_repeat(error: StoreUnavailable) -> bool:
            again = _is_undone(error) or (repeat and _may_pass(error))
            return again and anyio.current_time() <= give_up_at

        with anyio.CancelScope(shield=True):
            return await with_retries(once, StoreUnavailable, may_repeat)
        raise AssertionError("a shielded scope ends by its return")

    @contextmanager
    def errors(self) -> Generator[None]:
        """Turn what the driver raises into what a store raises."""
        try:
            yield
        except (RedisError, OSError) as error:
            raise StoreUnavailable(self.name, str(error) or type(error).__name__) from error

    def _unusable(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(f"The URL of the store {self.name} cannot be used: {error}")

    async def _once(self, call: Callable[[Redis], Awaitable[T]]) -> T:
        client = self._client
        try:
            return await call(client)
        except RedisConnectionError:
            if self._node is not None and client is self._client:
                await self._turn_to(None)
            else:
                await _drop_idle(client)  # what has ended this connection has ended those, too
            raise
        except ReadOnlyError:
            # A failover may have made a replica of it: look it up anew.
            self.turns += 1
            await _drop_idle(client)
            raise
        except ResponseError as error:
            # To follow it to another machine, a socket's URL says too little.
            if (node := _moved_to(error)) is None or self._is_socket:
                raise
            if client is self._client:
                await self._turn_to(node)
            return await call(self._client)

    async def _turn_to(self, node: tuple[str, int] | None) -> None:
        """Use another node, or (None) the one that the URL names."""
        old, self._client = self._client, self.connect(self._connections)
        self._node = node
        self.turns += 1
        if node is not None:
            host, port = node
            self._client.connection_pool.connection_kwargs.update(
                {"port": port, **({"host": host} if host else {})}
            )
        self._retired.append(old)
        await _drop_idle(old)


async def execute(client: Redis, *words: Argument) -> Any:
    """Send one command, and get its answer."""
    return await cast("Any", client).execute_command(*words)


async def disconnect(client: Redis) -> None:
    """Close a client's connections, whatever state they are in."""
    await client.connection_pool.disconnect(inuse_connections=True)


async def _drop_idle(client: Redis) -> None:
    await client.connection_pool.disconnect(inuse_connections=False)


def _may_pass(error: StoreUnavailable) -> bool:
    return isinstance(error.__cause__, (RedisConnectionError, RedisTimeoutError, OSError))


def _is_undone(error: StoreUnavailable) -> bool:
    """Return whether the server has refused a command because it is not in charge, or not yet."""
    said = str(error.__cause__).partition(" ")[0]
    return said in _NOT_IN_CHARGE or type(error.__cause__).__name__ in _NOT_IN_CHARGE


def _moved_to(error: ResponseError) -> tuple[str, int] | None:
    """Read which node is in charge; the host may be empty, for the same one."""
    if type(error).__name__ != "MovedError" and not str(error).startswith("MOVED "):
        return None
    found = _MOVED.fullmatch(str(error))
    return (found[1], int(found[2])) if found else None
