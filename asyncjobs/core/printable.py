"""Text from outside, made safe for a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """Replace unprintable characters: escape sequences must not reach the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)
