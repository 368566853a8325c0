"""The message and its signature by Standard Webhooks 1.0.0, as functions of values."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from pydantic_core import to_json

from asyncjobs.core.job import Job
from asyncjobs.errors import ConfigurationError
from asyncjobs.http.documents import JobDocument

_PREFIX = "whsec_"


def parse_secret(text: str) -> bytes:
    """Decode a secret: `whsec_` and 24 to 64 random bytes in base64.

    Raises `ConfigurationError` for any other text.
    """
    encoded = text.removeprefix(_PREFIX)
    try:
        secret = b64decode(encoded, validate=True)
    except ValueError:
        secret = b""
    # Compared, since the decoder accepts stray padding.
    exact = text.startswith(_PREFIX) and b64encode(secret).decode() == encoded
    if not exact or not 24 <= len(secret) <= 64:
        # The error does not contain the text, which may be a real secret with a typing mistake.
        raise ConfigurationError(
            f"A webhook's secret must be {_PREFIX} and the base64 of 24 to 64 random bytes."
        )
    return secret


def message_id(job: Job) -> str:
    """Return the id of the message, the same for every delivery, so that receivers can deduplicate.

    It contains no full stop, because full stops separate the parts of the signed content.
    """
    return f"{job.id}_{job.status}"


def message_body(job: Job, max_result_bytes: int) -> bytes:
    """Return the JSON of the event; a result of more than `max_result_bytes` is left out."""
    omitted = len(job.result_json or b"") > max_result_bytes
    shown = job.changed(result_json=None) if omitted else job
    data = b'%s,"resultOmitted":%s}' % (JobDocument.encode(shown)[:-1], to_json(omitted))
    kind = f"job.{job.status}"
    return b'{"type":%s,"timestamp":%s,"data":%s}' % (
        to_json(kind),
        to_json(job.completed_at),
        data,
    )


def signature_headers(
    message_id: str, sent_at: datetime, body: bytes, secrets: Sequence[bytes]
) -> list[tuple[str, str]]:
    """Return the three headers, with one signature per secret so that secrets can be rotated."""
    timestamp = int(sent_at.timestamp())
    content = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    signatures = [b64encode(hmac.digest(secret, content, sha256)).decode() for secret in secrets]
    return [
        ("webhook-id", message_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", " ".join(f"v1,{signature}" for signature in signatures)),
    ]
