"""The values that pass between a rule and the shell that carries it out.

A rule decides and does no I/O. A shell calls `start(now)`, performs the action of the step, passes
the action's result to `receive(result, now)`, and so on, until the action is `End`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.errors import ClientError

#: The longest answer and the longest event that the client reads.
MAX_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Ask:
    """Send a request.

    `timeout` is the longest silence in seconds, `total` the longest time until the last byte of an
    answer that is not a stream. If `stream` is set and the answer is Server-Sent Events, the result
    is `Opened` at once, and likewise if `content` is set and the answer is 200 or 206; any other
    answer is read to its end (`Answered`). Redirects are followed within the URL's own origin and
    to `origins`.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    json: Any = None
    timeout: float = 60
    total: float = 600
    stream: bool = False
    content: bool = False
    origins: Collection[str] = ()


@dataclass(frozen=True)
class Read:
    """Read more of the open stream; any other action closes it."""


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
    """The whole answer to a request. `asked` is the requested URL, `url` the one after redirects.

    Header names are lower case, URLs absolute.
    """

    asked: str
    url: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


@dataclass(frozen=True)
class Opened:
    """A stream of Server-Sent Events, or content, has begun. Header names are lower case."""

    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    status: int = 200


@dataclass(frozen=True)
class Arrived:
    """Bytes of the stream."""

    data: bytes


@dataclass(frozen=True)
class Broken:
    """The request failed, or the stream ended; `connected` is False if the server was not found.

    `ended` is set if the server has ended the stream in an orderly way.
    """

    reason: str
    connected: bool = True
    ended: bool = False


@dataclass(frozen=True)
class Hopeless:
    """The request fails however often it is sent."""

    error: ClientError


@dataclass(frozen=True)
class Woke:
    """The wait is over."""


ActionResult = Answered | Opened | Arrived | Broken | Hopeless | Woke


#: What a rule returns to the caller.
U = TypeVar("U", default=JobUpdate)
U_co = TypeVar("U_co", covariant=True, default=JobUpdate)


@dataclass(frozen=True)
class Step(Generic[U_co]):
    """The updates to return to the caller, and then the action to perform."""

    then: Action
    updates: tuple[U_co, ...] = ()


class Rule(Protocol[U_co]):
    """Decides what to do next; `now` is in seconds of a monotonic clock."""

    def start(self, now: float) -> Step[U_co]:
        """Return the first step."""
        ...

    def receive(self, result: ActionResult, now: float) -> Step[U_co]:
        """Return the step that follows the result of the last one's action."""
        ...
