"""The labels of a job, and what its changes add to the counters of its batch."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.core import lifecycle
from asyncjobs.core.job import Job, Progress, new_job_id
from asyncjobs.core.labels import (
    label_of_batch,
    label_of_tag,
    labels_of,
    new_labels,
    possible_labels,
    tallies_of,
    tally_changes,
    total_of,
)
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, begun, failed

BATCH = new_job_id()
NAMES = ("a", "b", "a:b", 'a"b', "a,b", "[", "", "ä", "\\u00e4", "tag:a", "None", "null")


def states(job: Job) -> list[Job]:
    """Let a job run, report, wait again, and end."""
    started = begun(job)
    reported = lifecycle.report(started, Progress(percent=40), token="t")
    waiting = lifecycle.release(reported, NOW, token="t")
    again = begun(waiting)
    return [job, started, reported, waiting, again, lifecycle.cancel(waiting, NOW)]


def test_a_job_has_a_label_for_each_tag_and_for_each_tag_of_its_owner() -> None:
    job = sample_job(tags=("a", "b"))
    assert labels_of(job) == (label_of_tag("a"), label_of_tag("b"))
    owned = job.changed(user_id="")
    assert {*labels_of(owned)} == {*labels_of(job), label_of_tag("a", ""), label_of_tag("b", "")}
    assert labels_of(sample_job()) == ()
    assert possible_labels(owned) == labels_of(owned)


def test_all_labels_are_different() -> None:
    labels = [label_of_tag(tag, owner) for tag in NAMES for owner in (None, *NAMES)]
    labels += [label_of_batch(name, failed=failed) for name in NAMES for failed in (False, True)]
    assert len({*labels}) == len(labels)


def test_a_job_that_fails_gets_one_more_label() -> None:
    job, alone = sample_job(batch=BATCH, tags=("a",)), sample_job(tags=("a",))
    more = (label_of_batch(BATCH, failed=True),)
    assert new_labels(job, begun(job)) == ()
    assert new_labels(begun(job), failed(job)) == more
    assert (*labels_of(job), *more) == labels_of(failed(job)) == possible_labels(job)
    assert possible_labels(failed(job)) == labels_of(failed(job))
    assert new_labels(alone, failed(alone)) == ()


def test_changes_add_up_to_what_the_last_state_counts() -> None:
    for one, other in combinations(states(sample_job(batch=BATCH)), 2):
        totals = total_of([tallies_of(one), tally_changes(one, other)])
        expected = tallies_of(other)[label_of_batch(BATCH)]
        assert {name: n for name, n in totals[label_of_batch(BATCH)].items() if n} == expected


def test_a_change_that_counts_nothing_has_no_tallies() -> None:
    jobs = states(sample_job(batch=BATCH))
    assert tally_changes(jobs[1], jobs[1].changed(revision=9)) == {}
    assert all(tally_changes(one, other) == {} for one, other in pairwise(states(sample_job())))
    assert tallies_of(sample_job(tags=("a",))) == {}


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers(-9, 9))
        )
    )
)
def test_totals_are_sums_in_order(tallies: list[dict[str, dict[str, int]]]) -> None:
    totals = total_of(tallies)
    assert [*totals] == sorted(totals)
    for label, tally in totals.items():
        assert [*tally] == sorted(tally)
        for name, number in tally.items():
            assert number == sum(one.get(label, {}).get(name, 0) for one in tallies)
