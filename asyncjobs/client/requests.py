"""One request that may be repeated: a submission with its key, or a cancel."""

from __future__ import annotations

from random import Random
from typing import cast

from asyncjobs.client.errors import AccessRefused, RequestRefused, ServerUnreachable
from asyncjobs.client.exchange import (
    Answered,
    Ask,
    Broken,
    End,
    Event,
    Hopeless,
    PollStep,
    Wait,
    Woke,
)
from asyncjobs.client.monitors import problem_of
from asyncjobs.client.pace import backoff
from asyncjobs.client.reading import Trouble, trouble_of


class Repeated:
    """Sends a request until it is answered, for some seconds.

    Only for requests that do the same however often they come.
    """

    def __init__(self, ask: Ask, seconds: float, random: Random) -> None:
        self._ask = ask
        self._seconds = seconds
        self._random = random
        self._ends = 0.0
        self._failures = 0
        self._answer: Answered | None = None

    @property
    def answered(self) -> Answered:
        """What came; only after an `End` without an error."""
        return cast("Answered", self._answer)

    def start(self, now: float) -> PollStep:
        """Send it."""
        self._ends = now + self._seconds
        return PollStep(self._ask)

    def receive(self, event: Event, now: float) -> PollStep:
        """Judge what came of it."""
        match event:
            case Hopeless(error):
                return PollStep(End(error))
            case Broken(reason):
                return self._again(Trouble(reason, None), now)
            case Answered():
                trouble = trouble_of(event)
                return self._done(event) if trouble is None else self._again(trouble, now)
            case Woke():
                return PollStep(self._ask)
            case _:
                return self._again(Trouble("it answers by a stream", None), now)

    def _done(self, answer: Answered) -> PollStep:
        if answer.status in {401, 403}:
            return PollStep(End(AccessRefused(answer.url, answer.status)))
        if not 200 <= answer.status < 300:
            refused = RequestRefused(answer.url, answer.status, problem_of(answer))
            return PollStep(End(refused))
        self._answer = answer
        return PollStep(End())

    def _again(self, trouble: Trouble, now: float) -> PollStep:
        self._failures += 1
        pause = backoff(self._failures, trouble.pause, self._random)
        if now + pause > self._ends:
            return PollStep(End(ServerUnreachable(self._ask.url, trouble.reason)))
        return PollStep(Wait(pause))
