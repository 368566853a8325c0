"""The client for asyncio and trio; `base` and `follower` decide, this module does the I/O."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, overload

import anyio
import anyio.to_thread
from typing_extensions import TypeVar

from asyncjobs.client.base import ClientBase, RemoteJobBase
from asyncjobs.client.documents import JobUpdate, RemoteFile, name_of
from asyncjobs.client.download import MAX_RESTARTS
from asyncjobs.client.exchange import (
    ActionResult,
    Ask,
    Broken,
    End,
    Read,
    Rule,
    Step,
    U,
    Wait,
    Woke,
)
from asyncjobs.client.output import ReceivedItem
from asyncjobs.client.saving import PartFile, target_of
from asyncjobs.client.sources import JobSource
from asyncjobs.client.transport import AsyncHttpClient, HttpLibrary, IncomingAnswer, arrived, opened
from asyncjobs.settings import Seconds

if TYPE_CHECKING:
    from asyncjobs.client.progress_bar import ProgressBar

T = TypeVar("T", default=Any)
R = TypeVar("R", default=Any)

_MAX_LAST_READS = 10


class AsyncJobsClient(ClientBase[AsyncHttpClient]):
    """Submits jobs to a server and follows them.

    `http` is an `httpx2.AsyncClient` or `httpx.AsyncClient` with your credentials; you close it
    yourself. Without it, the client opens its own at the first request: close the client, or use
    `async with`. A client belongs to one event loop.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client's own connections; an HTTP client that was passed in stays open."""
        own = self._take_own()
        if own is not None:
            await own.aclose()

    @property
    def http(self) -> AsyncHttpClient:
        """The HTTP client, for requests of your own."""
        return self._http(self._new_http)

    def _new_http(self) -> AsyncHttpClient:
        import httpx2  # noqa: PLC0415  # not needed by callers that pass in a client of httpx

        return httpx2.AsyncClient(base_url=self.base_url)

    async def submit(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        type: type[R] | None = None,
    ) -> AsyncRemoteJob[R]:
        """Send the request that starts a job; see `JobsClient.submit`."""
        submission = self._submission(method, url, json, headers, idempotency_key)
        await run(submission, self.http)
        submitted = self._submitted(submission, method)
        return AsyncRemoteJob(self, submitted, type, received=anyio.current_time())

    def attach(
        self,
        job: JobSource,
        *,
        token: str | None = None,
        token_url: str | None = None,
        type: type[R] | None = None,
    ) -> AsyncRemoteJob[R]:
        """Return the job that another program has submitted; see `JobsClient.attach`."""
        submitted = self._named(job, token, token_url)
        held = submitted.monitor.token
        received = -inf if held is None else _now() - held.age(time.time())
        return AsyncRemoteJob(self, submitted, type, received=received)


class AsyncRemoteJob(RemoteJobBase[T, AsyncHttpClient]):
    """A job at a server; `last` is its newest known state, `monitor` has its URLs."""

    def updates(
        self, *, timeout: Seconds | None = None, progress: bool = False
    ) -> Updates[JobUpdate]:
        """Iterate (`async for`) over each new state, up to and including the job's end.

        After `timeout` (default: the client's), `JobTimeout` is raised. `progress` draws a bar on
        standard error. If you stop early, use the updates in `async with` or call their `aclose`;
        otherwise a connection stays open.
        """
        follower = self._follower(timeout, progress=progress)

        def learn(update: JobUpdate) -> None:
            self._learn(update, follower)

        return Updates(follower, self._client.http, learn, progress=progress)

    @overload
    async def result(self, *, timeout: Seconds | None = None, progress: bool = False) -> T: ...
    @overload
    async def result(
        self, *, type: type[R], timeout: Seconds | None = None, progress: bool = False
    ) -> R: ...
    async def result(
        self, *, type: Any = None, timeout: Seconds | None = None, progress: bool = False
    ) -> Any:
        """Follow the job to its end and return its result; see `RemoteJob.result`."""
        async with self.updates(timeout=timeout, progress=progress) as updates:
            async for _ in updates:
                pass
        return self._outcome(type)

    def output(
        self,
        stream: str = "output",
        *,
        after: str | None = None,
        timeout: Seconds | None = None,
    ) -> Updates[ReceivedItem]:
        """Iterate (`async for`) over each item that the job emits; see `RemoteJob.output`.

        If you stop early, use it in `async with` or call its `aclose`.
        """
        return Updates(self._output(stream, after, timeout), self._client.http)

    async def download(
        self,
        file: RemoteFile | str,
        to: str | os.PathLike[str],
        *,
        timeout: Seconds | None = None,
    ) -> Path:
        """Save a file of the job and return its path; see `RemoteJob.download`.

        The folder is used in threads.
        """
        download = self._download(file, timeout, restarts=MAX_RESTARTS)
        in_thread = anyio.to_thread.run_sync
        with PartFile(await in_thread(target_of, to, name_of(file))) as part:
            await in_thread(part.open)
            async with Updates(download, self._client.http) as chunks:
                async for chunk in chunks:
                    await in_thread(part.write, chunk, download.offset)
            return await in_thread(part.complete, download.received)

    def read_file(
        self, file: RemoteFile | str, *, timeout: Seconds | None = None
    ) -> Updates[bytes]:
        """Iterate (`async for`) over the bytes of a file of the job; see `RemoteJob.read_file`.

        If you stop early, use it in `async with` or call its `aclose`.
        """
        return Updates(self._download(file, timeout), self._client.http)

    async def cancel(self) -> JobUpdate:
        """Ask the job to stop; it may still end in another way. Raises `RequestRefused`."""
        cancellation = self._cancellation()
        await run(cancellation, self._client.http)
        return self._cancelled(cancellation)


def _now() -> float:
    """Return the time of the event loop; before any other time if the caller is in none."""
    try:
        return anyio.current_time()
    except RuntimeError:
        return -inf


async def run(rule: Rule, http: AsyncHttpClient) -> None:
    """Carry out a rule that has no updates."""
    async with Updates(rule, http) as updates:
        async for _ in updates:
            pass


class Updates(Generic[U]):
    """The updates of one rule, to be iterated over once. Raises the error with which the rule ends.

    This is not a generator: an event loop may never finalize a generator that is left early.
    """

    def __init__(
        self,
        rule: Rule[U],
        http: AsyncHttpClient,
        learn: Callable[[U], None] | None = None,
        *,
        progress: bool = False,
    ) -> None:
        self._rule = rule
        self._connection = AsyncConnection(http)
        self._learn = learn
        self._step: Step[U] | None = None
        self._ready: deque[U] = deque()
        self._wants_bar = progress
        self._bar: ProgressBar | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> U:
        if self._wants_bar and self._bar is None:
            from asyncjobs.client.progress_bar import ProgressBar  # noqa: PLC0415  # slow to load

            self._bar = ProgressBar().__enter__()
        try:
            while not self._ready:
                self._step = await self._next_step()
                self._ready.extend(self._step.updates)
        except BaseException:
            await self.aclose()
            raise
        update = self._ready.popleft()
        if self._learn is not None:
            self._learn(update)
        if self._bar is not None and isinstance(update, JobUpdate):
            self._bar.show(update)
        return update

    async def _next_step(self) -> Step[U]:
        if self._step is None:
            return self._rule.start(anyio.current_time())
        if isinstance(self._step.then, End):
            raise self._step.then.error or StopAsyncIteration
        result = await self._connection.perform(self._step.then)
        return self._rule.receive(result, anyio.current_time())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop following; the job goes on."""
        bar, self._bar, self._wants_bar = self._bar, None, False
        if bar is not None:
            bar.__exit__(None, None, None)
        await self._connection.aclose()


class AsyncConnection:
    """Performs the actions of one rule; holds its open stream, if any."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http
        self._library = HttpLibrary(http)
        self._response: Any = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def perform(self, action: Ask | Read | Wait) -> ActionResult:
        try:
            match action:
                case Read():
                    chunks = self._chunks
                    return arrived(None if chunks is None else await anext(chunks, None))
                case Wait(seconds):
                    await self.aclose()
                    await anyio.sleep(seconds)
                    return Woke()
                case Ask():
                    await self.aclose()
                    return await self._ask(action)
        except self._library.errors as error:
            return self._library.result_of(error, action)

    async def _ask(self, ask: Ask) -> ActionResult:
        answer = IncomingAnswer(self._http, ask, anyio.current_time())
        with anyio.move_on_after(ask.total) as scope:
            self._response = await self._begin(answer)
        if scope.cancelled_caught:
            return Broken("the response did not start in time")
        self._chunks = chunks = self._response.aiter_bytes()
        if answer.is_stream(self._response):
            return opened(self._response)
        async for chunk in chunks:
            refused = answer.add(chunk, anyio.current_time())
            if refused is not None:
                return refused
        complete = answer.complete(self._response)
        await self.aclose()
        return complete

    async def _begin(self, answer: IncomingAnswer) -> Any:
        request = answer.request
        while True:
            response = await self._http.send(request, stream=True, follow_redirects=False)
            if response.next_request is None:
                return response
            await response.aclose()
            request = answer.redirected(response)

    async def aclose(self) -> None:
        """Close the open stream, even while the task is being cancelled."""
        response, self._response = self._response, None
        chunks, self._chunks = self._chunks, None
        if response is None or chunks is None:
            return
        with anyio.CancelScope(shield=True):
            # The HTTP library reads through nested generators, of which only the outermost can be
            # closed explicitly. An exception from the socket ends them all, so the read is
            # cancelled. A source that never waits is not cancelled, hence the limit of reads.
            with anyio.CancelScope() as scope, suppress(*self._library.errors):
                scope.cancel()
                for _ in range(_MAX_LAST_READS):
                    if await anext(chunks, None) is None:
                        break
            await response.aclose()
