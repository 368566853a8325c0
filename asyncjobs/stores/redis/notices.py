"""How the Redis store learns of what other processes wrote."""

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

#: A batch with more ids is empty instead: any job may have changed.
MAX_IDS_PER_BATCH = 1000

#: After such a silence a subscription is asked whether it is still alive.
SILENCE_SECONDS = 15.0


class ChangeSubscription:
    """The published ids of a channel, but for those that one writer published."""

    def __init__(self, server: RedisServer, channel: str, writer: str) -> None:
        self._server = server
        self._channel = channel
        self._writer = writer.encode()
        self._turns = 0

    async def follow(self, pause: float) -> AsyncGenerator[Sequence[JobId]]:
        """Yield ids as they come, on average at most one batch per `pause` seconds.

        The first batch is empty, for what was written before.
        """
        # A connection of its own: a subscription takes one up entirely.
        client = self._server.connect(1, idle=0)
        self._turns = self._server.turns
        pace = Pace(pause)
        # The driver's annotations are not complete.
        subscription = cast("PubSub", cast("Any", client).pubsub())
        try:
            with self._server.errors():
                await subscription.subscribe(self._channel)
                # Only what is published after the answer arrives here.
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
        """Wait for a message, then read all that are there; each id once."""
        ids: dict[JobId, None] = {}
        message = await _message(subscription, SILENCE_SECONDS)
        if message is None:
            if self._server.turns != self._turns:
                raise StoreUnavailable(self._server.name, "another server may be in charge by now")
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
        """Read the answer to what was sent; a message in its place is as good."""
        message = await _message(subscription, self._server.timeout)
        if message is None or message["type"] not in (kind, "message"):
            raise StoreUnavailable(self._server.name, "it does not answer on its subscription")
        return message


async def _message(subscription: PubSub, timeout: float) -> dict[str, Any] | None:
    """Read what is there, or comes in time."""
    message = await cast("Any", subscription).get_message(timeout=timeout)
    return cast("dict[str, Any] | None", message)
