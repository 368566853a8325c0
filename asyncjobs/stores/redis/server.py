"""The server of `stores.redis`: its URL, its connections, commands and retries.

Each new connection asks the Sentinels for the primary. A failover therefore needs no special code:
a broken connection is replaced by one to the current primary.
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

# The schemes of our URLs, and the driver's names for them.
_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
}

# The driver's options that a text can express, and that do not change the meaning of commands.
_OPTIONS = frozenset(
    {
        *("namespace", "db", "username", "password", "client_name"),
        *("health_check_interval", "max_connections"),
        *("socket_connect_timeout", "socket_keepalive", "socket_timeout"),
        *("ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile"),
        *("ssl_check_hostname", "ssl_ciphers", "ssl_keyfile", "ssl_min_version", "ssl_password"),
    }
)

# A connection idle for this long is checked before use: a middlebox may have dropped it.
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

# The server's error codes, and the driver's classes; not every version of the driver has them all.
_NOT_IN_CHARGE = (
    *("READONLY", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN"),
    *("ReadOnlyError", "AskError", "TryAgainError", "ClusterDownError", "MasterDownError"),
)

_SENTINEL_PORT = 26379

_MOVED = re.compile(r"(?:MOVED )?\d+ (.*):(\d+)")


def split_url(url: str) -> tuple[str, str | None]:
    """Return the URL in the form the driver expects, and the namespace in the URL."""
    check_characters("The URL of the Redis store", url)
    check_credentials("The URL of the Redis store", url)
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(f"{_FORM}; got the scheme {parts.scheme!r}.")
    # For these URLs the driver would silently use database 0 of this machine, or another socket.
    if parts.scheme == "unix":
        if "://" not in url or parts.netloc.rpartition("@")[2] or len(parts.path) < 2:
            raise ConfigurationError(f"{_FORM}; a socket's path must be absolute.")
    elif "://" not in url or _DATABASE.fullmatch(parts.path) is None:
        # The message must not quote the URL: a password with a slash in it looks like a path.
        raise ConfigurationError(f"{_FORM}; the database must be a number.")
    known = _OPTIONS if parts.scheme == "unix" else _OPTIONS | _SENTINEL_OPTIONS
    check_parameters("Redis", url, known)
    query = parse_qsl(parts.query, keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in query if name != "namespace"])
    return (
        parts._replace(scheme=_SCHEMES[parts.scheme], query=rest).geturl(),
        dict(query).get("namespace"),
    )


def name_of(url: str) -> str:
    """Return the server's part of a URL, without password and options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2] or 'localhost'}{parts.path}"


class _PackingConnection(AbstractConnection):
    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack a script call, which has hundreds of arguments; leave other commands to the driver.

        For each argument, the driver checks the type and copies all that is packed so far.
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
        """Write directly to the socket's buffer; the driver creates a task for each command."""
        driver, connection = cast("Any", super()), cast("Any", self)
        if not self.is_connected or isinstance(command, str):
            await driver.send_packed_command(command, check_health)
            return
        if check_health:
            await connection.check_health()
        writer = connection._writer  # noqa: SLF001  # of the class that this one extends
        writer.writelines([command] if isinstance(command, bytes) else command)
        if writer.transport.get_write_buffer_size():
            # The driver waits for the rest, within its timeout.
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
    """The servers that know the primary of a name; `timeout` limits the queries to all of them."""

    def __init__(self, name: str, urls: Sequence[str], *, timeout: float) -> None:
        self._name = name
        self._urls = urls
        self._seconds = timeout / len(urls)

    async def primary(self) -> tuple[str, int]:
        """Ask one Sentinel after the other; raise the driver's error if none knows the primary."""
        asked = cast("Any", Sentinel)([])
        asked.sentinels = self._clients()
        try:
            host, port = await asked.discover_master(self._name)
        except MasterNotFoundError as error:
            # The driver's message shows its objects, including their options.
            reason = f"no reachable Sentinel reports a running primary {self._name!r}"
            raise RedisConnectionError(reason) from error
        finally:
            for client in asked.sentinels:
                await client.aclose()
        return str(host), int(port)

    def lead(self, pool: Any) -> None:
        """Make each connection of a pool ask the Sentinels for its server."""
        secure = issubclass(pool.connection_class, SSLConnection)
        pool.connection_class = _LedSSLConnection if secure else _LedConnection
        pool.connection_kwargs["sentinels"] = self
        for client in self._clients():
            # The driver checks the options only when it makes a connection.
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

    In that case the hosts, the options that begin with `sentinel_` and those for TLS are theirs.
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
    # The host is a placeholder: each connection asks the Sentinels for it.
    plain = parts._replace(netloc=f"{credentials}{at}localhost", query=urlencode(ours))
    return plain.geturl(), Sentinels(name, urls, timeout=timeout)


def _url_of(scheme: str, host: str, options: dict[str, str]) -> str:
    port = "" if urlsplit(f"//{host}").port else f":{_SENTINEL_PORT}"
    return f"{scheme}://{host}{port}?{urlencode(options)}"


class RedisServer:
    """A pool of connections to the server that stores the keys.

    In a cluster this is one node, since all keys share one slot. If the server redirects to another
    node, that node is used until it cannot be reached; then the URL's server is asked again.
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
        #: Counts the changes to another server.
        self.turns = 0
        self._node: tuple[str, int] | None = None

    def connect(self, connections: int, *, idle: int = _IDLE_SECONDS) -> Redis:
        """Make a client without opening a connection."""
        try:
            pool = cast("Any", BlockingConnectionPool).from_url(
                self._url,
                max_connections=connections,
                timeout=self.timeout,
                socket_timeout=self.timeout,
                socket_connect_timeout=self.timeout,
                **({} if self._is_socket else {"socket_keepalive": True}),
                health_check_interval=idle,
                # The driver does not know which commands may be repeated; `ask` does.
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
            pool.connection_class = _CLASSES[pool.connection_class]
            if self._sentinels is not None:
                self._sentinels.lead(pool)
            # The driver checks the options only when it makes a connection.
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
        """Send a command that may be repeated, and return the answer."""
        return await self.ask(lambda client: execute(client, *words), repeat=True)

    async def read(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send several commands that may be repeated in one round trip."""

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
        """Run a script; `repeat` is whether running it twice does no harm."""

        async def evaluate(client: Redis) -> Any:
            try:
                return await execute(client, "EVALSHA", script.digest, len(keys), *keys, *args)
            except NoScriptError:  # a new server, or one whose scripts were flushed
                return await execute(client, "EVAL", script.text, len(keys), *keys, *args)

        return await self.ask(evaluate, repeat=repeat)

    async def ask(self, call: Callable[[Redis], Awaitable[T]], *, repeat: bool) -> T:
        """Make a call, and repeat it if that is safe; raise every error as `StoreUnavailable`.

        A command refused by a server that is not in charge was not executed, so it may be repeated.
        A cancelled caller waits for the answer, since it would not know what was done; the driver's
        timeouts limit the wait.
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
        """Raise the driver's errors as `StoreUnavailable`."""
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
                await _drop_idle(client)  # whatever broke this connection broke the idle ones, too
            raise
        except ReadOnlyError:
            # After a failover this server may be a replica. New connections look up the primary.
            self.turns += 1
            await _drop_idle(client)
            raise
        except ResponseError as error:
            # A socket's URL does not say how to reach another machine.
            if (node := _moved_to(error)) is None or self._is_socket:
                raise
            if client is self._client:
                await self._turn_to(node)
            return await call(self._client)

    async def _turn_to(self, node: tuple[str, int] | None) -> None:
        """Use another node, or the URL's if `node` is None."""
        old, self._client = self._client, self.connect(self._connections)
        self._node = node
        self.turns += 1
        if node is not None:
            host, port = node
            self._client.connection_pool.connection_kwargs.update(
                {"port": port, **({"host": host} if host else {})}
            )
        # Calls under way still use the old client, so only its idle connections are closed now.
        self._retired.append(old)
        await _drop_idle(old)


async def execute(client: Redis, *words: Argument) -> Any:
    """Send one command and return the answer."""
    return await cast("Any", client).execute_command(*words)


async def disconnect(client: Redis) -> None:
    """Close a client's connections, whatever state they are in."""
    await client.connection_pool.disconnect(inuse_connections=True)


async def _drop_idle(client: Redis) -> None:
    await client.connection_pool.disconnect(inuse_connections=False)


def _may_pass(error: StoreUnavailable) -> bool:
    return isinstance(error.__cause__, (RedisConnectionError, RedisTimeoutError, OSError))


def _is_undone(error: StoreUnavailable) -> bool:
    """Return whether the server refused a command because it is not, or not yet, in charge."""
    said = str(error.__cause__).partition(" ")[0]
    return said in _NOT_IN_CHARGE or type(error.__cause__).__name__ in _NOT_IN_CHARGE


def _moved_to(error: ResponseError) -> tuple[str, int] | None:
    """Return the node that is in charge, or None; an empty host means the same host."""
    if type(error).__name__ != "MovedError" and not str(error).startswith("MOVED "):
        return None
    found = _MOVED.fullmatch(str(error))
    return (found[1], int(found[2])) if found else None
