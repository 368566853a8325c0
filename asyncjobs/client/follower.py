"""How a job is followed: events, else held reads, else polls, through whatever networks do.

No I/O, no clock: `exchange.py` says how a shell drives it. What it promises is that updates come in
the order of their versions and each once, that the terminal one comes once and last, and that the
server is never asked sooner than it has told.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from random import Random
from typing import Any

from asyncjobs.client.documents import JobUpdate, read_job
from asyncjobs.client.errors import AnswerTooLarge, ClientError, JobTimeout, ServerUnreachable
from asyncjobs.client.exchange import (
    Answered,
    Arrived,
    Ask,
    Broken,
    End,
    Event,
    Hopeless,
    Opened,
    PollStep,
    Read,
    Wait,
    Woke,
)
from asyncjobs.client.knowledge import Failures, Seen, Stream
from asyncjobs.client.monitors import Kind, Monitor, events_of, require_origin, result_url
from asyncjobs.client.options import Following, Transport
from asyncjobs.client.pace import DEFAULT_PAUSE, LEAST_PAUSE, Turns, backoff, told_pause
from asyncjobs.client.reading import Trouble, read_result, read_status, trouble_of, version_of
from asyncjobs.core.status import JobStatus

#: No answer, and no event, may be longer than this many bytes.
LONGEST_ANSWER = 64 * 1024 * 1024

#: Three keep-alives of a server of ours that did not come.
_SILENCE = 45.0
_HOLD = 25
_ANSWER = 30.0
_STRIKES = 3


class Follower:
    """Follows one job to its end. Drive it by `start` and `receive`; see `exchange.Rule`.

    `not_before` is the moment up to which the server has asked not to be polled.
    """

    def __init__(
        self,
        monitor: Monitor,
        options: Following,
        random: Random,
        known: JobUpdate | None = None,
        *,
        not_before: float = -math.inf,
    ) -> None:
        self.monitor = monitor
        self._options = options
        self._random = random
        self._seen = Seen()
        self._known = known
        self._not_before = not_before
        self._failures = Failures()
        self._turns = Turns()
        self._ends = math.inf
        self._left = [one for one in Transport if one in options.transports] or [Transport.POLL]
        self._stream: Stream | None = None
        self._silence = _SILENCE
        self._held = False
        self._result_from: str | None = None

    @property
    def last(self) -> JobUpdate | None:
        """The newest that is known of the job."""
        return self._seen.last

    def start(self, now: float) -> PollStep:
        """Begin; the timeout counts from here."""
        if self._options.timeout is not None:
            self._ends = now + self._options.timeout
        first = self._first(now)
        if self._known is None:
            return self._bounded(PollStep(first), now)
        self._seen.take(self._known)
        then = End() if self._known.status.terminal else first
        return self._bounded(PollStep(then, (self._known,)), now)

    def receive(self, event: Event, now: float) -> PollStep:
        """Go on after what has happened."""
        try:
            return self._bounded(self._on(event, now), now)
        except ClientError as error:
            return PollStep(End(error))

    def _on(self, event: Event, now: float) -> PollStep:
        match event:
            case Woke():
                return PollStep(self._ask(now))
            case Hopeless(error):
                raise error
            case Opened():
                self._stream = Stream()
                return PollStep(Read())
            case Arrived(data):
                return self._hear(data, now)
            case Broken(reason, connected):
                if self._stream is not None:
                    return self._lost_stream(reason, now)
                return self._troubled(Trouble(reason, None), now, evidence=connected)
            case Answered():
                return self._answered(event, now)

    def _bounded(self, step: PollStep, now: float) -> PollStep:
        """Keep what follows within the time that the caller gave."""
        if isinstance(step.then, End):
            return step
        if now >= self._ends:
            seconds = self._options.timeout or 0.0
            error = JobTimeout(self.last, seconds, self._failures.reason)
            return PollStep(End(error), step.updates)
        if isinstance(step.then, Wait):
            return PollStep(Wait(min(step.then.seconds, self._ends - now)), step.updates)
        return step

    # What to ask

    def _first(self, now: float) -> Ask | Wait:
        early = self._not_before - now
        polls = self._transport is Transport.POLL
        return Wait(early) if polls and early > 0 else self._ask(now)

    @property
    def _transport(self) -> Transport:
        """The best that is left, and that the server can have."""
        if Transport.EVENTS in self._left and self.monitor.events is not None:
            return Transport.EVENTS
        rest = [one for one in self._left if one is not Transport.EVENTS]
        usable = rest if self.monitor.kind is Kind.JOB else [Transport.POLL]
        return usable[0] if usable else Transport.POLL

    def _ask(self, now: float) -> Ask:
        left = self._ends - now
        headers = {"accept": "application/json"}
        self._held = False
        if self._result_from is not None:
            headers["accept"] = "application/json, */*;q=0.5"
            return Ask("GET", self._result_from, headers, timeout=min(_ANSWER, left), total=left)
        if self._transport is Transport.EVENTS and self.monitor.events is not None:
            return self._ask_events(self.monitor.events, left)
        if self._seen.etag is not None:
            headers["if-none-match"] = self._seen.etag
        hold = int(min(_HOLD, left))
        # Without a version to compare with, the state as it stands is worth more than a wait.
        if self._transport is Transport.HOLD and self.last is not None and hold >= 1:
            self._held = True
            headers["prefer"] = f"wait={hold}"
            if self._seen.etag is None and self._seen.version is not None:
                headers["if-none-match"] = f'"{self._seen.version}"'
        timeout = min(_ANSWER + hold * self._held, left)
        return Ask("GET", self.monitor.status, headers, timeout=timeout, total=left)

    def _ask_events(self, url: str, left: float) -> Ask:
        # What is compressed on the way is easily held back, too.
        headers = {"accept": "text/event-stream", "accept-encoding": "identity"}
        if self._seen.version is not None:
            headers["last-event-id"] = str(self._seen.version)
        self._silence = min(_SILENCE, left)
        return Ask("GET", url, headers, timeout=self._silence, total=left, stream=True)

    # What a stream tells

    def _hear(self, data: bytes, now: float) -> PollStep:
        stream = self._stream = self._stream or Stream()
        stream.bytes += len(data)
        updates: list[JobUpdate] = []
        for event in stream.parser.feed(data):
            update = read_job(_loads(event.data), version_of(event.id))
            if event.name == "message" and update is not None and self._seen.take(update):
                updates.append(update)
                if update.status.terminal:
                    return PollStep(End(), tuple(updates))
        if stream.parser.held > LONGEST_ANSWER:
            raise AnswerTooLarge(self.monitor.events or "", LONGEST_ANSWER)
        if updates:
            stream.news = True
            self._seen.etag = None
            self._failures = Failures()
        # A stream's read has the timeout it was opened with: near the end of the caller's time it
        # would last too long, and a held read is told how long it may.
        if self._ends - now < self._silence - 1:
            self._stream = None
            self._lower()
            return PollStep(self._ask(now), tuple(updates))
        return PollStep(Read(), tuple(updates))

    def _lost_stream(self, reason: str, now: float) -> PollStep:
        stream, self._stream = self._stream or Stream(), None
        told = DEFAULT_PAUSE if stream.parser.retry is None else stream.parser.retry
        if stream.news:
            return PollStep(Wait(max(told, LEAST_PAUSE) * self._random.uniform(1, 1.25)))
        # What is opened and then silent is a proxy that keeps events to itself.
        if not stream.bytes:
            self._failures.strikes = _STRIKES
        return self._troubled(Trouble(reason, told), now, evidence=True)

    # What an answer tells

    def _answered(self, answer: Answered, now: float) -> PollStep:
        trouble = trouble_of(answer)
        if trouble is not None:
            return self._troubled(trouble, now, evidence=True)
        if self._result_from is not None:
            return self._with_result(answer)
        if self._transport is Transport.EVENTS:
            # No events here, whatever it says. The status read will tell what is wrong, if
            # anything; 204 means that the job has ended.
            self._lower()
            told = told_pause(answer.headers)
            return PollStep(self._ask(now) if not told else Wait(told))
        if answer.status == 304 and self.last is not None:
            return PollStep(self._after_read(answer, now))
        return self._read(answer, now)

    def _read(self, answer: Answered, now: float) -> PollStep:
        first = self.last is None
        kind, update = read_status(answer, self.monitor.kind)
        self._seen.etag = answer.headers.get("etag")
        events = self.monitor.events
        if kind is Kind.JOB and self.monitor.kind is Kind.UNKNOWN and update.job_id:
            events = events_of(self.monitor.status, update.job_id)
        self.monitor = replace(self.monitor, kind=kind, events=events)
        if update.status is JobStatus.COMPLETED:
            self._result_from = result_url(update, self.monitor)
            if self._result_from is not None:
                require_origin(self._result_from, answer.asked, self._options.origins)
                self._known = update
                self._failures = Failures()
                return PollStep(self._ask(now))
        news = (update,) if self._seen.take(update) else ()
        if update.status.terminal and news:
            return PollStep(End(), news)
        if first and self._transport is not Transport.POLL:
            # The told pause is between polls: there will be none.
            self._failures = Failures()
            return PollStep(self._ask(now), news)
        return PollStep(self._after_read(answer, now), news)

    def _after_read(self, answer: Answered, now: float) -> Ask | Wait:
        self._failures = Failures()
        told = told_pause(answer.headers)
        pause = DEFAULT_PAUSE if told is None else max(told, LEAST_PAUSE)
        if self._transport is Transport.HOLD:
            if "wait" in answer.headers.get("preference-applied", ""):
                turn = self._turns.pause(now, pause)
                return Wait(turn) if turn else self._ask(now)
            if self._held:
                self._lower()
        return Wait(pause)

    def _with_result(self, answer: Answered) -> PollStep:
        update = self._known
        if update is None:
            raise ServerUnreachable(answer.url, "its answers make no sense", self.last)
        update = update.with_result(read_result(answer))
        self._seen.last = update
        return PollStep(End(), (update,))

    # What goes wrong

    def _troubled(self, trouble: Trouble, now: float, *, evidence: bool) -> PollStep:
        """Try again later; by something simpler if this transport itself seems to be at fault."""
        self._failures.add(trouble.reason, now)
        if now - self._failures.since > self._options.patience:
            raise ServerUnreachable(self.monitor.status, trouble.reason, self.last)
        if evidence:
            self._failures.strikes += 1
            if self._failures.strikes >= _STRIKES:
                self._lower()
        return PollStep(Wait(backoff(self._failures.count, trouble.pause, self._random)))

    def _lower(self) -> None:
        self._failures.strikes = 0
        current = self._transport
        self._left = [one for one in self._left if one is not current] or [Transport.POLL]


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
