"""The blocking client; `base` and `follower` decide, this module does the I/O."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

from typing_extensions import TypeVar

from asyncjobs.client.base import ClientBase, RemoteJobBase
from asyncjobs.client.documents import JobUpdate, RemoteFile, name_of
from asyncjobs.client.download import MAX_RESTARTS
from asyncjobs.client.exchange import ActionResult, Ask, End, Read, Rule, U, Wait, Woke
from asyncjobs.client.output import ReceivedItem
from asyncjobs.client.saving import PartFile, target_of
from asyncjobs.client.sources import JobSource
from asyncjobs.client.transport import HttpClient, HttpLibrary, IncomingAnswer, arrived, opened
from asyncjobs.settings import Seconds

T = TypeVar("T", default=Any)
R = TypeVar("R", default=Any)


class JobsClient(ClientBase[HttpClient]):
    """Submits jobs to a server and follows them.

    `http` is an `httpx2.Client` or `httpx.Client` with your credentials; you close it yourself.
    Without it, the client opens its own at the first request: close the client, or use `with`.
    Several threads may share a client.
    """

    _opening = threading.Lock()

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
        """Close the client's own connections; an HTTP client that was passed in stays open."""
        own = self._take_own()
        if own is not None:
            own.close()

    @property
    def http(self) -> HttpClient:
        """The HTTP client, for requests of your own."""
        with self._opening:
            return self._http(self._new_http)

    def _new_http(self) -> HttpClient:
        import httpx2  # noqa: PLC0415  # not needed by callers that pass in a client of httpx

        return httpx2.Client(base_url=self.base_url)

    def submit(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        type: type[R] | None = None,
    ) -> RemoteJob[R]:
        """Send the request that starts a job; `type` is the type of the job's result.

        The request is sent again if its answer is lost, always with the same `Idempotency-Key`, so
        a server that supports this header starts one job. Raises `RequestRefused`, `AccessRefused`,
        `ServerUnreachable`, or `NotAJob` if the answer names no job.
        """
        submission = self._submission(method, url, json, headers, idempotency_key)
        run(submission, self.http)
        submitted = self._submitted(submission, method)
        return RemoteJob(self, submitted, type, received=time.monotonic())

    def attach(
        self,
        job: JobSource,
        *,
        token: str | None = None,
        token_url: str | None = None,
        type: type[R] | None = None,
    ) -> RemoteJob[R]:
        """Return the job that another program has submitted; no request is sent yet.

        `job` is its status URL, or the document of the 202 as a dict or a model, which may have the
        job's token. Without the document, `token` opens the job; so does a link with `?token=`. The
        token is sent to the server of the job alone, and renewed at `token_url` (default: `/token`
        below the status URL). Raises `ValueError` or `TypeError` for what names no job.
        """
        submitted = self._named(job, token, token_url)
        held = submitted.monitor.token
        age = 0.0 if held is None else held.age(time.time())
        return RemoteJob(self, submitted, type, received=time.monotonic() - age)


class RemoteJob(RemoteJobBase[T, HttpClient]):
    """A job at a server; `last` is its newest known state, `monitor` has its URLs."""

    def updates(
        self, *, timeout: Seconds | None = None, progress: bool = False
    ) -> Generator[JobUpdate]:
        """Yield each new state, including the job's end, however the job ends.

        After `timeout` (default: the client's), `JobTimeout` is raised. `progress` draws a bar on
        standard error. Call `close` on the generator if you stop early.
        """
        follower = self._follower(timeout, progress=progress)
        with closing(drive(follower, self._client.http)) as updates:
            for update in _drawn(updates) if progress else updates:
                self._learn(update, follower)
                yield update

    @overload
    def result(self, *, timeout: Seconds | None = None, progress: bool = False) -> T: ...
    @overload
    def result(
        self, *, type: type[R], timeout: Seconds | None = None, progress: bool = False
    ) -> R: ...
    def result(
        self, *, type: Any = None, timeout: Seconds | None = None, progress: bool = False
    ) -> Any:
        """Follow the job to its end and return its result, as `type` if one is given.

        Raises `RemoteJobFailed`, `RemoteJobCancelled`, `JobTimeout`, `ResultMismatch`, or another
        `ClientError` if the job cannot be followed.
        """
        with closing(self.updates(timeout=timeout, progress=progress)) as updates:
            for _ in updates:
                pass
        return self._outcome(type)

    def output(
        self,
        stream: str = "output",
        *,
        after: str | None = None,
        timeout: Seconds | None = None,
    ) -> Generator[ReceivedItem]:
        """Yield each item that the job emits, those that exist and each new one, to its end.

        Begins after the item whose `offset` is `after`. It ends with the job, however the job ends.
        After `timeout` (default: the client's), `JobTimeout` is raised. Raises `RequestRefused` for
        an invalid offset, or `JobNotFound`. Call `close` on the generator if you stop early.
        """
        return drive(self._output(stream, after, timeout), self._client.http)

    def download(
        self,
        file: RemoteFile | str,
        to: str | os.PathLike[str],
        *,
        timeout: Seconds | None = None,
    ) -> Path:
        """Save a file of the job, one of `files` or its name, and return its path.

        `to` is the path, or an existing folder. Until the file is complete and its size and digest
        are right, it has a temporary name in the same folder. A lost connection continues where it
        was lost; a file that is replaced meanwhile is read again. Raises `RemoteFileNotFound`,
        `DownloadTimeout` after `timeout` (default: the client's), another `DownloadFailed`,
        `JobNotFound`, `AccessRefused`, `ServerUnreachable`, and the `OSError` of the folder.
        """
        download = self._download(file, timeout, restarts=MAX_RESTARTS)
        with PartFile(target_of(to, name_of(file))) as part:
            part.open()
            with closing(drive(download, self._client.http)) as chunks:
                for chunk in chunks:
                    part.write(chunk, download.offset)
            return part.complete(download.received)

    def read_file(
        self, file: RemoteFile | str, *, timeout: Seconds | None = None
    ) -> Generator[bytes]:
        """Yield the bytes of a file of the job, in pieces of any size.

        A lost connection continues where it was lost. Raises as `download`, and `RemoteFileChanged`
        if the file is replaced meanwhile. Call `close` on the generator if you stop early.
        """
        return drive(self._download(file, timeout), self._client.http)

    def cancel(self) -> JobUpdate:
        """Ask the job to stop; it may still end in another way. Raises `RequestRefused`."""
        cancellation = self._cancellation()
        run(cancellation, self._client.http)
        return self._cancelled(cancellation)


def follow(
    url: str,
    *,
    http: HttpClient | None = None,
    timeout: Seconds | None = None,
    progress: bool = False,
) -> Any:
    """Follow the job at a status URL to its end and return its result; see `RemoteJob.result`."""
    with JobsClient(http=http) as client:
        return client.attach(url).result(timeout=timeout, progress=progress)


def run(rule: Rule, http: HttpClient) -> None:
    """Carry out a rule that has no updates."""
    for _ in drive(rule, http):
        pass


def drive(rule: Rule[U], http: HttpClient) -> Generator[U]:
    """Carry out a rule, and raise the error with which it ends."""
    with closing(BlockingConnection(http)) as connection:
        step = rule.start(time.monotonic())
        while True:
            yield from step.updates
            if isinstance(step.then, End):
                if step.then.error is not None:
                    raise step.then.error
                return
            result = connection.perform(step.then)
            step = rule.receive(result, time.monotonic())


class BlockingConnection:
    """Performs the actions of one rule; holds its open stream, if any."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._library = HttpLibrary(http)
        self._response: Any = None
        self._chunks: Iterator[bytes] = iter(())

    def perform(self, action: Ask | Read | Wait) -> ActionResult:
        try:
            match action:
                case Read():
                    return arrived(next(self._chunks, None))
                case Wait(seconds):
                    self.close()
                    time.sleep(seconds)
                    return Woke()
                case Ask():
                    self.close()
                    return self._ask(action)
        except self._library.errors as error:
            return self._library.result_of(error, action)

    def _ask(self, ask: Ask) -> ActionResult:
        answer = IncomingAnswer(self._http, ask, time.monotonic())
        response = self._response = self._begin(answer)
        self._chunks = response.iter_bytes()
        if answer.is_stream(response):
            return opened(response)
        with closing(self):
            for chunk in self._chunks:
                refused = answer.add(chunk, time.monotonic())
                if refused is not None:
                    return refused
            return answer.complete(response)

    def _begin(self, answer: IncomingAnswer) -> Any:
        request = answer.request
        while True:
            response = self._http.send(request, stream=True, follow_redirects=False)
            if response.next_request is None:
                return response
            response.close()
            request = answer.redirected(response)

    def close(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()


def _drawn(updates: Iterator[JobUpdate]) -> Iterator[JobUpdate]:
    from asyncjobs.client.progress_bar import ProgressBar  # noqa: PLC0415  # slow to load

    with ProgressBar() as bar:
        for update in updates:
            bar.show(update)
            yield update
