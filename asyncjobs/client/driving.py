"""Carry out on an event loop what a rule decides, asyncio or trio."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Self, cast

import anyio

from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.errors import AnswerTooLarge
from asyncjobs.client.exchange import (
    Arrived,
    Ask,
    Broken,
    End,
    Event,
    Hopeless,
    Opened,
    PollStep,
    Read,
    Rule,
    Wait,
    Woke,
)
from asyncjobs.client.follower import LONGEST_ANSWER
from asyncjobs.client.library import (
    AsyncHttpClient,
    Failures,
    answer_of,
    request_of,
    streams_events,
)

_LAST_READS = 10


async def finish(rule: Rule, http: AsyncHttpClient) -> None:
    """Carry out a rule that tells nothing on the way."""
    drive = Drive(rule, http)
    try:
        async for _ in drive:
            pass
    finally:
        await drive.aclose()


class Drive:
    """Carries out what a rule decides; no generator, whose end an event loop may never see."""

    def __init__(self, rule: Rule, http: AsyncHttpClient) -> None:
        self._rule = rule
        self._connection = _Connection(http)
        self._step: PollStep | None = None
        self._ready: deque[JobUpdate] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobUpdate:
        while not self._ready:
            if self._step is None:
                self._go_to(self._rule.start(anyio.current_time()))
            elif isinstance(self._step.then, End):
                await self.aclose()
                if self._step.then.error is not None:
                    raise self._step.then.error
                raise StopAsyncIteration
            else:
                event = await self._connection.perform(self._step.then)
                self._go_to(self._rule.receive(event, anyio.current_time()))
        return self._ready.popleft()

    def _go_to(self, step: PollStep) -> None:
        self._step = step
        self._ready.extend(step.updates)

    async def aclose(self) -> None:
        await self._connection.aclose()


class _Connection:
    """The requests of one rule, and the stream that is open, if any."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http
        self._failures = Failures(http)
        self._response: Any = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._url = ""

    async def perform(self, action: Ask | Read | Wait) -> Event:
        try:
            if isinstance(action, Read):
                chunk = None if self._chunks is None else await anext(self._chunks, None)
                return Broken("the stream ended") if chunk is None else Arrived(chunk)
            await self.aclose()
            if isinstance(action, Wait):
                await anyio.sleep(action.seconds)
                return Woke()
            self._url = action.url
            return await self._ask(action)
        except self._failures.caught as error:
            return self._failures.event_of(error, self._url)

    async def _ask(self, ask: Ask) -> Event:
        request = request_of(self._http, ask)
        ends = anyio.current_time() + ask.total
        with anyio.move_on_after(ask.total) as scope:
            self._response = await self._http.send(request, stream=True, follow_redirects=True)
        if scope.cancelled_caught:
            return Broken("its answer does not begin")
        self._chunks = cast("AsyncIterator[bytes]", self._response.aiter_bytes())
        if ask.stream and streams_events(self._response):
            return Opened()
        body = bytearray()
        async for chunk in self._chunks:
            body += chunk
            if len(body) > LONGEST_ANSWER:
                return Hopeless(AnswerTooLarge(ask.url, LONGEST_ANSWER))
            if anyio.current_time() > ends:
                return Broken("its answer does not end")
        answer = answer_of(request, self._response, bytes(body))
        await self.aclose()
        return answer

    async def aclose(self) -> None:
        """Close the open stream, also when the task is being cancelled."""
        response, self._response = self._response, None
        chunks, self._chunks = self._chunks, None
        if response is None or chunks is None:
            return
        with anyio.CancelScope(shield=True):
            # The HTTP library reads through generators, of which only the outermost can be closed
            # by hand. What comes from the socket ends them all: a cancellation. A source that never
            # waits is not cancelled, so it is read a few times only.
            with anyio.CancelScope() as scope, suppress(*self._failures.caught):
                scope.cancel()
                for _ in range(_LAST_READS):
                    if await anext(chunks, None) is None:
                        break
            await response.aclose()
