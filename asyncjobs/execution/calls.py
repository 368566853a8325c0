"""Finds calls of a handler that were not awaited, so that what they should do is not lost."""

from __future__ import annotations

from abc import ABC, abstractmethod

from asyncjobs.errors import NotAwaited


class Calls(ABC):
    """The calls of one attempt that are to be awaited, each with a key and a name for its error."""

    def __init__(self) -> None:
        # Those that were made and are not awaited yet.
        self._pending: dict[int, str] = {}
        # The name of the first one that was dropped instead.
        self._dropped: str | None = None

    @abstractmethod
    def not_awaited(self, name: str) -> NotAwaited:
        """Return the error for a call that was not awaited."""

    def made(self, key: int, name: str) -> None:
        """Note that a call was made."""
        self._pending[key] = name

    def awaited(self, key: int) -> None:
        """Note that a call is awaited, in any task."""
        self._pending.pop(key, None)

    def dropped(self, key: int) -> None:
        """Note that a call cannot be awaited any more."""
        name = self._pending.pop(key, None)
        if self._dropped is None:
            self._dropped = name

    def check(self) -> None:
        """Raise `NotAwaited` if a call was dropped without being awaited, each time."""
        if self._dropped is not None:
            raise self.not_awaited(self._dropped)

    def check_all(self) -> None:
        """Raise `NotAwaited` at the end of the attempt if any call was not awaited."""
        self.check()
        for name in tuple(self._pending.values()):
            raise self.not_awaited(name)
