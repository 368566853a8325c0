"""Text from outside on a terminal."""

from __future__ import annotations

import pytest

from asyncjobs.core.printable import plain


@pytest.mark.parametrize(
    "char", ["\x1b", "\a", "\r", "\n", "\t", "\x7f", "\x9b", "\ud800", "\u202e", "\u2028"]
)
def test_a_character_that_a_terminal_interprets_becomes_a_space(char: str) -> None:
    assert plain(f"a{char}b") == "a b"


def test_printable_text_stays_as_it_is() -> None:
    assert plain("Zwölf Zeilen, 你好 🎉") == "Zwölf Zeilen, 你好 🎉"
