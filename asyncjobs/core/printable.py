"""Text from outside: which characters are refused, and text made safe for a terminal."""

from __future__ import annotations

import unicodedata

# The marks that change the order of letters, by which `report-fdp.exe` looks like `report-exe.pdf`.
_REORDERING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def refused_character(text: str) -> str | None:
    """Return the name of the first character that a title or name must not have; None if all fit.

    These are controls, lone surrogates, line and paragraph separators, and the marks that change
    the order of letters. Other invisible characters belong to ordinary text: no-break spaces, and
    the joiners of Persian and of emoji.
    """
    if text.isprintable():
        return None
    wrong = next(filter(_is_refused, text), None)
    return None if wrong is None else f"U+{ord(wrong):04X}"


def plain(text: str) -> str:
    """Replace unprintable characters: escape sequences must not reach the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def _is_refused(character: str) -> bool:
    refused = unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
    return refused or unicodedata.bidirectional(character) in _REORDERING
