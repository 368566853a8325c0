"""Behaves like pgbouncer in transaction mode: each transaction gets another session.

Each client has two sessions on the server and never the same one twice in a row. Any state left in
a session, such as a prepared statement, a setting or a LISTEN, is therefore missing in the next
transaction at once, and not only under load.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack, suppress
from itertools import cycle
from types import TracebackType
from typing import Self

from anyio.from_thread import start_blocking_portal

# A client's first message has these instead of a version: it asks for TLS or Kerberos.
_ENCRYPTION = (80877103, 80877104)

# A client waits for an answer after these messages: a query, and the end of an extended query.
_TURNS = (b"Q", b"S")
_READY, _LEAVE, _IDLE = b"Z", b"X", b"I"

# The process id and secret of a session, which are not the client's; a pooler sends its own.
_KEY, _NO_KEY = re.compile(rb"K\0\0\0\x0c.{8}", re.DOTALL), b"K\0\0\0\x0c" + bytes(8)

_Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class TransactionPooler:
    """A proxy between clients and a server that trusts them; clients connect to `port`."""

    def __init__(self, host: str, port: int) -> None:
        self.server = (host, port)
        self.port = 0
        #: The messages of clients.
        self.messages: list[bytes] = []
        self._clients: set[asyncio.Task[None]] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        portal = self._stack.enter_context(start_blocking_portal("asyncio"))
        listening = portal.call(asyncio.start_server, self._welcome, "127.0.0.1", 0)
        self.port = listening.sockets[0].getsockname()[1]
        self._stack.callback(portal.call, self._end, listening)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    async def _end(self, listening: asyncio.Server) -> None:
        listening.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.create_task(self._serve((reader, writer)))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, near: _Line) -> None:
        lines = [near]
        try:
            wish = await _first_wish(near)
            greetings: list[bytes] = []
            for _ in "12":
                lines.append(await asyncio.open_connection(*self.server))
                lines[-1][1].write(wish)
                greetings.append(await _answer(lines[-1]))
            near[1].write(_KEY.sub(_NO_KEY, greetings[0]))
            for session in cycle(lines[1:]):
                await self._transaction(near, session)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # one of the two has disconnected
        finally:
            for _, writer in lines:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    async def _transaction(self, near: _Line, session: _Line) -> None:
        """Relay requests and answers until no transaction is open."""
        idle = False
        while not idle:
            message = b""
            while message[:1] not in _TURNS:
                message = await _message(near)
                if message[:1] == _LEAVE:
                    raise ConnectionError
                self.messages.append(message)
                session[1].write(message)
            answer = await _answer(session)
            near[1].write(answer)
            idle = answer[-1:] == _IDLE


async def _first_wish(near: _Line) -> bytes:
    """Read the startup message; encryption is declined."""
    while True:
        size = await near[0].readexactly(4)
        rest = await near[0].readexactly(int.from_bytes(size) - 4)
        if int.from_bytes(rest[:4]) not in _ENCRYPTION:
            return size + rest
        near[1].write(b"N")


async def _answer(session: _Line) -> bytes:
    """Read the server's messages until it is ready for the next one."""
    said = [await _message(session)]
    while said[-1][:1] != _READY:
        said.append(await _message(session))
    return b"".join(said)


async def _message(line: _Line) -> bytes:
    head = await line[0].readexactly(5)
    return head + await line[0].readexactly(int.from_bytes(head[1:]) - 4)
