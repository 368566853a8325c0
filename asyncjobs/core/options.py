"""Checks the types of options, so that a mistake is reported where it is made, not by a request."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from asyncjobs.errors import ConfigurationError

T = TypeVar("T")


@overload
def checked_option(option: str, value: T, kinds: type | tuple[type, ...], wanted: str) -> T: ...
@overload
def checked_option(
    option: str, value: T | None, kinds: type | tuple[type, ...], wanted: str, default: T
) -> T: ...
def checked_option(
    option: str,
    value: Any,
    kinds: type | tuple[type, ...],
    wanted: str,
    default: Any = None,
) -> Any:
    """Return a value of one of the kinds, or the default for None.

    Raises `ConfigurationError` for another type; its text has no value, since that may be a secret.
    """
    if value is None:
        return default
    if not isinstance(value, kinds):
        raise _mistake(option, value, wanted)
    return value


def checked_part(option: str, value: T, members: tuple[str, ...], wanted: str) -> T:
    """Return an object that has these members; raise `ConfigurationError` for any other."""
    if isinstance(value, type) or not all(hasattr(value, name) for name in members):
        raise _mistake(option, value, wanted)
    return value


def described(value: object) -> str:
    """Return what was given, without the value itself."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"an object of type {type(value).__name__}"


def _mistake(option: str, value: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(f"`{option}` must be {wanted}; got {described(value)}.")
