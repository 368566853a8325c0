"""The values that pass between a rule and the shell that carries it out.

A shell begins with `start(now)`, does what the step says, and tells what happened by
`receive(event, now)`, until the step says `End`. Rules neither wait nor know the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.errors import ClientError


@dataclass(frozen=True)
class Ask:
    """Send a request.

    `timeout` is how many seconds may pass without a byte, `total` how many until the last one of an
    answer that is no stream. `stream` means: if Server-Sent Events
    are the answer, tell so at once (`Opened`); any other is read to its end (`Answered`).
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    json: Any = None
    timeout: float = 60
    total: float = 600
    stream: bool = False


@dataclass(frozen=True)
class Read:
    """Go on reading the stream that is open; with any other action it is closed."""


@dataclass(frozen=True)
class Wait:
    """Do nothing for some seconds."""

    seconds: float


@dataclass(frozen=True)
class End:
    """Stop, and raise the error if there is one."""

    error: ClientError | None = None


Action = Ask | Read | Wait | End


@dataclass(frozen=True)
class Answered:
    """A whole answer came to what was `asked`; `url` is where redirects led from there.

    Header names are lower case, URLs absolute.
    """

    asked: str
    url: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


@dataclass(frozen=True)
class Opened:
    """A stream of events began."""


@dataclass(frozen=True)
class Arrived:
    """Bytes of the stream came."""

    data: bytes


@dataclass(frozen=True)
class Broken:
    """The request failed, or the stream ended; `connected` unless no server was reached at all."""

    reason: str
    connected: bool = True


@dataclass(frozen=True)
class Hopeless:
    """The request cannot work, however often it is sent."""

    error: ClientError


@dataclass(frozen=True)
class Woke:
    """The wait is over."""


Event = Answered | Opened | Arrived | Broken | Hopeless | Woke


@dataclass(frozen=True)
class PollStep:
    """What to hand to the caller, and then to do."""

    then: Action
    updates: tuple[JobUpdate, ...] = ()


class Rule(Protocol):
    """What decides, and leaves the doing to a shell."""

    def start(self, now: float) -> PollStep:
        """Begin at a moment of a clock that only runs forward."""
        ...

    def receive(self, event: Event, now: float) -> PollStep:
        """Go on after what the last step's action has led to."""
        ...
