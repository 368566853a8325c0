"""Random texts that cannot be guessed, made many at a time.

Asking the operating system for a few bytes takes longer than everything else an id needs, and lets
other threads take the interpreter meanwhile.
"""

from __future__ import annotations

import os

_DIGITS = 32
_TEXTS_PER_READ = 128

_spare: list[str] = []


def random_hex() -> str:
    """Return 32 random hexadecimal digits, 128 bits from the operating system; thread-safe."""
    try:
        return _spare.pop()
    except IndexError:
        digits = os.urandom(_TEXTS_PER_READ * _DIGITS // 2).hex()
    made = [digits[start : start + _DIGITS] for start in range(0, len(digits), _DIGITS)]
    mine = made.pop()
    _spare.extend(made)
    return mine


def forget_spare() -> None:
    """Discard the spare texts; the next one comes from the operating system."""
    _spare.clear()


# A forked process must not return the same texts as its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_spare)
