"""Submit and follow jobs on an event loop, asyncio or trio: a shell around the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, overload

import anyio

from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.driving import Drive, finish
from asyncjobs.client.follower import Follower
from asyncjobs.client.library import AsyncHttpClient
from asyncjobs.client.monitors import Accepted, Monitor, read_accepted
from asyncjobs.client.options import Following
from asyncjobs.client.outcomes import cancel_of, cancelled_of, outcome_of, submission_of
from asyncjobs.client.requests import Repeated

if TYPE_CHECKING:
    from asyncjobs.client.bars import ProgressBar

T = TypeVar("T")
R = TypeVar("R")


class AsyncJobsClient:
    """Submits jobs to a server and follows them.

    `http` is an `httpx2.AsyncClient` or `httpx.AsyncClient` with your credentials; it stays yours
    to close. Without one, the client opens its own at the first request: close it, or use `async
    with`. It belongs to one event loop.
    """

    def __init__(
        self,
        base_url: str = "",
        *,
        http: AsyncHttpClient | None = None,
        options: Following | None = None,
    ) -> None:
        self.base_url = base_url
        self.options = options or Following()
        self._given = http
        self._own: AsyncHttpClient | None = None

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
        """Close the connections, but for those of a client that was handed in."""
        if self._own is not None:
            await self._own.aclose()
            self._own = None

    @property
    def http(self) -> AsyncHttpClient:
        """The HTTP client, for requests of your own."""
        if self._given is not None:
            return self._given
        if self._own is None:
            import httpx2  # noqa: PLC0415  # who hands in one of httpx need not have it

            self._own = httpx2.AsyncClient(base_url=self.base_url)
        return self._own

    @overload
    async def submit(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncJob[Any]: ...
    @overload
    async def submit(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        type: type[R],
    ) -> AsyncJob[R]: ...
    async def submit(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        type: Any = None,
    ) -> AsyncJob[Any]:
        """Send what starts a job; `type` is that of its result.

        It is sent again where the answer was lost, and always with an `Idempotency-Key`, so that
        a server that knows this header begins one job. Raises `RequestRefused`, `AccessRefused`,
        `ServerUnreachable`, and `NotAJob` where the answer names no job.
        """
        ask = submission_of(method, url, json, headers, idempotency_key)
        repeated = Repeated(ask, self.options.submit_for, Random())  # noqa: S311  # pauses
        await finish(repeated, self.http)
        accepted = read_accepted(repeated.answered, self.options.origins, method=method)
        return AsyncJob(self, accepted, type, not_before=anyio.current_time() + accepted.pause)

    @overload
    def attach(self, status_url: str) -> AsyncJob[Any]: ...
    @overload
    def attach(self, status_url: str, *, type: type[R]) -> AsyncJob[R]: ...
    def attach(self, status_url: str, *, type: Any = None) -> AsyncJob[Any]:
        """Take up a job by its status URL; nothing is sent yet."""
        return AsyncJob(self, Accepted(Monitor(status_url)), type)


class AsyncJob(Generic[T]):
    """A job at a server. `last` is the newest that is known of it."""

    def __init__(
        self,
        client: AsyncJobsClient,
        accepted: Accepted,
        type: Any = None,
        *,
        not_before: float = -inf,
    ) -> None:
        self.monitor = accepted.monitor
        self.last = accepted.update
        self._client = client
        self._type = type
        self._not_before = not_before

    @property
    def status_url(self) -> str:
        """Where anybody who may can go on following it, by `attach`."""
        return self.monitor.status

    def updates(self, *, timeout: float | None = None, progress: bool = False) -> Updates:
        """Iterate (`async for`) over what is new, up to and with the job's end.

        `timeout` is in seconds, those of the client's options unless given; then `JobTimeout` is
        raised. `progress` draws a bar on the standard error. Who stops early enters the updates by
        `async with`, or calls their `aclose`: else a connection stays open.
        """
        options = self._client.options
        chosen = options if timeout is None else replace(options, timeout=timeout)
        random = Random()  # noqa: S311  # pauses
        follower = Follower(self.monitor, chosen, random, self.last, not_before=self._not_before)
        return Updates(self, follower, self._client.http, progress=progress)

    @overload
    async def result(self, *, timeout: float | None = None, progress: bool = False) -> T: ...
    @overload
    async def result(
        self, *, type: type[R], timeout: float | None = None, progress: bool = False
    ) -> R: ...
    async def result(
        self, *, type: Any = None, timeout: float | None = None, progress: bool = False
    ) -> Any:
        """Follow the job to its end and return its result, as `type` if one is given.

        Raises `JobFailed`, `JobCancelled`, `JobTimeout`, `ResultMismatch`, or what else keeps the
        job from being followed (`ClientError`).
        """
        async with self.updates(timeout=timeout, progress=progress) as updates:
            async for _ in updates:
                pass
        return outcome_of(cast("JobUpdate", self.last), self._type if type is None else type)

    async def cancel(self) -> JobUpdate:
        """Ask the job to stop; it may still end otherwise. Raises `RequestRefused`."""
        repeated = Repeated(cancel_of(self.monitor), self._client.options.submit_for, Random())  # noqa: S311
        await finish(repeated, self._client.http)
        update = cancelled_of(repeated.answered)
        if update.status.terminal:
            self.last = update
        return update


class Updates:
    """The updates of one following, to be iterated over once."""

    def __init__(
        self, job: AsyncJob[Any], follower: Follower, http: AsyncHttpClient, *, progress: bool
    ) -> None:
        self._job = job
        self._follower = follower
        self._drive = Drive(follower, http)
        self._wants_bar = progress
        self._bar: ProgressBar | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobUpdate:
        if self._wants_bar and self._bar is None:
            from asyncjobs.client.bars import ProgressBar  # noqa: PLC0415  # rarely wanted

            self._bar = ProgressBar().__enter__()
        try:
            update = await anext(self._drive)
        except BaseException:
            await self.aclose()
            raise
        self._job.last, self._job.monitor = update, self._follower.monitor
        if self._bar is not None:
            self._bar.show(update)
        return update

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
        await self._drive.aclose()
