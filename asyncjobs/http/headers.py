"""Rules of single headers: conditions, Accept, Prefer, Idempotency-Key and Retry-After."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, assert_never

from asyncjobs.core.job import Job, JobStatus
from asyncjobs.errors import InvalidIdempotencyKey
from asyncjobs.settings import Seconds, duration

# RFC 9110 section 8.8.3: an opaque tag holds anything but quotes, blanks and controls.
_OPAQUE_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_TAG = re.compile(rf"(W/)?({_OPAQUE_TAG.pattern})")


def etag_of(version: int) -> str:
    """Return the strong ETag of a version."""
    return f'"{version}"'


def allows_change(headers: Mapping[str, str], etag: str) -> bool:
    """Return whether a request's conditions let it change the job (RFC 9110, section 13.2.2)."""
    if not still_at(headers.get("if-match"), etag):
        return False
    return not matches(headers.get("if-none-match"), etag)


def still_at(if_match: str | None, etag: str) -> bool:
    """Return whether If-Match names this representation, or is absent.

    The comparison is strong, as RFC 9110 section 13.1.1 requires. A header without a valid tag
    matches nothing, so a client with a malformed condition changes nothing.
    """
    if if_match is None or if_match.strip() == "*":
        return True
    return any(tag == etag and not weak for weak, tag in _TAG.findall(if_match))


def matches(if_none_match: str | None, etag: str) -> bool:
    """Return whether the client already has this representation.

    The comparison is weak, as RFC 9110 section 13.1.2 requires for If-None-Match: caches on the way
    may have weakened the tag. Anything that is not a tag is ignored.
    """
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in _OPAQUE_TAG.findall(if_none_match)


def attachment(name: str, suffix: str) -> tuple[str, str]:
    """Return the header that makes browsers save an answer as a file of about that name.

    Only ASCII letters, digits and ``._-`` remain: file systems and browsers agree on them (RFC
    6266, section 4.3).
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "file"
    return ("Content-Disposition", f'attachment; filename="{safe}{suffix}"')


_RANGE = re.compile(r"\s*([^\s;,/]+/[^\s;,/]+)\s*((?:;[^,]*)?)")
_QUALITY = re.compile(r";\s*q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)


def prefers_html(accept: str | None) -> bool:
    """Return whether HTML is preferred to JSON: browsers list it, programs rarely do."""
    if not accept or accept == "*/*":
        return False
    return _quality(accept, "text", "html") > _quality(accept, "application", "json")


def prefers_events(accept: str | None) -> bool:
    """Return whether a stream of events is preferred to JSON, as by EventSource."""
    if not accept or "text/event-stream" not in accept.lower():
        return False
    return _quality(accept, "text", "event-stream") > _quality(accept, "application", "json")


def _quality(accept: str, kind: str, subtype: str) -> float:
    """Return the weight of a media type: that of the most specific matching range."""
    wanted = {f"{kind}/{subtype}": 2, f"{kind}/*": 1, "*/*": 0}
    found = (-1, 0.0)
    for part in accept.split(","):
        match = _RANGE.fullmatch(part)
        if match is None or (precision := wanted.get(match[1].lower())) is None:
            continue
        weight = _QUALITY.search(match[2])
        found = max(found, (precision, float(weight[1]) if weight else 1.0))
    return found[1]


# Possessive quantifiers (`*+`) allow one way to read a header, so a malicious header cannot make
# the search backtrack forever.
_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = rf'(?:{_NAME}|"(?:[^"\\]|\\.)*+")'
_PARAMETERS = rf"(?:\s*+;(?:\s*+{_NAME}(?:\s*+=\s*+{_VALUE}?+)?+)?+)*+"
_PREFERENCE = re.compile(rf"\s*+({_NAME})(?:\s*+=\s*+({_VALUE})?+)?+{_PARAMETERS}\s*+(?:,|$)")

# The rest of an unreadable preference: up to the next comma outside quotes, or to the end if a
# quote is never closed.
_SKIP = re.compile(r'(?:"(?:[^"\\]|\\.)*+(?:"|\\?$)|[^,"])*+(?:,|$)', re.DOTALL)


def preferences(prefer: str | None) -> dict[str, str]:
    """Parse the preferences of all `Prefer` headers, joined by commas, without their parameters.

    Names are in lower case; a missing value is the empty value (RFC 7240, section 2). The first of
    a repeated preference counts. Unreadable parts are ignored, like unknown preferences.
    """
    found: dict[str, str] = {}
    position, text = 0, prefer or ""
    while position < len(text):
        match = _PREFERENCE.match(text, position)
        if match is None:
            skipped = _SKIP.match(text, position)
            position = max(position + 1, skipped.end() if skipped else 0)
            continue
        name, value = match[1].lower(), match[2] or ""
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.setdefault(name, value)
        position = match.end()
    return found


def wait_of(prefer: str | None) -> int | None:
    """Return the seconds of `wait` (RFC 7240, section 4.3); None if it is missing or malformed."""
    if prefer is None:
        return None
    value = preferences(prefer).get("wait", "")
    # ASCII digits only, and no longer than any sensible wait.
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else None


# RFC 9651 section 3.3.3, which the draft requires, and the form that most clients send instead.
_QUOTED_KEY = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
# Without commas: a server joins two fields by a comma, which is not part of a key.
_BARE_KEY = re.compile(r"[\x21\x23-\x2b\x2d-\x7e][\x21-\x2b\x2d-\x7e]*")

_MAX_KEY_CHARACTERS = 255


def idempotency_key_of(header: str | None) -> str | None:
    """Parse an idempotency key, quoted or bare; raise `InvalidIdempotencyKey`.

    draft-ietf-httpapi-idempotency-key-header section 2.1 makes it a string of structured fields.
    """
    if header is None:
        return None
    text = header.strip(" \t")
    if (quoted := _QUOTED_KEY.fullmatch(text)) is not None:
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    elif _BARE_KEY.fullmatch(text):
        key = text
    else:
        raise InvalidIdempotencyKey(
            "it is not one string of visible ASCII characters, quoted if it has spaces or commas"
        )
    if not 1 <= len(key) <= _MAX_KEY_CHARACTERS:
        raise InvalidIdempotencyKey(
            f"it must have 1 to {_MAX_KEY_CHARACTERS} characters, not {len(key)}"
        )
    return key


# By default gunicorn closes idle connections after 2 seconds; uvicorn, Apache and Node after 5. A
# poll sent at that moment is lost.
_KEEP_ALIVE_SECONDS = frozenset({2, 5})


def clear_of_keep_alive(seconds: int) -> int:
    """Return the delay, one second longer if many servers close connections after it."""
    return seconds + 1 if seconds in _KEEP_ALIVE_SECONDS else seconds


@dataclass(frozen=True)
class Pacing:
    """The bounds of `Retry-After`; each is seconds or a timedelta.

    Delays of 2 and 5 seconds are avoided if the bounds allow others, since many servers close idle
    connections then.

    Raises `ValueError` for a `min_delay` of less than a second, or of more than `max_delay`.
    """

    min_delay: timedelta = timedelta(seconds=3)
    max_delay: timedelta = timedelta(seconds=6)

    if TYPE_CHECKING:

        def __init__(self, min_delay: Seconds = ..., max_delay: Seconds = ...) -> None: ...

    def __post_init__(self) -> None:
        least, most = duration(self.min_delay), duration(self.max_delay)
        if not timedelta(seconds=1) <= least <= most:
            raise ValueError(f"Pacing needs 1 s <= min_delay <= max_delay, got {least} and {most}.")
        object.__setattr__(self, "min_delay", least)
        object.__setattr__(self, "max_delay", most)

    def seconds(self, delay: timedelta = timedelta(0)) -> int:
        """Return the delay within these bounds, in whole seconds (RFC 9110, section 10.2.3)."""
        wanted = ceil(min(self.max_delay, max(self.min_delay, delay)).total_seconds())
        clear = clear_of_keep_alive(wanted)
        if clear <= ceil(self.max_delay.total_seconds()):
            return clear
        return wanted - 1 if wanted - 1 >= self.min_delay.total_seconds() else wanted

    def delays(self) -> set[int]:
        """Return all delays that `seconds` can return."""
        most = ceil(self.max_delay.total_seconds())
        return {self.seconds(timedelta(seconds=one)) for one in range(most + 1)}


# Ten polls during a job's life show its progress well enough.
_POLLS_PER_JOB = 10


def retry_after(job: Job, now: datetime, pacing: Pacing, expected: timedelta | None) -> int | None:
    """Return after how many seconds to poll again; None if the job is terminal.

    `expected` is how long jobs of its type take. A delayed job is polled when it is due to begin.
    The progress of a running job shows how much time is left.
    """
    expected = expected or timedelta(0)
    match job.status:
        case JobStatus.PENDING if job.run_at > now:
            return pacing.seconds(job.run_at - now)
        case JobStatus.PENDING:
            return pacing.seconds(expected / _POLLS_PER_JOB)
        case JobStatus.PROCESSING:
            whole, left = _duration(job, now, expected)
            return pacing.seconds(min(whole / _POLLS_PER_JOB, left))
        case JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.CANCELLED:
            return None
        case _:
            assert_never(job.status)


def _duration(job: Job, now: datetime, expected: timedelta) -> tuple[timedelta, timedelta]:
    """Return how long a running job takes in total, and from now on."""
    elapsed = max(now - (job.started_at or now), timedelta(0))
    whole = elapsed * 100 / job.progress if job.progress else max(expected, elapsed)
    # A job that takes longer than expected may take longer still.
    return whole, whole - elapsed or whole
