"""What the URLs of all stores have in common: their parameters, and the characters of no URL."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote_plus

from asyncjobs.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")


def check_characters(what: str, text: str, *, errors: str = "strict") -> None:
    """Raise `ConfigurationError` for a NUL, or for what no encoding can write.

    Drivers written in C read up to the NUL only, and so find another server or file.
    """
    if "\0" in text:
        raise ConfigurationError(f"{what} has a NUL character.")
    try:
        text.encode(errors=errors)
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what} has a character that UTF-8 cannot encode.") from None


def check_parameters(store: str, url: str, known: Collection[str]) -> None:
    """Raise `ConfigurationError` for an unknown parameter of a URL; list the known ones."""
    query = url.partition("?")[2].partition("#")[0]
    names = [unquote_plus(part.partition("=")[0]) for part in query.split("&") if part]
    unknown = {name for name in names if name not in known}
    if not unknown:
        return
    # After a "?" in a password that was not escaped, the names are parts of the password.
    shown = sorted(name for name in unknown if "@" not in query and _NAME.fullmatch(name))
    raise ConfigurationError(
        f"The URL of the {store} store cannot be used: it has an unknown parameter"
        f"{': ' if shown else ''}{', '.join(shown)}. "
        f"The known ones are: {', '.join(sorted(known)) or 'none'}."
    )
