"""The ticks of cron expressions, above all when the clocks change."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from asyncjobs.core.schedules import Definition, Timetable
from asyncjobs.cron import timetable_of
from asyncjobs.errors import ConfigurationError

BERLIN = "Europe/Berlin"
LORD_HOWE = "Australia/Lord_Howe"  # its clocks change by half an hour
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def table(cron: str, timezone: str = "UTC") -> Timetable:
    return timetable_of(Definition(type="export", cron=cron, timezone=timezone))


def ticks(cron: str, timezone: str, begin: datetime, end: datetime) -> list[datetime]:
    """Return all ticks in [begin, end), each computed from the one before, as schedules do."""
    timetable = table(cron, timezone)
    found: list[datetime] = []
    tick = timetable.after(begin - timedelta(microseconds=1))
    while tick is not None and tick < end:
        found.append(tick)
        tick = timetable.after(tick)
    return found


def day(year: int, month: int, number: int, timezone: str) -> datetime:
    return datetime(year, month, number, tzinfo=ZoneInfo(timezone)).astimezone(UTC)


def locally(moments: list[datetime], timezone: str) -> list[str]:
    return [f"{moment.astimezone(ZoneInfo(timezone)):%d %H:%M}" for moment in moments]


@pytest.mark.parametrize(
    ("timezone", "year", "month", "first", "expected"),
    [
        (BERLIN, 2027, 3, 27, ["27 02:30", "28 03:00", "29 02:30"]),
        (BERLIN, 2027, 10, 30, ["30 02:30", "31 02:30", "01 02:30"]),
        (LORD_HOWE, 2027, 10, 2, ["02 02:30", "03 02:30", "04 02:30"]),
        (LORD_HOWE, 2027, 4, 3, ["03 02:30", "04 02:30", "05 02:30"]),
    ],
    ids=["berlin-spring", "berlin-autumn", "lord-howe-spring", "lord-howe-autumn"],
)
def test_a_daily_schedule_runs_once_on_each_day(
    timezone: str, year: int, month: int, first: int, expected: list[str]
) -> None:
    begin = day(year, month, first, timezone)
    found = ticks("30 2 * * *", timezone, begin, begin + 3 * DAY + HOUR)
    assert locally(found, timezone) == expected


@pytest.mark.parametrize(
    ("timezone", "year", "month", "first", "expected"),
    [
        # 02:15 does not exist, and 01:45 exists twice: the day has it once.
        (LORD_HOWE, 2027, 10, 3, {"15 2 * * *": ["03 02:30"]}),
        (LORD_HOWE, 2027, 4, 4, {"45 1 * * *": ["04 01:45"]}),
    ],
)
def test_half_an_hour_is_left_out_or_repeated(
    timezone: str, year: int, month: int, first: int, expected: dict[str, list[str]]
) -> None:
    begin = day(year, month, first, timezone)
    for cron, moments in expected.items():
        found = ticks(cron, timezone, begin, begin + 23 * HOUR)
        assert locally(found, timezone) == moments


@pytest.mark.parametrize(
    ("timezone", "year", "month", "first", "hours"),
    [(BERLIN, 2027, 3, 28, 23), (BERLIN, 2027, 10, 31, 25)],
)
def test_an_hourly_schedule_runs_once_in_each_hour(
    timezone: str, year: int, month: int, first: int, hours: int
) -> None:
    begin = day(year, month, first, timezone)
    found = ticks("0 * * * *", timezone, begin, begin + hours * HOUR)
    assert found == [begin + number * HOUR for number in range(hours)]


def test_quarters_of_an_hour_follow_real_time_when_the_clocks_change() -> None:
    begin = day(2027, 10, 31, BERLIN)
    found = ticks("*/15 * * * *", BERLIN, begin, begin + 25 * HOUR)
    assert found == [begin + number * HOUR / 4 for number in range(100)]


def test_ticks_are_in_utc_and_have_their_usual_hour_in_the_zone() -> None:
    begin = datetime(2027, 1, 1, tzinfo=UTC)
    found = ticks("0 3 * * *", BERLIN, begin, begin + 365 * DAY)
    assert len(found) == 365
    assert {moment.tzinfo for moment in found} == {UTC}
    assert set(locally(found, BERLIN)) == {f"{number:02} 03:00" for number in range(1, 32)}


@pytest.mark.parametrize(
    ("cron", "first"),
    [
        ("0 0 L * *", datetime(2027, 1, 31, tzinfo=UTC)),
        ("0 0 * * MON#1", datetime(2027, 1, 4, tzinfo=UTC)),
        ("0 0 29 2 *", datetime(2028, 2, 29, tzinfo=UTC)),
        ("*/20 * * * * *", datetime(2027, 1, 1, 0, 0, 20, tzinfo=UTC)),
    ],
)
def test_rare_and_extended_expressions(cron: str, first: datetime) -> None:
    assert table(cron).after(datetime(2027, 1, 1, tzinfo=UTC)) == first


@pytest.mark.parametrize("timezone", [BERLIN, LORD_HOWE, "America/New_York", "Asia/Tehran", "UTC"])
def test_the_next_tick_is_always_later(timezone: str) -> None:
    chance = random.Random(timezone)  # noqa: S311  # reproducible, no secrets
    for _ in range(60):
        minute = chance.choice(["*", "*/7", "30", "0,45", "15-20"])
        hour = chance.choice(["*", "*/2", "1", "2", "0-3", "1,2"])
        timetable = table(f"{minute} {hour} * * *", timezone)
        # Days on which clocks change, and others.
        moment = datetime(2027, chance.choice([3, 4, 10, 11]), 1, tzinfo=UTC)
        moment += timedelta(seconds=chance.randrange(31 * 86400))
        for _ in range(20):
            following = timetable.after(moment)
            assert following is not None
            # The same tick, whatever process computes it, and whenever.
            assert timetable.after(moment + (following - moment) / 2) == following
            assert moment < following <= moment + 2 * DAY
            moment = following


@pytest.mark.parametrize("cron", ["", "61 * * * *", "* * * *", "@daily", "0 0 32 2 *", "a b c d e"])
def test_an_expression_that_is_not_valid_is_rejected(cron: str) -> None:
    with pytest.raises(ConfigurationError, match="is not valid"):
        table(cron)


def test_an_expression_that_never_fires_has_no_next_tick() -> None:
    # The 20th of a month is never its last Monday.
    assert table("* * */20 * 1L").after(datetime(2027, 1, 1, tzinfo=UTC)) is None


@pytest.mark.parametrize("timezone", ["Europe/Atlantis", "Europe", "../etc/passwd", "", "\0"])
def test_an_unknown_time_zone_is_rejected(timezone: str) -> None:
    with pytest.raises(ConfigurationError, match="no time zone"):
        timetable_of(Definition(type="export", cron="0 3 * * *", timezone=timezone))


def test_a_missing_library_is_named_with_its_extra() -> None:
    program = """
import sys
sys.modules["cronsim"] = None
from datetime import timedelta
from asyncjobs import AsyncJobs
jobs = AsyncJobs("memory://")
jobs.handler("export")(lambda: None)
jobs.schedule("often", "export", every=timedelta(minutes=5))
try:
    jobs.schedule("nightly", "export", cron="0 3 * * *")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ConfigurationError Schedule 'nightly': ")
    assert "pip install 'asyncjobs-http[cron]'" in done.stdout
