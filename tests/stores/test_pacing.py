"""What happens now and then never waits; what happens all the time is gathered."""

from __future__ import annotations

import pytest

from asyncjobs.stores.pacing import Pace


def times(pace: Pace, wanted: list[float]) -> list[float]:
    """Return when each of these happens, one after the other."""
    done: list[float] = []
    for at in wanted:
        now = max([at, *done[-1:]])
        done.append(now + pace.pause(now))
    return done


def test_what_happens_now_and_then_happens_at_once() -> None:
    wanted = [1000.0 + number for number in range(20)]
    assert times(Pace(0.5), wanted) == wanted


def test_a_few_in_a_row_happen_at_once_and_then_one_per_pace() -> None:
    done = times(Pace(0.5), [1000.0] * 8)
    assert done == [1000, 1000, 1000, 1000, 1000, 1000.5, 1001, 1001.5]


def test_after_a_while_a_few_happen_at_once_again() -> None:
    pace = Pace(0.5)
    times(pace, [1000.0] * 8)
    assert times(pace, [1010.0] * 3) == [1010, 1010, 1010]


def test_on_average_there_is_no_more_than_one_per_pace() -> None:
    done = times(Pace(0.25), [number / 16 for number in range(1600)])
    assert done[-1] == pytest.approx(1600 * 0.25, abs=2)
