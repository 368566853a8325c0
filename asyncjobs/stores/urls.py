"""The checks that all stores make of their URLs: credentials, parameters, forbidden characters."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote_plus

from asyncjobs.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")

# A name, an address or the escaped path of a socket, then an optional port. Other escapes are not
# allowed: an escaped ":" or "@" suggests that this is part of a password.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]*\]|(?:%40)?(?:[^\s%@:/?#\[\]]|%2[Ff])*)(?::\d{0,5})?")


def check_characters(what: str, text: str, *, errors: str = "strict") -> None:
    """Raise `ConfigurationError` for a NUL, or for a character that UTF-8 cannot encode.

    Drivers written in C stop reading at a NUL, and would use another server or file.
    """
    if "\0" in text:
        raise ConfigurationError(f"{what} contains a NUL character.")
    try:
        text.encode(errors=errors)
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what} contains a character that UTF-8 cannot encode.") from None


def check_credentials(what: str, url: str) -> None:
    """Raise `ConfigurationError` if part of the password could be taken for another URL part.

    After an unescaped delimiter, parsers take the rest of a password for a host, a database or a
    parameter. The driver would connect to it, and messages would show it.
    """
    rest = url.partition("://")[2]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    credentials, _, hosts = authority.rpartition("@")
    beyond = rest.removeprefix(authority)
    clear = "@" not in f"{credentials}{beyond}" and "#" not in beyond
    if not clear or not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        raise ConfigurationError(
            f"{what} cannot be parsed. Its form is scheme://user:password@host:port/..."
            " with the user and the password escaped: %40 for @, %3A for :, %2F for /, %3F for ?, "
            "%23 for #, %25 for %."
        )


def check_parameters(store: str, url: str, known: Collection[str]) -> None:
    """Raise `ConfigurationError` for an unknown parameter of a URL, and list the known ones."""
    beyond = url.partition("?")[2]
    query = beyond.partition("#")[0]
    parts = [part.partition("=") for part in query.split("&") if part]
    unknown = {unquote_plus(name): equals for name, equals, _ in parts}
    for name in known:
        unknown.pop(name, None)
    if not unknown:
        return
    # After an unescaped "?" or "&" in a password, the names may be parts of the password. Such a
    # part has no "=", most likely.
    is_safe = "@" not in beyond and "pass" not in unquote_plus(query).lower()
    shown = sorted(
        name for name, equals in unknown.items() if is_safe and equals and _NAME.fullmatch(name)
    )
    raise ConfigurationError(
        f"The URL of the {store} store cannot be used: it has an unknown parameter"
        f"{': ' if shown else ''}{', '.join(shown)}. "
        f"The known ones are: {', '.join(sorted(known)) or 'none'}."
    )
