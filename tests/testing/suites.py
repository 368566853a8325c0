"""Runs rules of the shipped suites on given stores."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio
import pytest

from asyncjobs.stores.memory import MemoryStore
from asyncjobs.testing import StoreConformance

#: Makes the fixtures of a rule, anew for each case.
Fixtures = Callable[[], Mapping[str, Any]]


class StoreRules(StoreConformance):
    """The rules for all stores; those of its powers are in other suites."""

    tested_elsewhere = MemoryStore.powers


def rules_of(suite: type, *fixtures: str) -> list[str]:
    """Return the rules of a suite that need no other fixtures than these."""
    return [
        name
        for name, rule in inspect.getmembers(suite, inspect.iscoroutinefunction)
        if name.startswith("test_") and {*_needs(rule)} <= {"self", *fixtures, *_given(rule)}
    ]


def keeps(suite: type, name: str, fixtures: Fixtures) -> bool:
    """Return whether a rule holds, in all of its cases."""
    rule = getattr(suite, name)
    return all(_holds(suite, name, case, fixtures()) for case in _cases(rule))


def named(value: object) -> str:
    """Return a test id for a class or function."""
    return getattr(value, "__name__", "")


def _holds(suite: type, name: str, case: Mapping[str, Any], fixtures: Mapping[str, Any]) -> bool:
    rule = getattr(suite(), name)
    needed = {one: fixtures[one] for one in _needs(rule) if one in fixtures}
    try:
        anyio.run(partial(rule, **needed, **case))
    except (Exception, BaseExceptionGroup, pytest.fail.Exception):  # noqa: BLE001  # any failure
        return False
    return True


def _needs(rule: Callable[..., object]) -> list[str]:
    return [*inspect.signature(rule).parameters]


def _given(rule: Callable[..., object]) -> list[str]:
    return [name for case in _cases(rule) for name in case]


def _cases(rule: Callable[..., object]) -> list[dict[str, Any]]:
    marks = [mark.args for mark in getattr(rule, "pytestmark", ()) if mark.name == "parametrize"]
    return [{name: value} for name, values in marks for value in values] or [{}]
