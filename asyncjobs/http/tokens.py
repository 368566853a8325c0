"""Tokens (JWT) that open one job, or the jobs with one tag, for some minutes.

Only this module loads PyJWT. Times are those of the caller's clock, and never of this machine's.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib.util import find_spec
from math import isfinite
from typing import Any, Literal, NamedTuple, cast

from asyncjobs.core.options import checked_part, described
from asyncjobs.errors import ConfigurationError, InvalidToken
from asyncjobs.http.messages import Grant, Request
from asyncjobs.http.requests import parameters_of
from asyncjobs.settings import Seconds, duration

#: What a token allows: to read a job, to read its output, and to cancel it.
TokenScope = Literal["read", "output", "cancel"]

SCOPES: tuple[TokenScope, ...] = ("read", "output", "cancel")

#: The `iss` and the `aud` of each token.
ISSUER = "asyncjobs"

# The only algorithm, whatever the header of a token names (RFC 8725, section 3.1).
_ALGORITHM = "HS256"

# RFC 7518 section 3.2: a key of the size of the hash, or larger.
_MIN_SECRET_BYTES = 32

_REQUIRED = ["iss", "aud", "sub", "scope", "iat", "exp"]

# The longest of ours has a tag and an owner. A larger one is not worth decoding.
_MAX_CHARS = 4096

# How long after its end a token can still be renewed: a client may have been asleep.
_RENEWAL_GRACE = timedelta(minutes=1)

_SAFE_METHODS = frozenset({"GET", "HEAD"})


class FoundToken(NamedTuple):
    """The token of a request, which is not verified yet."""

    text: str
    in_query: bool


@dataclass(frozen=True)
class IssuedToken:
    """A token, and when it ends."""

    text: str
    expires_at: datetime


class Tokens:
    """Signs and verifies the tokens of a mount: `mount(app, jobs, tokens=Tokens(secret))`.

    - `secret`: at least 32 bytes, such as `secrets.token_urlsafe(32)`. Several secrets rotate them:
      the first signs, and all of them verify. As a mapping, each has the key id of your choice.
    - `lifetime`: how long a token opens its job; clients renew it before.
    - `leeway`: how far the clocks of two machines may differ.
    - `scopes`: what the tokens allow.

    Raises `ConfigurationError` for a secret that is too short, and for values out of range.
    """

    def __init__(
        self,
        secret: str | Sequence[str] | Mapping[str, str],
        *,
        lifetime: Seconds = timedelta(minutes=15),
        leeway: Seconds = timedelta(seconds=30),
        scopes: Iterable[TokenScope] = SCOPES,
    ) -> None:
        _require_library()
        self._keys = _keys_of(secret)
        self._signing = next(iter(self._keys))
        if lifetime is None or leeway is None:  # pyright: ignore[reportUnnecessaryComparison]  # any caller
            raise ConfigurationError(
                "The lifetime and the leeway of Tokens must be seconds or timedeltas; got None."
            )
        self._lifetime, self._leeway = duration(lifetime), duration(leeway)
        checked_part("scopes", scopes, ("__iter__",), f"some of {', '.join(SCOPES)}")
        given = {scopes} if isinstance(scopes, str) else {*map(str, scopes)}
        self._scopes = tuple(scope for scope in SCOPES if scope in given)
        if self._lifetime < timedelta(seconds=1) or self._leeway < timedelta(0):
            raise ConfigurationError(
                "Tokens need a lifetime of at least a second and a leeway of zero or more, got "
                f"{self._lifetime} and {self._leeway}."
            )
        if not given or given - {*SCOPES}:
            raise ConfigurationError(
                f"Tokens need some of the scopes {', '.join(SCOPES)}, got {sorted(given)}."
            )

    def __repr__(self) -> str:
        return f"Tokens(lifetime={self._lifetime}, scopes={self._scopes})"

    def issue(
        self, subject: str, now: datetime, *, owner: str | None = None, like: Grant | None = None
    ) -> IssuedToken:
        """Return a new token for a subject; it allows no more than the grant that it renews."""
        scopes = self._scopes if like is None else like.scopes
        begins = int(now.timestamp())
        ends = begins + int(self._lifetime.total_seconds())
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": ISSUER,
            "sub": subject,
            "scope": " ".join(scopes),
            "iat": begins,
            "exp": ends,
        }
        if owner is not None:
            claims["owner"] = owner
        import jwt  # noqa: PLC0415  # of the extra

        key = self._keys[self._signing]
        text = jwt.encode(claims, key, _ALGORITHM, headers={"kid": self._signing})
        return IssuedToken(text, datetime.fromtimestamp(ends, UTC))

    def find(self, request: Request) -> FoundToken | None:
        """Return the token of a request, whether or not it is valid; None if it has none of ours.

        A bearer token of another issuer is the application's. The parameter `token` counts for safe
        methods only: the URL of another request may have been made by another site.
        """
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _is_ours(bearer.strip()):
            return FoundToken(bearer.strip(), in_query=False)
        if request.method in _SAFE_METHODS and "token=" in request.query:
            text = parameters_of(request.query).get("token")
            return None if text is None else FoundToken(text, in_query=True)
        return None

    def read(self, text: str, now: datetime, *, renews: bool = False) -> Grant:
        """Return what a token allows; raise `InvalidToken`. One to be renewed may just have ended.

        A renewed token has the scopes of the old one, so a scope that the mount no longer gives is
        left out here.
        """
        claims = self._verified(text)
        moment, leeway = now.timestamp(), self._leeway.total_seconds()
        grace = _RENEWAL_GRACE.total_seconds() if renews else 0.0
        begins = max(_time(claims, "iat"), _time({"nbf": 0, **claims}, "nbf"))
        if moment >= _time(claims, "exp") + leeway + grace:
            raise InvalidToken("it has expired")
        if moment < begins - leeway:
            raise InvalidToken("it is not valid yet")
        scope, owner = claims["scope"], claims.get("owner")
        if not isinstance(scope, str) or not (owner is None or isinstance(owner, str)):
            raise InvalidToken("its claims have the wrong types")
        allowed = tuple(one for one in self._scopes if one in scope.split())
        return Grant(str(claims["sub"]), owner, allowed, _time(claims, "exp") + leeway - moment)

    def _verified(self, text: str) -> dict[str, Any]:
        """Return the claims of a token that one of our secrets has signed."""
        import jwt  # noqa: PLC0415  # of the extra

        if len(text) > _MAX_CHARS:
            raise InvalidToken("it is malformed")
        try:
            kid = jwt.get_unverified_header(text).get("kid", self._signing)
            key = self._keys.get(kid)
            if key is None:
                raise InvalidToken("its key is unknown")
            claims: dict[str, Any] = jwt.decode(
                text,
                key,
                algorithms=[_ALGORITHM],
                audience=ISSUER,
                issuer=ISSUER,
                # The times are checked above: PyJWT would take them from the machine's clock.
                options={
                    "require": _REQUIRED,
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except jwt.InvalidAlgorithmError:
            raise InvalidToken("its algorithm is not allowed") from None
        except jwt.InvalidSignatureError:
            raise InvalidToken("its signature is wrong") from None
        except jwt.MissingRequiredClaimError as error:
            raise InvalidToken(f"it has no {error.claim}") from None
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError):
            raise InvalidToken("it is not a token of this service") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise InvalidToken("it is malformed") from None
        if not isinstance(claims["sub"], str):
            raise InvalidToken("its claims have the wrong types")
        return claims


def _require_library() -> None:
    if find_spec("jwt") is None:
        raise ConfigurationError(
            "Tokens need the package 'pyjwt': pip install 'asyncjobs-http[tokens]'."
        )


def _keys_of(secret: str | Sequence[str] | Mapping[str, str]) -> dict[str, bytes]:
    """Return the keys by their ids, the one that signs first; raise `ConfigurationError`."""
    if secret is None:  # pyright: ignore[reportUnnecessaryComparison]  # a missing variable
        raise ConfigurationError(
            "Tokens need a secret, got None: set the environment variable from which it is read, "
            "to a value made by secrets.token_urlsafe(32)."
        )
    if not isinstance(secret, str | Mapping | Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]  # any caller
        raise ConfigurationError(
            "The secret of Tokens must be a string, several in a list, or a mapping of key ids to "
            f"strings; got {described(secret)}."
        )
    if isinstance(secret, Mapping):
        pairs = [*secret.items()]
    else:
        given = [secret] if isinstance(secret, str) else [*secret]
        pairs = [(_id_of(one), one) for one in given]
    if not pairs:
        raise ConfigurationError("Tokens need a secret.")
    # The error names no secret, not even a short one.
    if not all(isinstance(text, str) for pair in pairs for text in pair):  # pyright: ignore[reportUnnecessaryIsInstance]  # any caller
        raise ConfigurationError("The secrets of Tokens must be strings.")
    keys = {kid: one.encode() for kid, one in pairs}
    shortest = min(map(len, keys.values()))
    if shortest < _MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"Each secret of Tokens must have at least {_MIN_SECRET_BYTES} bytes, got one of "
            f"{shortest}: make one by secrets.token_urlsafe(32)."
        )
    return keys


def _id_of(secret: object) -> str:
    """Return a key id that is the same in each process, and from which no secret can be derived."""
    digest = sha256(b"asyncjobs key id:" + str(secret).encode()).digest()
    return urlsafe_b64encode(digest[:6]).decode()


def _is_ours(text: str) -> bool:
    """Return whether a text is a JWT with our issuer; its signature is not looked at."""
    parts = text.split(".")
    if len(parts) != 3 or len(text) > _MAX_CHARS:
        return False
    try:
        claims: Any = json.loads(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(claims, dict) and cast("dict[str, Any]", claims).get("iss") == ISSUER


def _time(claims: Mapping[str, Any], name: str) -> float:
    """Return a time in seconds since 1970 (RFC 7519, section 2); raise `InvalidToken`."""
    value = claims[name]
    try:
        if type(value) in (int, float) and isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise InvalidToken(f"its {name} is not a time")
