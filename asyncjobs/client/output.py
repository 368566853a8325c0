"""Reads a stream of output by the read half of the Durable Streams protocol.

It does no I/O and has no clock: a shell drives the reader (see `exchange`). Each item is returned
once: an event's data count only together with the offset that follows them.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as BadBase64
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from asyncjobs.client.answers import Trouble, problem_of, trouble_of
from asyncjobs.client.credential import Credential
from asyncjobs.client.documents import object_of, parse_json
from asyncjobs.client.errors import (
    AccessRefused,
    AnswerTooLarge,
    ClientError,
    JobNotFound,
    JobTimeout,
    NotAJob,
    NotJson,
    RequestRefused,
    ServerUnreachable,
    sentence_of,
)
from asyncjobs.client.events import EventParser, ServerEvent
from asyncjobs.client.exchange import (
    MAX_ANSWER_BYTES,
    ActionResult,
    Answered,
    Arrived,
    Ask,
    Broken,
    End,
    Hopeless,
    Opened,
    Read,
    Step,
    Wait,
    Woke,
)
from asyncjobs.client.follower import FailureStreak, Following, Persistent, Transport
from asyncjobs.client.pace import DEFAULT_PAUSE, LEAST_PAUSE, retry_after

#: The offset before the first item.
BEGINNING = "-1"

#: Between an offset and the number of items after it; offsets contain no comma.
_MARK = ","
_MAX_SKIP_DIGITS = 10

#: The media types by the kinds of asyncjobs, for streams of events.
_MEDIA_TYPES = {
    "json": "application/json",
    "text": "text/plain",
    "bytes": "application/octet-stream",
}

#: The longest silence of an answer. A server holds a read, and a stream between two keep-alives,
#: for less.
_SILENCE = 90.0
#: Failures in a row after which streams of events are given up.
_MAX_STRIKES = 3


@dataclass(frozen=True)
class ReceivedItem:
    """An item of a job's output: a JSON value, a piece of text, or bytes.

    `offset` is that after the item: pass it as `after` to go on later. `epoch` is the number of the
    attempt that emitted the item; a retry of the job begins a new one.
    """

    value: Any
    offset: str
    epoch: int


@dataclass
class _OpenStream:
    """An open stream of events, and the data that wait for their offset."""

    parser: EventParser = field(default_factory=EventParser)
    base64: bool = False
    data: list[str] = field(default_factory=list[str])
    size: int = 0
    bytes: int = 0
    news: bool = False


class OutputFollower(Persistent[ReceivedItem]):
    """Reads one stream from an offset to its end."""

    def __init__(
        self,
        url: str,
        after: str,
        options: Following,
        random: Random,
        credential: Credential,
    ) -> None:
        super().__init__(options, random, credential)
        self._url = url
        # The items that are known already, of those after the offset.
        begin, _, skip = after.partition(_MARK)
        known = skip.isascii() and skip.isdigit() and len(skip) < _MAX_SKIP_DIGITS
        self._offset, self._skip = (begin, int(skip)) if known else (after, 0)
        self._epoch = 0
        self._media_type: str | None = None
        allowed = [each for each in Transport if each in options.transports]
        self._ways: list[Transport] = allowed or [Transport.POLL]
        self._stream: _OpenStream | None = None
        self._untyped = False
        self._asked_at = 0.0

    def _first(self, now: float) -> Step[ReceivedItem]:
        return Step(self._ask(now))

    def _on(self, result: ActionResult, now: float) -> Step[ReceivedItem]:
        match result:
            case Woke():
                return Step(self._ask(now))
            case Hopeless(error):
                raise error
            case Opened(headers):
                return Step(self._opened(headers))
            case Arrived(data):
                return self._on_stream(data, now)
            case Broken(reason):
                if self._stream is not None:
                    return self._lost_stream(reason, now)
                return self._again(Trouble(reason, None), now)
            case Answered():
                return self._answered(result, now)

    def _too_late(self, timeout: float, reason: str) -> ClientError:
        return JobTimeout(None, timeout, reason)

    def _unreachable(self, reason: str) -> ServerUnreachable:
        return ServerUnreachable(self._url, reason)

    # Requests

    @property
    def _way(self) -> Transport:
        return self._ways[0]

    def _ask(self, now: float) -> Ask:
        self._stream = None
        self._asked_at = now
        renewal = self._renewal(now)
        if renewal is not None:
            return renewal
        left = self._ends - now
        headers = self._credential.headers_for(self._url)
        if self._streams:
            # A proxy that compresses a stream is likely to buffer it, too.
            headers |= {"accept": "text/event-stream", "accept-encoding": "identity"}
        return Ask(
            "GET",
            self._located(),
            headers,
            timeout=min(_SILENCE, left),
            total=left,
            stream=self._streams,
            origins=self._options.origins,
        )

    @property
    def _streams(self) -> bool:
        return self._way is Transport.EVENTS and not self._untyped

    def _located(self) -> str:
        parts = urlsplit(self._url)
        query = {**dict(parse_qsl(parts.query)), "offset": self._offset}
        if self._way is not Transport.POLL:
            query["live"] = "sse" if self._streams else "long-poll"
        return parts._replace(query=urlencode(query)).geturl()

    # Items

    def _items(self, value: bytes) -> list[Any]:
        """Return the items of a portion in the media type of the stream."""
        kind = self._media_type or ""
        if not value:
            return []
        if kind == "application/json":
            try:
                found = parse_json(value)
            except ValueError:
                raise NotJson(self._url, kind, value) from None
            return found if isinstance(found, list) else [found]  # pyright: ignore[reportUnknownVariableType]
        return [value.decode("utf-8", "replace") if kind.startswith("text/") else value]

    def _numbered(self, items: list[Any], end: str) -> tuple[ReceivedItem, ...]:
        """Advance to the offset after the items; return those that are not known."""
        begin, self._offset = self._offset, end
        known, self._skip = min(self._skip, len(items)), 0
        last = len(items) - 1
        return tuple(
            ReceivedItem(item, end if place == last else f"{begin}{_MARK}{place + 1}", self._epoch)
            for place, item in enumerate(items)
            if place >= known
        )

    # Streams

    def _opened(self, headers: Mapping[str, str]) -> Read:
        self._media_type = _MEDIA_TYPES.get(headers.get("stream-kind", ""), self._media_type)
        coded = headers.get("stream-sse-data-encoding", "").lower() == "base64"
        self._stream = _OpenStream(base64=coded)
        return Read()

    def _on_stream(self, data: bytes, now: float) -> Step[ReceivedItem]:
        stream = self._stream = self._stream or _OpenStream()
        stream.bytes += len(data)
        found: list[ReceivedItem] = []
        for event in stream.parser.feed(data):
            if event.name == "data" and self._media_type is None:
                # The server of another library: the answer to a read has the type.
                self._untyped = True
                return Step(self._ask(now), tuple(found))
            if event.name == "data":
                stream.data.append(event.data)
                stream.size += len(event.data)
            elif event.name == "control":
                control = self._control(event)
                found += self._complete(stream, control)
                stream.news = True
                self._failures = FailureStreak()
                if control.get("streamClosed") is True:
                    return Step(End(), tuple(found))
        if stream.parser.held + stream.size > MAX_ANSWER_BYTES:
            raise AnswerTooLarge(self._url, MAX_ANSWER_BYTES)
        if self._credential.is_due(now):
            return Step(self._ask(now), tuple(found))
        # A stream's read keeps the timeout with which the stream was opened. Near the end of the
        # caller's timeout that is too long; a held read can be shorter.
        if self._ends - now < min(_SILENCE, self._ends - self._asked_at) - 1:
            self._lower()
            return Step(self._ask(now), tuple(found))
        return Step(Read(), tuple(found))

    def _control(self, event: ServerEvent) -> Mapping[str, Any]:
        try:
            control = object_of(parse_json(event.data))
        except ValueError:
            control = {}
        self._check_offset(control.get("streamNextOffset"))
        return control

    def _check_offset(self, offset: Any) -> None:
        if not isinstance(offset, str) or not offset.isascii() or not offset.isprintable():
            raise NotAJob(self._url, "no next offset, or a malformed one")

    def _complete(
        self, stream: _OpenStream, control: Mapping[str, Any]
    ) -> tuple[ReceivedItem, ...]:
        parts, stream.data, stream.size = stream.data, [], 0
        self._learn_epoch(control.get("streamEpoch"))
        items: list[Any] = []
        exact = control.get("streamText")
        if isinstance(exact, str) and parts:
            # Events lose carriage returns.
            items, parts = [exact], []
        for part in parts:
            try:
                value = (
                    b64decode("".join(part.split()), validate=True)
                    if stream.base64
                    else part.encode()
                )
            except BadBase64:
                raise NotAJob(self._url, "data that are not base64") from None
            items += self._items(value)
        return self._numbered(items, control["streamNextOffset"])

    def _learn_epoch(self, found: Any) -> None:
        if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 10:
            found = int(found)
        if isinstance(found, int):
            self._epoch = found

    def _lost_stream(self, reason: str, now: float) -> Step[ReceivedItem]:
        stream, self._stream = self._stream or _OpenStream(), None
        if stream.news:
            # Servers end each stream after about a minute.
            long = now - self._asked_at > DEFAULT_PAUSE
            pause = LEAST_PAUSE if long else max(stream.parser.retry or 0.0, DEFAULT_PAUSE / 2)
            return Step(Wait(pause * self._random.uniform(1, 1.25)))
        # If a stream opens and stays silent, a proxy buffers it.
        self._failures.strikes += _MAX_STRIKES if not stream.bytes else 1
        if self._failures.strikes >= _MAX_STRIKES:
            self._lower()
        return self._again(Trouble(reason, None), now)

    # Answers

    def _answered(self, answer: Answered, now: float) -> Step[ReceivedItem]:
        if self._credential.refuse(answer.status, now):
            return Step(self._ask(now))
        trouble = trouble_of(answer)
        if trouble is not None:
            return self._again(trouble, now)
        self._require_portion(answer)
        if self._streams:
            self._lower()  # an answer, but not the requested stream
        self._failures = FailureStreak()
        self._learn_epoch(answer.headers.get("stream-epoch"))
        items: list[Any] = []
        if answer.status == 200:
            found = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            before, self._media_type = self._media_type, found
            items = self._items(answer.body)
            if items:
                self._untyped = False
            else:
                self._media_type = before  # the first item decides it
        news = self._numbered(items, answer.headers["stream-next-offset"])
        if answer.headers.get("stream-closed", "").lower() == "true":
            return Step(End(), news)
        pause = self._pause(answer, now, news=bool(items))
        return Step(Wait(pause) if pause else self._ask(now), news)

    def _require_portion(self, answer: Answered) -> None:
        """Raise the error of an answer that is not a part of the stream."""
        if answer.status in {404, 410}:
            reason = sentence_of(problem_of(answer)).rstrip(".")
            raise JobNotFound(answer.url, f"{answer.status}: {reason}")
        if answer.status in {401, 403}:
            raise AccessRefused(answer.url, answer.status)
        if answer.status >= 400:
            raise RequestRefused(answer.url, answer.status, problem_of(answer))
        if answer.status not in {200, 204} or "stream-next-offset" not in answer.headers:
            kind = answer.headers.get("content-type", "no Content-Type")
            raise NotAJob(answer.url, f"{answer.status} with {kind}, not a stream of output")
        self._check_offset(answer.headers["stream-next-offset"])

    def _pause(self, answer: Answered, now: float, *, news: bool) -> float:
        """Return the seconds before the next read."""
        up_to_date = answer.headers.get("stream-up-to-date", "").lower() == "true"
        if self._streams or (news and not up_to_date):
            return 0.0
        if self._way is Transport.POLL:
            asked = retry_after(answer.headers)
            return DEFAULT_PAUSE if asked is None else max(asked, LEAST_PAUSE)
        took = now - self._asked_at
        # A server that does not hold reads is polled.
        least = LEAST_PAUSE if news else DEFAULT_PAUSE
        return 0.0 if took >= least else least - took

    def _lower(self) -> None:
        left: list[Transport] = [each for each in self._ways if each is not Transport.EVENTS]
        self._ways = left or [Transport.HOLD]


def checked_offset(after: str) -> str:
    """Return the offset after which to read; raise `TypeError` or `ValueError` for no offset.

    Each server has its own form of offsets, so it may refuse others.
    """
    if not isinstance(after, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`after` is the `offset` of a received item, a string, got {after!r}.")
    if not after or not after.isascii() or not after.isprintable():
        raise ValueError(f"`after` is the `offset` of a received item, got {after!r}.")
    return after


def output_url(status_url: str, stream: str) -> str:
    """Return the URL of a stream below a status URL; the unnamed stream is `output`."""
    parts = urlsplit(status_url)
    name = "" if stream == "output" else f"/{quote(stream, safe='')}"
    return parts._replace(path=f"{parts.path}/output{name}", fragment="").geturl()
