"""The sharing suite detects stores whose steps are atomic for one opener only."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncjobs.testing import SharingConformance
from asyncjobs.testing.racing import SecondProcess, second_process
from custom_store import FolderStore
from tests.testing import broken_folders as broken
from tests.testing.suites import keeps, named, rules_of

BROKEN: list[tuple[type[FolderStore], str]] = [
    (broken.KeepsAFolderPerOpener, "test_what_one_opener_writes_the_other_reads"),
    (broken.TakesInTwoSteps, "test_two_openers_never_take_the_same_job"),
    (broken.ReplacesInTwoSteps, "test_two_openers_lose_no_update"),
    (broken.InsertsInTwoSteps, "test_two_openers_store_one_job_for_a_key"),
    (broken.TakesUnderALockOfItsProcess, "test_another_process_never_takes_the_same_job"),
    (broken.ReplacesUnderALockOfItsProcess, "test_another_process_loses_no_update"),
    (broken.InsertsUnderALockOfItsProcess, "test_another_process_stores_one_job_for_a_key"),
    (broken.AppendsUnderALockOfItsProcess, "test_another_process_appends_without_gap"),
]

ALONE = [
    (broken.TakesUnderALockOfItsProcess, "test_two_openers_never_take_the_same_job"),
    (broken.ReplacesUnderALockOfItsProcess, "test_two_openers_lose_no_update"),
    (broken.InsertsUnderALockOfItsProcess, "test_two_openers_store_one_job_for_a_key"),
]


@pytest.fixture(scope="module")
def process() -> Iterator[SecondProcess]:
    with second_process() as process:
        yield process


def fixtures_of(store: type[FolderStore], folder: Path, process: SecondProcess) -> dict[str, Any]:
    return {
        "store": store(folder),
        "other": store(folder),
        "opener": partial(store, folder),
        "process": process,
    }


@pytest.mark.parametrize(("store", "rule"), BROKEN, ids=named)
def test_a_store_with_broken_sharing_fails_the_rule_it_breaks(
    store: type[FolderStore], rule: str, tmp_path: Path, process: SecondProcess
) -> None:
    assert not keeps(SharingConformance, rule, lambda: fixtures_of(store, tmp_path, process))


@pytest.mark.parametrize(("store", "rule"), ALONE, ids=named)
def test_a_lock_of_one_process_passes_without_a_second_process(
    store: type[FolderStore], rule: str, tmp_path: Path, process: SecondProcess
) -> None:
    assert keeps(SharingConformance, rule, lambda: fixtures_of(store, tmp_path, process))


def test_a_store_that_keeps_output_under_a_lock_of_all_processes_passes(
    tmp_path: Path, process: SecondProcess
) -> None:
    rule = "test_another_process_appends_without_gap"
    fixtures = fixtures_of(broken.KeepsOutput, tmp_path / "jobs", process)
    assert keeps(SharingConformance, rule, lambda: fixtures)


def test_every_rule_of_sharing_is_broken_by_some_store() -> None:
    rules = rules_of(SharingConformance, "store", "other", "opener", "process")
    assert {*rules} == {rule for _, rule in BROKEN}


def test_an_error_of_the_other_process_is_raised_with_its_traceback(
    tmp_path: Path, process: SecondProcess
) -> None:
    (tmp_path / "file").touch()
    fixtures = fixtures_of(FolderStore, tmp_path / "jobs", process)
    fixtures["opener"] = partial(FolderStore, tmp_path / "file")
    rule = "test_another_process_never_takes_the_same_job"
    assert not keeps(SharingConformance, rule, lambda: fixtures)
    whole = fixtures_of(FolderStore, tmp_path / "whole", process)
    assert keeps(SharingConformance, rule, lambda: whole)
