"""What is sent, and how it is signed: Standard Webhooks 1.0.0, as functions of values."""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from pydantic_core import to_json

from asyncjobs.core.job import Job
from asyncjobs.errors import ConfigurationError
from asyncjobs.http.documents import encode_job

_PREFIX = "whsec_"


def secret_of(text: str) -> bytes:
    """Read a secret, `whsec_` and 24 to 64 random bytes in base64; raise `ConfigurationError`."""
    try:
        secret = b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or not 24 <= len(secret) <= 64:
        # Not what was given: it may well be a secret with a slip of the hand in it.
        raise ConfigurationError(
            f"A webhook's secret is {_PREFIX} and the base64 of 24 to 64 random bytes."
        )
    return secret


def id_of(job: Job) -> str:
    """Name the event: the same for every call, so that a receiver can tell a second one.

    Without a full stop, which divides what is signed.
    """
    return f"{job.id}_{job.status}"


def body_of(job: Job, most: int) -> bytes:
    """Write the event of a job's end, with its result where that has at most `most` bytes."""
    omitted = len(job.result_json or b"") > most
    shown = job.changed(result_json=None) if omitted else job
    data = b'%s,"resultOmitted":%s}' % (encode_job(shown)[:-1], to_json(omitted))
    kind = f"job.{job.status}"
    return b'{"type":%s,"timestamp":%s,"data":%s}' % (
        to_json(kind),
        to_json(job.completed_at),
        data,
    )


def signed(
    event_id: str, moment: datetime, body: bytes, secrets: Sequence[bytes]
) -> list[tuple[str, str]]:
    """Make the three headers; one signature per secret, for receivers that have not changed yet."""
    seconds = int(moment.timestamp())
    content = b"%s.%d.%s" % (event_id.encode(), seconds, body)
    marks = [b64encode(hmac.digest(secret, content, sha256)).decode() for secret in secrets]
    return [
        ("webhook-id", event_id),
        ("webhook-timestamp", str(seconds)),
        ("webhook-signature", " ".join(f"v1,{mark}" for mark in marks)),
    ]
