"""What a following knows: of the job, of what went wrong, and of the stream it hears."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncjobs.client.documents import JobUpdate
from asyncjobs.client.events import EventParser


@dataclass
class Seen:
    """What is known of the job; refuses what is known already, or older."""

    last: JobUpdate | None = None
    etag: str | None = None

    @property
    def version(self) -> int | None:
        return None if self.last is None else self.last.version

    def take(self, update: JobUpdate) -> bool:
        known = self.last
        if known is not None:
            if known.version is not None and update.version is not None:
                if update.version <= known.version:
                    return False
            elif update.document == known.document and update.status is known.status:
                return False
        self.last = update
        return True


@dataclass
class Failures:
    """Failures in a row, of the server as a whole and of one transport."""

    count: int = 0
    since: float = 0.0
    strikes: int = 0
    reason: str = ""

    def add(self, reason: str, now: float) -> None:
        if not self.count:
            self.since = now
        self.count += 1
        self.reason = reason


@dataclass
class Stream:
    """An open stream: whether it has brought anything yet."""

    parser: EventParser = field(default_factory=EventParser)
    news: bool = False
    bytes: int = 0
