"""Headers: ETag and If-None-Match, Accept, Prefer, Retry-After."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from asyncjobs.core.job import Job, JobStatus
from asyncjobs.errors import InvalidIdempotencyKey

# RFC 9110 section 8.8.3: an opaque tag holds anything but quotes, blanks and controls.
_OPAQUE_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


def etag_of(version: int) -> str:
    """Make the strong ETag of a version."""
    return f'"{version}"'


def matches(if_none_match: str | None, etag: str) -> bool:
    """Tell whether the client has this representation already.

    Compares weakly, as section 13.1.2 asks of If-None-Match: caches on the way may have weakened
    the tag. What is not a tag is ignored.
    """
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in _OPAQUE_TAG.findall(if_none_match)


_RANGE = re.compile(r"\s*([^\s;,/]+/[^\s;,/]+)\s*((?:;[^,]*)?)")
_QUALITY = re.compile(r";\s*q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)


def prefers_html(accept: str | None) -> bool:
    """Tell whether HTML is wanted more than JSON: browsers name it, programs hardly ever do."""
    if not accept or accept == "*/*":
        return False
    return _quality(accept, "text", "html") > _quality(accept, "application", "json")


def _quality(accept: str, kind: str, subtype: str) -> float:
    """Return the weight of a media type: that of the most specific range it falls into."""
    wanted = {f"{kind}/{subtype}": 2, f"{kind}/*": 1, "*/*": 0}
    found = (-1, 0.0)
    for part in accept.split(","):
        match = _RANGE.fullmatch(part)
        if match is None or (precision := wanted.get(match[1].lower())) is None:
            continue
        weight = _QUALITY.search(match[2])
        found = max(found, (precision, float(weight[1]) if weight else 1.0))
    return found[1]


# Possessive throughout (`*+`): there is one way to read a header, and a hostile one cannot make the
# search for others take for ever.
_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = rf'(?:{_NAME}|"(?:[^"\\]|\\.)*+")'
_PARAMETERS = rf"(?:\s*+;(?:\s*+{_NAME}(?:\s*+=\s*+{_VALUE}?+)?+)?+)*+"
_PREFERENCE = re.compile(rf"\s*+({_NAME})(?:\s*+=\s*+({_VALUE})?+)?+{_PARAMETERS}\s*+(?:,|$)")

# What follows a preference that cannot be read: up to the next comma outside of quotes, or to the
# end where a quote is never closed.
_SKIP = re.compile(r'(?:"(?:[^"\\]|\\.)*+(?:"|\\?$)|[^,"])*+(?:,|$)', re.DOTALL)


def preferences(prefer: str | None) -> dict[str, str]:
    """Read the preferences of all `Prefer` headers, joined by commas, without their parameters.

    Names are in lower case; no value is the empty value (section 2). Of a repeated preference the
    first counts, and what cannot be read is ignored, as every unknown preference is.
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
    """Read how many seconds a client would wait (section 4.3); None for no or a malformed wish."""
    if prefer is None:
        return None
    value = preferences(prefer).get("wait", "")
    # ASCII digits only, and not more than a wait can sensibly have.
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else None


# RFC 9651 section 3.3.3, which the draft asks for; and what most clients send instead.
_QUOTED_KEY = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
# Without commas: those of two fields that a server has joined are no part of a key.
_BARE_KEY = re.compile(r"[\x21\x23-\x2b\x2d-\x7e][\x21-\x2b\x2d-\x7e]*")

_LONGEST_KEY = 255


def idempotency_key_of(header: str | None) -> str | None:
    """Read an idempotency key, quoted or bare; raise `InvalidIdempotencyKey`.

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
            "it is not one string of visible ASCII characters, quoted if it has blanks or commas"
        )
    if not 1 <= len(key) <= _LONGEST_KEY:
        raise InvalidIdempotencyKey(f"it must have 1 to {_LONGEST_KEY} characters, not {len(key)}")
    return key


@dataclass(frozen=True)
class Pacing:
    """The bounds of `Retry-After`, in whole seconds."""

    least: int = 2
    most: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"Pacing needs 1 <= least <= most, got {self.least} and {self.most}.")


# Asking about ten times during a job's life tells its progress well enough.
_POLLS_PER_JOB = 10


def retry_after(job: Job, now: datetime, pacing: Pacing, expected: timedelta | None) -> int | None:
    """Say in how many seconds to ask again; None for a job that is terminal.

    `expected` is how long jobs of its type take. One that is known to begin later is left alone
    until then; one that runs tells by its progress how much is left.
    """
    if job.status.terminal:
        return None
    if job.status is JobStatus.PENDING and job.run_at > now:
        pause = job.run_at - now
    else:
        whole, left = _duration(job, now, expected or timedelta(0))
        pause = min(whole / _POLLS_PER_JOB, left)
    return min(pacing.most, max(pacing.least, ceil(pause.total_seconds())))


def _duration(job: Job, now: datetime, expected: timedelta) -> tuple[timedelta, timedelta]:
    """Return how long a job takes as a whole, and from now on."""
    if job.status is not JobStatus.PROCESSING or job.started_at is None:
        return expected, expected
    elapsed = max(now - job.started_at, timedelta(0))
    whole = elapsed * 100 / job.progress if job.progress else max(expected, elapsed)
    # One that takes longer than expected may take longer still.
    return whole, whole - elapsed or whole
