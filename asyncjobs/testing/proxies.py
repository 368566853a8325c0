"""A TCP proxy that disturbs connections to a server when a test asks for it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Collection
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from anyio.from_thread import BlockingPortal, start_blocking_portal

# A connection that was just accepted has its task after some turns of the event loop.
_TURNS_TO_ACCEPT = 10
# How long connections to the server may take to begin or end when the proxy ends.
_PATIENCE_SECONDS = 5.0
_CHUNK = 65536

# On closing, drop unsent data and send a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)


class _Line:
    """One connection: the client's end, the server's, and the data in between."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.ended = asyncio.Event()
        self.asked = b""
        self.near = near
        self.far = far
        self.said_goodbye = False
        self.ways: list[asyncio.Task[None]] = []

    def say_goodbye(self) -> None:
        """Close the client's receiving direction: no more data will come."""
        if not self.said_goodbye:
            _say_no_more(self.near)
        self.said_goodbye = True

    def reset(self) -> None:
        for way in self.ways:
            way.cancel()
        for end in (self.near, self.far):
            _reset(end)

    async def until_ended(self) -> None:
        await asyncio.wait(self.ways)
        self.near.close()
        self.far.close()
        self.ended.set()


class TcpProxy:
    """Forwards a loopback port to a server, and can cut, stall or refuse connections.

    Use it in `with`, in synchronous and asynchronous tests alike: it runs in its own thread. Its
    methods have taken effect when they return. `port` is the port to connect to.
    """

    def __init__(self, host: str, port: int) -> None:
        self.server = (host, port)
        self.port = 0
        #: The number of connections so far.
        self.connections = 0
        #: The number of answers that are still to be lost; see `lose`.
        self.to_lose = 0
        #: How many seconds each piece of data is delayed, in either direction.
        self.delay = 0.0
        self._spared: Collection[bytes] = ()
        self._lines: set[_Line] = set()
        self._carriers: set[asyncio.Task[Any]] = set()
        self._ending = False
        self._flowing = asyncio.Event()
        self._listening: asyncio.Server | None = None
        self._bound: socket.socket | None = None
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("asyncio"))
            self._portal, self._flowing = portal, asyncio.Event()
            portal.call(self._flowing.set)
            stack.callback(portal.call, self._end)
            self._bind()
            portal.call(self._listen)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._portal = None

    def through(self, url: str) -> str:
        """Return a server's URL with this proxy's address instead of the server's."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}").geturl()

    def cut(self) -> None:
        """Reset all connections; new ones are accepted."""
        self._in_loop.call(self._cut)

    def refuse(self) -> None:
        """Refuse new connections, as if no server ran; open ones stay."""
        self._in_loop.call(self._refuse)

    def accept(self) -> None:
        """Accept connections again, at the same port."""
        self._in_loop.call(self._listen)

    def stall(self) -> None:
        """Accept connections but forward nothing, in either direction, until `flow`."""
        self._in_loop.call(self._flowing.clear)

    def flow(self) -> None:
        """Forward data again, the delayed data first."""
        self._in_loop.call(self._flowing.set)

    def half_close(self) -> None:
        """End the stream to all clients, and still forward the data that they send."""
        self._in_loop.call(self._half_close)

    def lose(self, answers: int, *, spare: Collection[bytes] = ()) -> None:
        """Cut a connection instead of forwarding the server's answer, this many times.

        The request has reached the server by then. An answer is spared if the last piece of data
        that the client sent contains one of these words, for example the words that set up a
        connection.
        """
        self._in_loop.call(self._lose, answers, spare)

    @property
    def _in_loop(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("The proxy was used outside its `with` block.")
        return self._portal

    # Everything below runs in the proxy's own event loop.

    def _bind(self) -> None:
        """Reserve the port without listening, so that connections are refused."""
        self._bound = socket.socket()
        self._bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._bound.bind(("127.0.0.1", self.port))
        self.port = self._bound.getsockname()[1]

    async def _listen(self) -> None:
        if self._listening is None:
            self._listening = await asyncio.start_server(self._carry, sock=self._bound)

    async def _refuse(self) -> None:
        if self._listening is not None:
            await self._stop_listening(self._listening)
            self._bind()

    async def _stop_listening(self, server: asyncio.Server) -> None:
        self._listening = None
        # asyncio leaves a connection open that it has accepted just before the server is closed.
        for listening in server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(_TURNS_TO_ACCEPT):
            await asyncio.sleep(0)
        server.close()

    async def _cut(self) -> None:
        for line in tuple(self._lines):
            line.reset()
            await line.ended.wait()

    async def _end(self) -> None:
        self._ending = True
        if self._listening is not None:
            await self._stop_listening(self._listening)
        elif self._bound is not None:
            self._bound.close()
        await self._cut()
        if self._carriers:
            await asyncio.wait(self._carriers, timeout=_PATIENCE_SECONDS)
        await asyncio.sleep(0)

    async def _half_close(self) -> None:
        for line in self._lines:
            line.say_goodbye()

    async def _lose(self, answers: int, spare: Collection[bytes]) -> None:
        self.to_lose, self._spared = answers, spare

    async def _carry(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        self.connections += 1
        carrier = asyncio.create_task(self._connect(near, near_out))
        self._carriers.add(carrier)
        carrier.add_done_callback(self._carriers.discard)
        await carrier

    async def _connect(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        try:
            far, far_out = await asyncio.open_connection(*self.server)
        except OSError:
            _reset(near_out)
            return
        if self._ending:
            _reset(near_out)
            _reset(far_out)
            return
        line = _Line(near_out, far_out)
        ways = (self._ask(near, line), self._answer(far, line))
        line.ways = [asyncio.create_task(way) for way in ways]
        self._lines.add(line)
        await line.until_ended()
        self._lines.discard(line)

    async def _ask(self, source: asyncio.StreamReader, line: _Line) -> None:
        async for data in self._pieces(source, line):
            line.asked = data
            line.far.write(data)
        _say_no_more(line.far)

    async def _answer(self, source: asyncio.StreamReader, line: _Line) -> None:
        async for data in self._pieces(source, line):
            if self.to_lose and not any(word in line.asked for word in self._spared):
                self.to_lose -= 1
                line.reset()
                return
            if not line.said_goodbye:
                line.near.write(data)
        line.say_goodbye()

    async def _pieces(self, source: asyncio.StreamReader, line: _Line) -> AsyncGenerator[bytes]:
        try:
            while data := await source.read(_CHUNK):
                await asyncio.sleep(self.delay)
                await self._flowing.wait()
                yield data
        except OSError:
            line.reset()


def _say_no_more(end: asyncio.StreamWriter) -> None:
    if not end.transport.is_closing():
        with suppress(OSError):  # the other end may be gone
            end.write_eof()


def _reset(end: asyncio.StreamWriter) -> None:
    if not end.transport.is_closing():
        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.transport.abort()
