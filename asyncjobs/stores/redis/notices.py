"""Receives the changes that other processes publish through Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any, cast

import anyio
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from asyncjobs.core.job import JobId
from asyncjobs.errors import StoreUnavailable
from asyncjobs.stores.pacing import Pace
from asyncjobs.stores.redis.server import RedisServer, disconnect

#: A batch with more ids is replaced by an empty one: any job may have changed.
MAX_IDS_PER_BATCH = 1000

#: After this much silence, a ping checks whether the subscription is still alive.
SILENCE_SECONDS = 15.0


class ChangeSubscription:
    """The job ids published on a channel, except those published by `writer`."""

    def __init__(self, server: RedisServer, channel: str, writer: str) -> None:
        self._server = server
        self._channel = channel
        self._writer = writer.encode()
        self._turns = 0

    async def follow(self, pause: float) -> AsyncGenerator[Sequence[JobId]]:
        """Yield changed ids, on average at most one batch per `pause` seconds.

        The first batch is empty: it stands for all changes before the subscription.
        """
        # A subscription blocks its connection for other commands, so it gets its own.
        client = self._server.connect(1, idle=0)
        self._turns = self._server.turns
        pace = Pace(pause)
        # The driver's annotations are not complete.
        subscription = cast("PubSub", cast("Any", client).pubsub())
        try:
            with self._server.errors():
                await subscription.subscribe(self._channel)
                # Messages published before this answer are lost; the empty batch below covers them.
                await self._expect(subscription, "subscribe")
                yield ()
                while True:
                    if ids := await self._next(subscription):
                        yield () if len(ids) > MAX_IDS_PER_BATCH else tuple(ids)
                        await anyio.sleep(pace.pause(anyio.current_time()))
        finally:
            with anyio.CancelScope(shield=True), suppress(RedisError, OSError):
                await cast("Any", subscription).aclose()
                await disconnect(client)

    async def _next(self, subscription: PubSub) -> dict[JobId, None]:
        """Wait for a message, then read all waiting ones; return each id once."""
        ids: dict[JobId, None] = {}
        message = await _message(subscription, SILENCE_SECONDS)
        if message is None:
            if self._server.turns != self._turns:
                # This connection may lead to the former server, which would still answer a ping.
                raise StoreUnavailable(self._server.name, "another server may be the primary now")
            await cast("Any", subscription).ping()
            message = await self._expect(subscription, "pong")
        while message is not None and len(ids) <= MAX_IDS_PER_BATCH:
            if message["type"] == "message":
                writer, *changed = cast("bytes", message["data"]).split()
                if writer != self._writer:
                    ids.update(dict.fromkeys(JobId(job_id.decode()) for job_id in changed))
            message = await _message(subscription, 0)
        return ids

    async def _expect(self, subscription: PubSub, kind: str) -> dict[str, Any]:
        """Read the answer to a command; a message that arrives first is accepted too."""
        message = await _message(subscription, self._server.timeout)
        if message is None or message["type"] not in (kind, "message"):
            raise StoreUnavailable(self._server.name, "it does not respond on the subscription")
        return message


async def _message(subscription: PubSub, timeout: float) -> dict[str, Any] | None:
    """Return the next message, or None if none arrives within `timeout` seconds."""
    message = await cast("Any", subscription).get_message(timeout=timeout)
    return cast("dict[str, Any] | None", message)
