"""The `Prefer` header (RFC 7240) and the `Idempotency-Key` header."""

from __future__ import annotations

import re

from asyncjobs.errors import InvalidIdempotencyKey

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
