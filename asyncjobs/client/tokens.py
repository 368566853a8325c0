"""Reads the token of a job: what it is, where it is renewed, and how long it lasts."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from asyncjobs.client.documents import object_of, parse_json

# RFC 6750, section 2.1.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,8192}=*")
#: The `iss` of the tokens of asyncjobs.
ISSUER = "asyncjobs"
# Seconds, of a token whose own times cannot be read, and the longest that is believed.
_TOKEN_LIFETIME = 300.0
_MAX_TOKEN_LIFETIME = 10.0**9


@dataclass(frozen=True)
class JobToken:
    """A token that opens one job for some minutes, and the URL where it is renewed."""

    text: str = field(repr=False)
    url: str
    #: How many seconds it lasts, by the clock of the server that made it.
    lifetime: float
    #: When it ends by that clock, in seconds since 1970; None if that is not known.
    ends: float | None = None

    def age(self, now: float) -> float:
        """Return how old it is at a time of this machine's clock.

        It counts as at its end if that is not known, or if the clocks differ too much.
        """
        age = self.lifetime if self.ends is None else self.lifetime - (self.ends - now)
        return max(age, 0.0) if -self.lifetime / 2 <= age <= self.lifetime else self.lifetime


def token_in(document: Mapping[str, Any], url: str | None) -> JobToken | None:
    """Return the token in a document, which is renewed at a URL."""
    text = document.get("token")
    # A header cannot have any other text.
    if url is None or not isinstance(text, str) or not _TOKEN.fullmatch(text):
        return None
    ends = _seconds_since_1970(document.get("tokenExpiresAt"))
    # From one of its own times to the other: no other clock is needed.
    claims = claims_of(text)
    try:
        begun, ended = float(claims["iat"]), float(claims["exp"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return JobToken(text, url, _TOKEN_LIFETIME, ends)
    if not 0 < ended - begun < _MAX_TOKEN_LIFETIME:
        return JobToken(text, url, _TOKEN_LIFETIME, ends)
    return JobToken(text, url, ended - begun, ended if ends is None else ends)


def claims_of(token: str) -> Mapping[str, Any]:
    """Return the claims of a JWT, which is not verified; none for any other text."""
    payload = [*token.split("."), ""][1]
    try:
        return object_of(parse_json(urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))
    except ValueError:
        return {}


def _seconds_since_1970(text: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        return None if moment is None or moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None


def checked_token(token: str) -> str:
    """Return a token of the caller; raise `TypeError` or `ValueError`, which do not show it."""
    if not isinstance(token, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"A token is a string, got {type(token).__name__}.")
    if not _TOKEN.fullmatch(token):
        raise ValueError("The token has characters that no token can have, or is too long.")
    return token
