"""Storms, each by a seed: whatever happens on several machines, no rule is broken.

`ASYNCJOBS_SIMULATION_SEEDS` is how many seeds there are; a release gets some thousands. A seed that
breaks a rule breaks it again: `pytest -n 0 -m '' tests/simulation/test_seeds.py -k '[1012]'`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from tests.simulation.batches import BatchWorld
from tests.simulation.outputs import OutputWorld
from tests.simulation.rules import violations
from tests.simulation.world import simulate

SEEDS = int(os.environ.get("ASYNCJOBS_SIMULATION_SEEDS", "120"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_rule_is_broken_whatever_happens(
    seed: int, record_property: Callable[[str, int], None]
) -> None:
    history = simulate(seed).history
    assert violations(history) == []
    what = Counter(event["what"] for event in history)
    record_property("jobs", what["final"])
    record_property("kills, pauses and cuts", what["trouble"])


@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_the_numbers_of_batches_are_exact_whatever_happens(seed: int) -> None:
    history = simulate(seed, kind=BatchWorld).history
    assert [event["words"] for event in history if event["what"] == "wrong"] == []


@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_output_is_complete_and_in_order_whatever_happens(seed: int) -> None:
    history = simulate(seed, kind=OutputWorld).history
    assert [event["words"] for event in history if event["what"] == "wrong"] == []
