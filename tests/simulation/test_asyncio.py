"""The simulation on asyncio is reproducible, causes every trouble, and finds planted bugs.

`test_seeds.py` runs many seeds of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job
from asyncjobs.execution.attempt import Attempt
from asyncjobs.execution.executor import Executor
from asyncjobs.protocols import Change, Store
from asyncjobs.stores.memory import MemoryStore
from tests.simulation.handlers import DEEDS
from tests.simulation.rules import violations
from tests.simulation.world import simulate

#: One of this many seeds exposes each planted bug.
SEEDS = 60


def test_the_same_seed_gives_the_same_history() -> None:
    one, same, other = (simulate(seed).history for seed in (5, 5, 6))
    assert one == same
    assert one != other


def test_a_few_seeds_break_no_rule_and_cause_every_kind_of_trouble() -> None:
    stories = [simulate(seed) for seed in range(12)]
    assert [violations(story.history) for story in stories] == [[]] * len(stories)
    events = [event for story in stories for event in story.history]
    troubles = {event["kind"] for event in events if event["what"] == "trouble"}
    assert troubles == {"killed", "paused", "cut off", "slow", "stopping"}
    assert {event["does"] for event in events if event["what"] == "begin"} == {*DEEDS}
    statuses = {event["status"] for event in events if event["what"] == "final"}
    assert statuses == {"completed", "failed", "cancelled"}


class Overwriting(MemoryStore):
    """Writes without comparing the revision."""

    async def replace(self, changes: Sequence[Change], /) -> Sequence[bool]:
        stored = await self.get([change.job.id for change in changes])
        blind = [
            Change(change.job, 0 if job is None else job.revision)
            for change, job in zip(changes, stored, strict=True)
        ]
        return await super().replace(blind)


def found(store: Callable[[], Store] = MemoryStore) -> str:
    """Return the violations of the first seed that has any."""
    for seed in range(SEEDS):
        if wrong := violations(simulate(seed, store).history):
            return "\n".join(wrong)
    return ""


def test_a_store_that_does_not_compare_revisions_is_found() -> None:
    assert "was replaced 2 times" in found(Overwriting)


@pytest.mark.thorough
def test_an_outcome_that_is_not_fenced_by_its_token_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complete = lifecycle.complete

    def by_anybody(job: Job, now: Any, *, result: bytes, **_token: Any) -> Job:
        return complete(job, now, token=job.lease.token if job.lease else None, result=result)

    monkeypatch.setattr(lifecycle, "complete", by_anybody)
    assert "the result is that of attempt" in found()


def no(_: object) -> bool:
    return False


@pytest.mark.thorough
def test_a_lease_that_is_not_renewed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attempt, "wants_renewal", no)
    assert "was lost without a reason" in found()


@pytest.mark.thorough
def test_suspects_that_run_side_by_side_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "is_suspect", no)
    assert "and all are suspects" in found()


def test_handlers_that_are_left_behind_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Executor, "abandon_all", no)
    assert "left ['asyncjobs " in found()
