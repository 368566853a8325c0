"""Requests and answers in terms of httpx2, or of httpx, which has the same names. No I/O."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

from asyncjobs.client.answers import require_origin
from asyncjobs.client.errors import AnswerTooLarge, ClientError, NotAJob, RedirectLoop
from asyncjobs.client.exchange import (
    MAX_ANSWER_BYTES,
    ActionResult,
    Answered,
    Arrived,
    Ask,
    Broken,
    Hopeless,
    Opened,
    Read,
    Wait,
)
from asyncjobs.errors import ConfigurationError

_LIBRARIES = frozenset({"httpx2", "httpx"})
_MAX_REDIRECTS = 20


class _RequestBuilder(Protocol):
    """The part that blocking and asynchronous HTTP clients have in common."""

    def build_request(
        self, method: str, url: str, *, json: Any = ..., headers: Any = ..., timeout: Any = ...
    ) -> Any: ...


class HttpClient(_RequestBuilder, Protocol):
    """An `httpx2.Client` or `httpx.Client`."""

    def send(self, request: Any, *, stream: bool = ..., follow_redirects: Any = ...) -> Any: ...

    def close(self) -> None: ...


class AsyncHttpClient(_RequestBuilder, Protocol):
    """An `httpx2.AsyncClient` or `httpx.AsyncClient`."""

    async def send(
        self, request: Any, *, stream: bool = ..., follow_redirects: Any = ...
    ) -> Any: ...

    async def aclose(self) -> None: ...


class HttpLibrary:
    """The library of an HTTP client; `errors` are its exceptions for failed requests."""

    def __init__(self, client: object) -> None:
        self._library = library = _library_of(client)
        self.errors: tuple[type[Exception], ...] = (
            library.HTTPError,
            library.InvalidURL,
            UnicodeError,  # a server's cookie that is not ASCII cannot be sent back
            ClientError,
        )

    def result_of(self, error: Exception, action: Ask | Read | Wait) -> ActionResult:
        """Return `Hopeless` if the action fails however often it is tried, else `Broken`."""
        if isinstance(error, ClientError):
            return Hopeless(error)
        library = self._library
        url = action.url if isinstance(action, Ask) else ""
        if isinstance(error, library.InvalidURL):
            # The error's message, and so its traceback, may quote the password of the URL.
            return Hopeless(NotAJob(url, "nothing, because the URL is malformed"))
        unsendable = (
            library.UnsupportedProtocol,
            library.LocalProtocolError,
            UnicodeError,
        )
        if isinstance(error, unsendable):
            return Hopeless(_caused(NotAJob(url, f"nothing: {str(error).rstrip('.')}"), error))
        reason = str(error) or type(error).__name__
        unconnected = (library.ConnectError, library.ConnectTimeout, library.PoolTimeout)
        return Broken(reason, connected=not isinstance(error, unconnected))


class IncomingAnswer:
    """An answer that is being read, up to the limits of size and time."""

    def __init__(self, client: _RequestBuilder, ask: Ask, now: float) -> None:
        body = {} if ask.json is None else {"json": ask.json}
        self.request = client.build_request(
            ask.method, ask.url, headers=dict(ask.headers), timeout=ask.timeout, **body
        )
        self._ask = ask
        self._ends = now + ask.total
        self._body = bytearray()
        self._redirects = 0

    def redirected(self, response: Any) -> Any:
        """Return the request to which a redirect leads.

        The HTTP client adds the caller's headers to each request, and for another origin drops only
        `Authorization`; hence `ForeignUrl`. Raises `RedirectLoop` after 20.
        """
        asked = str(self.request.url)
        self._redirects += 1
        if self._redirects > _MAX_REDIRECTS:
            raise RedirectLoop(asked)
        require_origin(str(response.next_request.url), asked, self._ask.origins)
        return response.next_request

    def is_stream(self, response: Any) -> bool:
        """Return whether the answer is the requested stream of Server-Sent Events, or content."""
        if self._ask.content:
            return response.status_code in {200, 206}
        headers: Mapping[str, str] = response.headers
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        events = response.status_code == 200 and media_type == "text/event-stream"
        return self._ask.stream and events

    def add(self, chunk: bytes, now: float) -> ActionResult | None:
        """Add a part of the body; return the reason if the answer must not be read further."""
        self._body += chunk
        if len(self._body) > MAX_ANSWER_BYTES:
            return Hopeless(AnswerTooLarge(self._ask.url, MAX_ANSWER_BYTES))
        return Broken("the response did not end in time") if now > self._ends else None

    def complete(self, response: Any) -> Answered:
        """Return the answer after its last part."""
        asked, url = str(self.request.url), str(response.url)
        headers = _headers_of(response)
        return Answered(asked, url, response.status_code, headers, bytes(self._body))


def opened(response: Any) -> Opened:
    """Return the result of a request whose answer is the requested stream."""
    return Opened(_headers_of(response), response.status_code)


def arrived(chunk: bytes | None) -> ActionResult:
    """Return the result of reading a stream; None stands for its end."""
    return Broken("the stream ended", ended=True) if chunk is None else Arrived(chunk)


def _headers_of(response: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _library_of(client: object) -> Any:
    for parent in type(client).__mro__:
        root = parent.__module__.partition(".")[0]
        if root in _LIBRARIES:
            return sys.modules[root]
    raise ConfigurationError(
        f"{type(client).__name__} is not a client of httpx2 or httpx: pass one of these."
    )


def _caused(error: ClientError, cause: Exception) -> ClientError:
    error.__cause__ = cause
    return error
