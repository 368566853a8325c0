"""Submit and follow jobs from blocking code: a shell around the rules, which are elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from math import inf
from random import Random
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast, overload

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
    Read,
    Rule,
    Wait,
    Woke,
)
from asyncjobs.client.follower import LONGEST_ANSWER, Follower
from asyncjobs.client.library import Failures, HttpClient, answer_of, request_of, streams_events
from asyncjobs.client.monitors import Accepted, Monitor, read_accepted
from asyncjobs.client.options import Following
from asyncjobs.client.outcomes import cancel_of, cancelled_of, outcome_of, submission_of
from asyncjobs.client.requests import Repeated

T = TypeVar("T")
R = TypeVar("R")


class JobsClient:
    """Submits jobs to a server and follows them.

    `http` is an `httpx2.Client` or `httpx.Client` with your credentials; it stays yours to close.
    Without one, the client opens its own at the first request: close it, or use `with`. Like
    these, it may be used by several threads.
    """

    def __init__(
        self,
        base_url: str = "",
        *,
        http: HttpClient | None = None,
        options: Following | None = None,
    ) -> None:
        self.base_url = base_url
        self.options = options or Following()
        self._given = http
        self._own: HttpClient | None = None
        self._opening = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, but for those of a client that was handed in."""
        if self._own is not None:
            self._own.close()
            self._own = None

    @property
    def http(self) -> HttpClient:
        """The HTTP client, for requests of your own."""
        if self._given is not None:
            return self._given
        with self._opening:
            if self._own is None:
                import httpx2  # noqa: PLC0415  # who hands in one of httpx need not have it

                self._own = httpx2.Client(base_url=self.base_url)
            return self._own

    @overload
    def submit(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job[Any]: ...
    @overload
    def submit(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        type: type[R],
    ) -> Job[R]: ...
    def submit(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        type: Any = None,
    ) -> Job[Any]:
        """Send what starts a job; `type` is that of its result.

        It is sent again where the answer was lost, and always with an `Idempotency-Key`, so that
        a server that knows this header begins one job. Raises `RequestRefused`, `AccessRefused`,
        `ServerUnreachable`, and `NotAJob` where the answer names no job.
        """
        ask = submission_of(method, url, json, headers, idempotency_key)
        repeated = Repeated(ask, self.options.submit_for, Random())  # noqa: S311  # pauses
        for _ in drive(repeated, self.http):
            pass
        accepted = read_accepted(repeated.answered, self.options.origins, method=method)
        return Job(self, accepted, type, not_before=time.monotonic() + accepted.pause)

    @overload
    def attach(self, status_url: str) -> Job[Any]: ...
    @overload
    def attach(self, status_url: str, *, type: type[R]) -> Job[R]: ...
    def attach(self, status_url: str, *, type: Any = None) -> Job[Any]:
        """Take up a job by its status URL; nothing is sent yet."""
        return Job(self, Accepted(Monitor(status_url)), type)


class Job(Generic[T]):
    """A job at a server. `last` is the newest that is known of it."""

    def __init__(
        self, client: JobsClient, accepted: Accepted, type: Any = None, *, not_before: float = -inf
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

    def updates(
        self, *, timeout: float | None = None, progress: bool = False
    ) -> Generator[JobUpdate]:
        """Yield what is new, up to and with the job's end, in whichever way it ends.

        `timeout` is in seconds, those of the client's options unless given; then `JobTimeout` is
        raised. `progress` draws a bar on the standard error. Who stops early should `close` it.
        """
        options = self._client.options
        chosen = options if timeout is None else replace(options, timeout=timeout)
        random = Random()  # noqa: S311  # pauses
        follower = Follower(self.monitor, chosen, random, self.last, not_before=self._not_before)
        with closing(drive(follower, self._client.http)) as updates:
            for update in _drawn(updates) if progress else updates:
                self.last, self.monitor = update, follower.monitor
                yield update

    @overload
    def result(self, *, timeout: float | None = None, progress: bool = False) -> T: ...
    @overload
    def result(
        self, *, type: type[R], timeout: float | None = None, progress: bool = False
    ) -> R: ...
    def result(
        self, *, type: Any = None, timeout: float | None = None, progress: bool = False
    ) -> Any:
        """Follow the job to its end and return its result, as `type` if one is given.

        Raises `JobFailed`, `JobCancelled`, `JobTimeout`, `ResultMismatch`, or what else keeps the
        job from being followed (`ClientError`).
        """
        with closing(self.updates(timeout=timeout, progress=progress)) as updates:
            for _ in updates:
                pass
        return outcome_of(cast("JobUpdate", self.last), self._type if type is None else type)

    def cancel(self) -> JobUpdate:
        """Ask the job to stop; it may still end otherwise. Raises `RequestRefused`."""
        repeated = Repeated(cancel_of(self.monitor), self._client.options.submit_for, Random())  # noqa: S311
        for _ in drive(repeated, self._client.http):
            pass
        update = cancelled_of(repeated.answered)
        if update.status.terminal:
            self.last = update
        return update


def follow(
    url: str,
    *,
    http: HttpClient | None = None,
    timeout: float | None = None,
    progress: bool = False,
) -> Any:
    """Follow the job at a status URL to its end and return its result; see `Job.result`."""
    with JobsClient(http=http) as client:
        return client.attach(url).result(timeout=timeout, progress=progress)


def drive(rule: Rule, http: HttpClient) -> Generator[JobUpdate]:
    """Carry out what a rule decides; raises the error that it ends by."""
    with closing(_Connection(http)) as connection:
        step = rule.start(time.monotonic())
        while True:
            yield from step.updates
            if isinstance(step.then, End):
                if step.then.error is not None:
                    raise step.then.error
                return
            event = connection.perform(step.then)
            step = rule.receive(event, time.monotonic())


class _Connection:
    """The requests of one rule, and the stream that is open, if any."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._failures = Failures(http)
        self._response: Any = None
        self._chunks: Iterator[bytes] = iter(())
        self._url = ""

    def perform(self, action: Ask | Read | Wait) -> Event:
        try:
            if isinstance(action, Read):
                chunk = next(self._chunks, None)
                return Broken("the stream ended") if chunk is None else Arrived(chunk)
            self.close()
            if isinstance(action, Wait):
                time.sleep(action.seconds)
                return Woke()
            self._url = action.url
            return self._ask(action)
        except self._failures.caught as error:
            return self._failures.event_of(error, self._url)

    def _ask(self, ask: Ask) -> Event:
        request = request_of(self._http, ask)
        ends = time.monotonic() + ask.total
        response = self._http.send(request, stream=True, follow_redirects=True)
        try:
            self._chunks = cast("Iterator[bytes]", response.iter_bytes())
            if ask.stream and streams_events(response):
                self._response, response = response, None
                return Opened()
            body = bytearray()
            for chunk in self._chunks:
                body += chunk
                if len(body) > LONGEST_ANSWER:
                    return Hopeless(AnswerTooLarge(ask.url, LONGEST_ANSWER))
                if time.monotonic() > ends:
                    return Broken("its answer does not end")
            return answer_of(request, response, bytes(body))
        finally:
            if response is not None:
                response.close()

    def close(self) -> None:
        """Close the open stream."""
        response, self._response = self._response, None
        if response is not None:
            response.close()


def _drawn(updates: Iterator[JobUpdate]) -> Iterator[JobUpdate]:
    from asyncjobs.client.bars import ProgressBar  # noqa: PLC0415  # slow to load, rarely wanted

    with ProgressBar() as bar:
        for update in updates:
            bar.show(update)
            yield update
