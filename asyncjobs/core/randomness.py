"""Random texts that cannot be guessed, made many at a time.

To ask the operating system for a few bytes takes longer than all else that an id needs, and lets
other threads have the interpreter meanwhile.
"""

from __future__ import annotations

import os

_DIGITS = 32
_AT_ONCE = 128

_spare: list[str] = []


def random_hex() -> str:
    """Return 32 random hexadecimal digits, 128 bits from the operating system; in any thread."""
    try:
        return _spare.pop()
    except IndexError:
        digits = os.urandom(_AT_ONCE * _DIGITS // 2).hex()
    made = [digits[start : start + _DIGITS] for start in range(0, len(digits), _DIGITS)]
    mine = made.pop()
    _spare.extend(made)
    return mine


def forget_spare() -> None:
    """Let the next text come from the operating system anew."""
    _spare.clear()


# A forked process must not give out what its parent has, too.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_spare)
