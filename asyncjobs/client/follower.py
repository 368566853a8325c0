"""Follows a job by events, or else by held reads, or else by polls.

It does no I/O and has no clock: a shell drives the follower (see `exchange`). It guarantees that
updates come in the order of their versions and once each, that the terminal one comes once and
last, and that the server is never asked sooner than its `Retry-After` allows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asyncjobs.client.answers import (
    Monitor,
    MonitorKind,
    Trouble,
    events_url,
    moved_url,
    no_status,
    read_result,
    read_status,
    require_origin,
    result_url,
    trouble_of,
    version_of,
)
from asyncjobs.client.credential import Credential
from asyncjobs.client.documents import JobUpdate, parse_json, read_job, unknown_status
from asyncjobs.client.errors import (
    AnswerTooLarge,
    ClientError,
    JobTimeout,
    NotAJob,
    ServerUnreachable,
)
from asyncjobs.client.events import EventParser
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
from asyncjobs.client.pace import DEFAULT_PAUSE, LEAST_PAUSE, HeldReadPace, backoff, retry_after
from asyncjobs.core.status import JobStatus
from asyncjobs.settings import Seconds, seconds

U = TypeVar("U")

#: The longest silence of an event stream: three missing keep-alives of an asyncjobs server.
_STREAM_SILENCE = 45.0
#: How long a server may hold a read.
_HOLD = 25
#: The longest silence of any other answer.
_ANSWER = 30.0
#: Failures in a row after which a transport is given up.
_MAX_STRIKES = 3


class Transport(StrEnum):
    """The ways to follow a job, best first."""

    EVENTS = "events"
    HOLD = "hold"
    POLL = "poll"


@dataclass(frozen=True)
class Following:
    """How jobs are followed; durations are seconds or a timedelta.

    - `timeout`: how long a job is followed before `JobTimeout`; None is forever.
    - `patience`: how long requests may fail in a row before `ServerUnreachable`.
    - `submit_for`: how long a submission or cancellation is repeated.
    - `transports`: the transports that may be used; the best that works is chosen.
    - `origins`: the origins, besides the server's own, to which its answers may refer.
    """

    timeout: float | None = 86_400.0
    patience: float = 300.0
    submit_for: float = 30.0
    transports: Collection[Transport] = tuple(Transport)
    origins: Collection[str] = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            timeout: Seconds | None = ...,
            patience: Seconds = ...,
            submit_for: Seconds = ...,
            transports: Collection[Transport] = ...,
            origins: Collection[str] = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        """Convert each duration to seconds."""
        for name in ("timeout", "patience", "submit_for"):
            given: Seconds | None = getattr(self, name)
            object.__setattr__(self, name, None if given is None else seconds(given))


@dataclass
class _KnownState:
    """The newest state of the job."""

    last: JobUpdate | None = None
    etag: str | None = None

    @property
    def version(self) -> int | None:
        return None if self.last is None else self.last.version

    def take(self, update: JobUpdate) -> bool:
        """Store a state and return True, unless it is known already or older.

        The end of a job is never older than a state before it: a store that was restored from a
        backup numbers its versions anew.
        """
        known = self.last
        ends = known is not None and update.status.terminal and not known.status.terminal
        if known is not None and not ends:
            if known.version is not None and update.version is not None:
                if update.version <= known.version:
                    return False
            elif update.document == known.document and update.status is known.status:
                return False
        self.last = update
        return True


@dataclass
class FailureStreak:
    """Failures in a row: of the server (`count`), and of the current transport (`strikes`)."""

    count: int = 0
    since: float = 0.0
    strikes: int = 0
    reason: str = ""

    def add(self, reason: str, now: float) -> None:
        if not self.count:
            self.since = now
        self.count += 1
        self.reason = reason


class Persistent(ABC, Generic[U]):
    """A rule (`exchange.Rule`) that repeats what fails, and ends at the caller's timeout."""

    def __init__(self, options: Following, random: Random, credential: Credential) -> None:
        self._options = options
        self._random = random
        self._credential = credential
        self._renewing = False
        self._ends = math.inf
        self._failures = FailureStreak()

    def start(self, now: float) -> Step[U]:
        """Return the first request; the timeout counts from here."""
        if self._options.timeout is not None:
            self._ends = now + self._options.timeout
        return self._bounded(self._first(now), now)

    def receive(self, result: ActionResult, now: float) -> Step[U]:
        """Return what to do after the result of the last action."""
        try:
            if self._renewing:
                self._renewing = False
                self._credential.receive(result, now)
                result = Woke()
            return self._bounded(self._on(result, now), now)
        except ClientError as error:
            return Step(End(error))

    def _bounded(self, step: Step[U], now: float) -> Step[U]:
        """Keep the next action within the caller's timeout."""
        if isinstance(step.then, End):
            return step
        if now >= self._ends:
            error = self._too_late(self._options.timeout or 0.0, self._failures.reason)
            return Step(End(error), step.updates)
        if isinstance(step.then, Wait):
            return Step(Wait(min(step.then.seconds, self._ends - now)), step.updates)
        return step

    def _renewal(self, now: float) -> Ask | None:
        """Return the request that renews the token, if it is due now."""
        renewal = self._credential.renewal(now, self._options.origins)
        self._renewing = renewal is not None
        return renewal

    def _again(self, trouble: Trouble, now: float) -> Step[U]:
        """Try again later; raise `ServerUnreachable` after the caller's patience."""
        self._failures.add(trouble.reason, now)
        gives_up = self._failures.since + self._options.patience
        if now >= gives_up or now + (trouble.pause or 0.0) > gives_up:
            raise self._unreachable(trouble.reason)
        pause = backoff(self._failures.count, trouble.pause, self._random)
        return Step(Wait(min(pause, gives_up - now)))

    @abstractmethod
    def _first(self, now: float) -> Step[U]:
        """Return the first step."""

    @abstractmethod
    def _on(self, result: ActionResult, now: float) -> Step[U]:
        """Return the step that follows; raise `ClientError` to end."""

    @abstractmethod
    def _too_late(self, timeout: float, reason: str) -> ClientError:
        """Return the error at the end of the caller's timeout; `reason` is the latest failure."""

    @abstractmethod
    def _unreachable(self, reason: str) -> ServerUnreachable:
        """Return the error after too many failures in a row."""


@dataclass
class _OpenStream:
    """An open stream of events: `news` if it has brought any."""

    parser: EventParser = field(default_factory=EventParser)
    news: bool = False
    bytes: int = 0


class Follower(Persistent[JobUpdate]):
    """Follows one job to its end.

    `known` is the job's state if the caller has one. `not_before` is the earliest moment of the
    first poll. `credential` has the job's token.
    """

    def __init__(
        self,
        monitor: Monitor,
        options: Following,
        random: Random,
        known: JobUpdate | None = None,
        *,
        not_before: float = -math.inf,
        credential: Credential | None = None,
    ) -> None:
        self.monitor = monitor
        super().__init__(options, random, credential or Credential(None, -math.inf))
        self._seen = _KnownState()
        self._known = known
        self._not_before = not_before
        self._held_reads = HeldReadPace()
        self._left = [each for each in Transport if each in options.transports] or [Transport.POLL]
        self._stream: _OpenStream | None = None
        self._silence = _STREAM_SILENCE
        self._held = False
        self._result_from: str | None = None

    @property
    def last(self) -> JobUpdate | None:
        """The newest known state of the job."""
        return self._seen.last

    def _first(self, now: float) -> Step:
        early = self._not_before - now
        polls = self._transport is Transport.POLL
        first = Wait(early) if polls and early > 0 else self._ask(now)
        if self._known is None:
            return Step(first)
        self._seen.take(self._known)
        then = End() if self._known.status.terminal else first
        return Step(then, (self._known,))

    def receive(self, result: ActionResult, now: float) -> Step:
        """Return what to do after the result of the last action."""
        try:
            return super().receive(result, now)
        except RecursionError:
            # Python can parse a document that is nested too deeply to compare with the previous
            # one.
            received = "JSON that is nested too deeply"
            return Step(End(NotAJob(self.monitor.status, received)))

    def _on(self, result: ActionResult, now: float) -> Step:
        match result:
            case Woke():
                return Step(self._ask(now))
            case Hopeless(error):
                raise error
            case Opened():
                self._stream = _OpenStream()
                return Step(Read())
            case Arrived(data):
                return self._on_stream(data, now)
            case Broken(reason, connected):
                if self._stream is not None:
                    return self._lost_stream(reason, now)
                return self._troubled(Trouble(reason, None), now, evidence=connected)
            case Answered():
                return self._answered(result, now)

    def _too_late(self, timeout: float, reason: str) -> ClientError:
        return JobTimeout(self.last, timeout, reason)

    def _unreachable(self, reason: str) -> ServerUnreachable:
        return ServerUnreachable(self.monitor.status, reason, self.last)

    # Requests

    @property
    def _transport(self) -> Transport:
        """The best remaining transport that this server supports."""
        if Transport.EVENTS in self._left and self.monitor.events is not None:
            return Transport.EVENTS
        rest = [each for each in self._left if each is not Transport.EVENTS]
        usable = rest if self.monitor.kind is MonitorKind.JOB else [Transport.POLL]
        return usable[0] if usable else Transport.POLL

    def _ask(self, now: float) -> Ask:
        renewal = self._renewal(now)
        if renewal is not None:
            return renewal
        left = self._ends - now
        headers = {"accept": "application/json"}
        self._held = False
        if self._result_from is not None:
            headers["accept"] = "application/json, */*;q=0.5"
            return self._get(self._result_from, headers, min(_ANSWER, left), left)
        if self._transport is Transport.EVENTS and self.monitor.events is not None:
            return self._ask_events(self.monitor.events, left)
        if self._seen.etag is not None:
            headers["if-none-match"] = self._seen.etag
        hold = int(min(_HOLD, left))
        # Without a known version the current state is read at once.
        if self._transport is Transport.HOLD and self.last is not None and hold >= 1:
            self._held = True
            headers["prefer"] = f"wait={hold}"
            if self._seen.etag is None and self._seen.version is not None:
                headers["if-none-match"] = f'"{self._seen.version}"'
        timeout = min(_ANSWER + hold * self._held, left)
        return self._get(self.monitor.status, headers, timeout, left)

    def _get(self, url: str, headers: dict[str, str], silence: float, left: float) -> Ask:
        origins = self._options.origins
        headers |= self._credential.headers_for(url)
        return Ask("GET", url, headers, timeout=silence, total=left, origins=origins)

    def _ask_events(self, url: str, left: float) -> Ask:
        # A proxy that compresses a stream is likely to buffer it, too.
        headers = {"accept": "text/event-stream", "accept-encoding": "identity"}
        if self._seen.version is not None:
            headers["last-event-id"] = str(self._seen.version)
        self._silence = min(_STREAM_SILENCE, left)
        return replace(self._get(url, headers, self._silence, left), stream=True)

    # Streams

    def _on_stream(self, data: bytes, now: float) -> Step:
        stream = self._stream = self._stream or _OpenStream()
        stream.bytes += len(data)
        updates: list[JobUpdate] = []
        for event in stream.parser.feed(data):
            if event.name != "message":
                continue
            document = _parsed(event.data)
            update = read_job(document, version_of(event.id))
            if unknown_status(document) is not None:
                raise no_status(self.monitor.events or "", 200, document)
            if update is not None and self._seen.take(update):
                updates.append(update)
                if update.status.terminal:
                    return Step(End(), tuple(updates))
        if stream.parser.held > MAX_ANSWER_BYTES:
            raise AnswerTooLarge(self.monitor.events or "", MAX_ANSWER_BYTES)
        if updates:
            stream.news = True
            self._seen.etag = None
            self._failures = FailureStreak()
        # A stream's read keeps the timeout with which the stream was opened. Near the end of the
        # caller's timeout that is too long; a held read can be shorter.
        if self._credential.is_due(now):
            self._stream = None
            return Step(self._ask(now), tuple(updates))
        if self._ends - now < self._silence - 1:
            self._stream = None
            self._lower()
            return Step(self._ask(now), tuple(updates))
        return Step(Read(), tuple(updates))

    def _lost_stream(self, reason: str, now: float) -> Step:
        stream, self._stream = self._stream or _OpenStream(), None
        asked = DEFAULT_PAUSE if stream.parser.retry is None else stream.parser.retry
        if stream.news:
            return Step(Wait(max(asked, LEAST_PAUSE) * self._random.uniform(1, 1.25)))
        # If a stream opens and stays silent, a proxy buffers it.
        if not stream.bytes:
            self._failures.strikes = _MAX_STRIKES
        return self._troubled(Trouble(reason, asked), now, evidence=True)

    # Answers

    def _answered(self, answer: Answered, now: float) -> Step:
        if self._credential.refuse(answer.status, now):
            return Step(self._ask(now))
        trouble = trouble_of(answer)
        if trouble is not None:
            return self._troubled(trouble, now, evidence=True)
        if self._result_from is not None:
            return self._with_result(answer)
        if self._transport is Transport.EVENTS:
            # No stream of events: the next status read shows the reason. 204 means that the job
            # has ended.
            self._lower()
            asked = retry_after(answer.headers)
            return Step(self._ask(now) if not asked else Wait(asked))
        if answer.status == 304 and self.last is not None:
            return Step(self._after_read(answer, now))
        return self._read(answer, now)

    def _read(self, answer: Answered, now: float) -> Step:
        first = self.last is None
        kind, update = read_status(answer, self.monitor.kind)
        etag = answer.headers.get("etag", "")
        # An HTTP client cannot send any other text in a header.
        self._seen.etag = etag if etag and etag.isascii() and etag.isprintable() else None
        events = self.monitor.events
        if kind is MonitorKind.JOB and self.monitor.kind is MonitorKind.UNKNOWN and update.job_id:
            events = events_url(self.monitor.status, update.job_id)
        self.monitor = replace(self.monitor, kind=kind, events=events)
        self._follow_move(answer)
        if update.status is JobStatus.COMPLETED:
            self._result_from = result_url(update, self.monitor, answer)
            if self._result_from is not None:
                require_origin(self._result_from, answer.asked, self._options.origins)
                self._known = update
                self._failures = FailureStreak()
                return Step(self._ask(now))
        news = (update,) if self._seen.take(update) else ()
        if update.status.terminal and news:
            return Step(End(), news)
        if first and self._transport is not Transport.POLL:
            # Retry-After is for polls, and the next request is not a poll.
            self._failures = FailureStreak()
            return Step(self._ask(now), news)
        return Step(self._after_read(answer, now), news)

    def _follow_move(self, answer: Answered) -> None:
        moved = moved_url(answer, self.monitor.kind)
        if moved is not None and moved != self.monitor.status:
            require_origin(moved, answer.asked, self._options.origins)
            self.monitor = replace(self.monitor, status=moved)
            self._seen.etag = None

    def _after_read(self, answer: Answered, now: float) -> Ask | Wait:
        self._failures = FailureStreak()
        asked = retry_after(answer.headers)
        pause = DEFAULT_PAUSE if asked is None else max(asked, LEAST_PAUSE)
        if self._transport is Transport.HOLD:
            if "wait" in answer.headers.get("preference-applied", ""):
                turn = self._held_reads.pause(now, pause)
                return Wait(turn) if turn else self._ask(now)
            if self._held:
                self._lower()
        return Wait(pause)

    def _with_result(self, answer: Answered) -> Step:
        update = self._known
        if update is None:
            raise ServerUnreachable(answer.url, "it sent no status of the job", self.last)
        update = update.with_result(read_result(answer))
        self._seen.last = update
        return Step(End(), (update,))

    # Failures

    def _troubled(self, trouble: Trouble, now: float, *, evidence: bool) -> Step:
        """Try again later; `evidence` counts the failure against the current transport."""
        again = self._again(trouble, now)
        if evidence:
            self._failures.strikes += 1
            if self._failures.strikes >= _MAX_STRIKES:
                self._lower()
        return again

    def _lower(self) -> None:
        self._failures.strikes = 0
        current = self._transport
        self._left = [each for each in self._left if each is not current] or [Transport.POLL]


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None
