"""Occasional events are not delayed; frequent events are batched."""

from __future__ import annotations

import pytest

from asyncjobs.stores.pacing import Pace


def times(pace: Pace, wanted: list[float]) -> list[float]:
    """Return the times at which these events happen, one after the other."""
    done: list[float] = []
    for at in wanted:
        now = max([at, *done[-1:]])
        done.append(now + pace.pause(now))
    return done


def test_occasional_events_are_not_delayed() -> None:
    wanted = [1000.0 + number for number in range(20)]
    assert times(Pace(0.5), wanted) == wanted


def test_a_burst_is_immediate_and_then_one_event_per_interval() -> None:
    done = times(Pace(0.5), [1000.0] * 8)
    assert done == [1000, 1000, 1000, 1000, 1000, 1000.5, 1001, 1001.5]


def test_after_a_pause_a_burst_is_immediate_again() -> None:
    pace = Pace(0.5)
    times(pace, [1000.0] * 8)
    assert times(pace, [1010.0] * 3) == [1010, 1010, 1010]


def test_the_average_is_one_event_per_interval_at_most() -> None:
    done = times(Pace(0.25), [number / 16 for number in range(1600)])
    assert done[-1] == pytest.approx(1600 * 0.25, abs=2)
