"""Settings are seconds or timedeltas, and are validated at once."""

from __future__ import annotations

import math
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from asyncjobs import AsyncJobs, Policy, Retry, Settings
from asyncjobs.dispatchers.local import LocalDispatcher
from asyncjobs.errors import ConfigurationError
from asyncjobs.stores.memory import MemoryStore

NAMES = [field.name for field in fields(Settings)]
THREE = timedelta(seconds=3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("three", [3, 3.0, THREE])
def test_each_setting_accepts_seconds_or_a_timedelta(name: str, three: float | timedelta) -> None:
    assert getattr(Settings(**{name: three}), name) == THREE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [-1, -THREE, float("nan"), "3"])
def test_a_setting_that_is_no_duration_is_refused_at_once(name: str, wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Settings(**{name: wrong})


@pytest.mark.parametrize("name", NAMES)
def test_intervals_must_be_positive_except_the_grace_period(name: str) -> None:
    if name == "grace":
        assert Settings(grace=0).grace == timedelta(0)
    else:
        with pytest.raises(ValueError, match=f"Settings.{name} must be positive"):
            Settings(**{name: 0})


@pytest.mark.parametrize("three", [3, 3.0, THREE])
def test_limits_and_delays_accept_seconds_or_a_timedelta(three: float | timedelta) -> None:
    policy = Policy(timeout=three, deadline=three, retention=three, inline_wait=three)
    assert (policy.timeout, policy.deadline, policy.retention) == (THREE, THREE, THREE)
    assert policy.inline_wait == THREE
    retry = Retry(initial_delay=three, max_delay=three)
    assert (retry.initial_delay, retry.max_delay) == (THREE, THREE)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), timedelta.max, "soon"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((Policy, name) for name in ("timeout", "deadline", "retention", "inline_wait")),
        *((Retry, name) for name in ("initial_delay", "max_delay")),
    ],
)
def test_a_limit_that_is_no_duration_is_refused_at_once(kind: Any, name: str, wrong: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        kind(**{name: wrong})


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
def test_durations_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Settings(lease=value)


@pytest.mark.parametrize("value", [None, True, "3"])
def test_durations_must_be_numbers_or_timedeltas(value: Any) -> None:
    with pytest.raises(TypeError, match="duration"):
        Settings(lease=value)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"store": None}, r'`store` must be a URL, such as "sqlite:///jobs.db", or a store; got None'),
    ({"store": Path("jobs.db")}, "got an object of type PosixPath"),
    ({"store": MemoryStore}, "got the class MemoryStore"),
    ({"dispatcher": None}, "`dispatcher` must be"),
    ({"dispatcher": LocalDispatcher}, "got the class LocalDispatcher"),
    ({"policy": {}}, "`policy` must be a Policy; got an object of type dict"),
    ({"policy": Retry()}, "`policy` must be a Policy"),
    ({"settings": {}}, "`settings` must be Settings"),
    ({"settings": Settings}, "got the class Settings"),
    ({"clock": datetime}, "`clock` must be a clock; got the class datetime"),
    ({"clock": datetime.now}, "`clock` must be a clock"),
    ({"callbacks": True}, r"`callbacks` must be a sender, such as Webhooks\(\)"),
    ({"lifespan": 5}, "`lifespan` must be a function"),
    ({"files": 5}, "`files` must be a folder"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_an_option_of_a_wrong_type_is_refused_by_the_queue(
    options: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {"store": "memory://", **options}
    with pytest.raises(ConfigurationError, match=said):
        AsyncJobs(**given)


def test_a_wrong_store_or_clock_for_a_test_is_refused() -> None:
    jobs = AsyncJobs("memory://")
    wrong: list[dict[str, Any]] = [{"store": None}, {"clock": datetime}]
    for options in wrong:
        with pytest.raises(ConfigurationError, match="must be"), jobs.using(**options):
            pass
    with jobs.using():
        pass
