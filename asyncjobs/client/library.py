"""What the shells need of httpx2, or of httpx, which has the same names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

from asyncjobs.client.errors import ClientError, NotAJob, RedirectLoop
from asyncjobs.client.exchange import Answered, Ask, Broken, Event, Hopeless
from asyncjobs.errors import ConfigurationError

_LIBRARIES = frozenset({"httpx2", "httpx"})


class _Builder(Protocol):
    """What the two kinds of clients have in common."""

    def build_request(
        self, method: str, url: str, *, json: Any = ..., headers: Any = ..., timeout: Any = ...
    ) -> Any: ...


class HttpClient(_Builder, Protocol):
    """An `httpx2.Client` or `httpx.Client`."""

    def send(self, request: Any, *, stream: bool = ..., follow_redirects: Any = ...) -> Any: ...

    def close(self) -> None: ...


class AsyncHttpClient(_Builder, Protocol):
    """An `httpx2.AsyncClient` or `httpx.AsyncClient`."""

    async def send(
        self, request: Any, *, stream: bool = ..., follow_redirects: Any = ...
    ) -> Any: ...

    async def aclose(self) -> None: ...


class Failures:
    """The exceptions of the library that a client comes from, as events."""

    def __init__(self, client: object) -> None:
        library = _library_of(client)
        self.caught: tuple[type[Exception], ...] = (library.HTTPError, library.InvalidURL)
        self._library = library

    def event_of(self, error: Exception, url: str) -> Event:
        """Judge whether another try could go better."""
        library = self._library
        if isinstance(error, library.TooManyRedirects):
            return Hopeless(_caused(RedirectLoop(url), error))
        unsendable = (library.InvalidURL, library.UnsupportedProtocol, library.LocalProtocolError)
        if isinstance(error, unsendable):
            return Hopeless(_caused(NotAJob(url, f"nothing, for {str(error).rstrip('.')}"), error))
        reason = str(error) or type(error).__name__
        unconnected = (library.ConnectError, library.ConnectTimeout, library.PoolTimeout)
        return Broken(reason, connected=not isinstance(error, unconnected))


def request_of(client: _Builder, ask: Ask) -> Any:
    """Build a request, with all that the client adds of its own."""
    body = {} if ask.json is None else {"json": ask.json}
    return client.build_request(
        ask.method, ask.url, headers=dict(ask.headers), timeout=ask.timeout, **body
    )


def streams_events(response: Any) -> bool:
    """Tell whether a response is a stream of Server-Sent Events."""
    headers: Mapping[str, str] = response.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return response.status_code == 200 and kind == "text/event-stream"


def answer_of(asked: Any, response: Any, body: bytes) -> Answered:
    """Translate a response that was read to its end."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answered(str(asked.url), str(response.url), response.status_code, headers, body)


def _library_of(client: object) -> Any:
    for one in type(client).__mro__:
        root = one.__module__.partition(".")[0]
        if root in _LIBRARIES:
            return sys.modules[root]
    raise ConfigurationError(
        f"{type(client).__name__} is no client of httpx2 or httpx: hand in one of these."
    )


def _caused(error: ClientError, cause: Exception) -> ClientError:
    error.__cause__ = cause
    return error
