"""The floor on Redis: a hash per job, and the ids of due jobs in a sorted set.

Commands of one turn of the event loop leave in one write; a script submits, one takes and one
finishes a batch. A taken job is due again when its lease has lapsed, so no job is lost with a
worker that dies.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis

from benchmarks.places import Place
from benchmarks.sides.gathering import Gathering
from benchmarks.sides.side import PAYLOAD, RESULT, Side
from benchmarks.stamps import stamp

DUE, NEWS, LEASE_SECONDS = b"floor:due", b"floor:news", 30
SUBMIT = b"""
redis.call('HSET', KEYS[1], 'state', 'waiting', 'payload', ARGV[1], 'created', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[2], KEYS[1])
redis.call('PUBLISH', ARGV[3], '')
"""
TAKE = b"""
local taken = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, 200)
for place, key in ipairs(taken) do
    redis.call('ZADD', KEYS[1], ARGV[2], key)
    redis.call('HSET', key, 'state', 'running', 'started', ARGV[1])
end
return taken
"""
FINISH = b"""
for place = 2, #ARGV, 2 do
    redis.call('HSET', ARGV[place], 'state', 'done', 'ended', ARGV[1], 'result', ARGV[place + 1])
    redis.call('EXPIRE', ARGV[place], 3600)
    redis.call('ZREM', KEYS[1], ARGV[place])
end
"""


class Wire(asyncio.Protocol):
    """A connection; commands of one turn of the event loop leave in one write."""

    def __init__(self) -> None:
        self._reader = cast("Any", hiredis).Reader()
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._commands: list[bytes] = []
        self.published = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            if isinstance(answer, list) and answer[:1] == [b"message"]:
                self.published.set()
            elif isinstance(answer, Exception):
                self._answers.popleft().set_exception(answer)
            else:
                self._answers.popleft().set_result(answer)

    def __call__(self, *words: bytes) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if not self._commands:
            loop.call_soon(self._write)
        self._commands.append(cast("Any", hiredis).pack_command(words))
        answer: asyncio.Future[Any] = loop.create_future()
        self._answers.append(answer)
        return answer

    def _write(self) -> None:
        self.transport.write(b"".join(self._commands))
        self._commands.clear()


async def connect(url: str) -> Wire:
    """Connect to the server of a URL without a password."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 6379
    _, wire = await asyncio.get_running_loop().create_connection(Wire, host, port)
    await wire(b"SELECT", (parts.path.strip("/") or "0").encode())
    return wire


def now() -> bytes:
    return b"%.6f" % time.time()


class RedisFloor(Side):
    drained = 10_000

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        self._wire = await connect(self.place.redis)
        self._script = await self._wire(b"SCRIPT", b"LOAD", SUBMIT)
        self._payload = json.dumps(PAYLOAD).encode()
        yield
        self._wire.transport.close()

    async def submit(self) -> bytes:
        key = b"floor:job:" + uuid.uuid4().hex.encode()
        await self._wire(b"EVALSHA", self._script, b"2", key, DUE, self._payload, now(), NEWS)
        return key

    async def submit_many(self, count: int) -> Sequence[bytes]:
        return await asyncio.gather(*(self.submit() for _ in range(count)))

    async def ended(self, ticket: bytes) -> bool:
        state, result = await self._wire(b"HMGET", ticket, b"state", b"result")
        return bool(state == b"done" and json.loads(result) == RESULT)

    def worker(self) -> Sequence[str]:
        return ("-m", "benchmarks.sides.floor_redis")


async def work(url: str) -> None:
    wire, listening = await connect(url), await connect(url)
    take = await wire(b"SCRIPT", b"LOAD", TAKE)
    finish_script = await wire(b"SCRIPT", b"LOAD", FINISH)
    await listening(b"SUBSCRIBE", NEWS)

    async def finish(done: list[tuple[bytes, bytes]]) -> Sequence[None]:
        words = [word for pair in done for word in pair]
        await wire(b"EVALSHA", finish_script, b"1", DUE, now(), *words)
        return [None] * len(done)

    finishing = Gathering(finish)

    async def run(key: bytes) -> None:
        stamp(time.monotonic())
        await finishing((key, json.dumps(RESULT).encode()))

    while True:
        listening.published.clear()
        until = b"%.6f" % (time.time() + LEASE_SECONDS)
        taken = await wire(b"EVALSHA", take, b"1", DUE, now(), until)
        await asyncio.gather(*(run(key) for key in taken))
        if not taken:
            await listening.published.wait()


if __name__ == "__main__":
    asyncio.run(work(Place.current().redis))
