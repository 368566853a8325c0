"""The labels and tallies of a job: by which names stores index it, and what they count for it.

A *label* is a name under which a store finds a job. Jobs get labels when they are inserted and may
get more when they change, and keep them until they are deleted. A *tally* is the set of counters of
one label, which a store changes in the same atomic step as the job. Only batches are counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from asyncjobs.core.job import Job, JobId, JobStatus

#: The counters of one label, by name.
Tally = Mapping[str, int]

#: Counters by label, and by name.
Tallies = Mapping[str, Tally]

NO_TALLIES: Tallies = MappingProxyType({})

#: What the labels of batches begin with, and no other labels.
BATCH_PREFIX = "batch:"

#: The counter of all jobs that have ever been stored with a label.
TOTAL = "total"
#: The sum of the jobs' progress in percent; 100 for a job that has ended.
PROGRESS = "progress"


def labels_of(job: Job) -> tuple[str, ...]:
    """Return the labels of a job as it stands."""
    if not job.tags and job.batch is None:
        return ()
    labels = [label_of_tag(tag) for tag in job.tags]
    if job.user_id is not None:
        labels += [label_of_tag(tag, job.user_id) for tag in job.tags]
    if job.batch is not None:
        labels.append(label_of_batch(job.batch))
        if job.status is JobStatus.FAILED:
            labels.append(label_of_batch(job.batch, failed=True))
    return tuple(labels)


def possible_labels(job: Job) -> tuple[str, ...]:
    """Return the labels that a job has or may get, for a store that must know them at insertion."""
    if job.batch is None or job.status is JobStatus.FAILED:
        return labels_of(job)
    return (*labels_of(job), label_of_batch(job.batch, failed=True))


def new_labels(before: Job, job: Job) -> tuple[str, ...]:
    """Return the labels that a job gets by a change."""
    if job.batch is None:  # tags never change
        return ()
    had = labels_of(before)
    return tuple(label for label in labels_of(job) if label not in had)


def tallies_of(job: Job) -> Tallies:
    """Return what a job adds to the counters of its labels as it stands."""
    if job.batch is None:
        return NO_TALLIES
    return {label_of_batch(job.batch): _counted(job)}


def tally_changes(before: Job, job: Job) -> Tallies:
    """Return what a change of a job adds to the counters; counters that stay are left out."""
    if job.batch is None:
        return NO_TALLIES
    old, new = _counted(before), _counted(job)
    changes = {name: new.get(name, 0) - old.get(name, 0) for name in {**old, **new}}
    changes = {name: change for name, change in changes.items() if change}
    return {label_of_batch(job.batch): changes} if changes else NO_TALLIES


def total_of(tallies: Sequence[Tallies]) -> dict[str, dict[str, int]]:
    """Add up tallies; labels and names are in order, so that all writers lock in one order."""
    totals: dict[str, dict[str, int]] = {}
    for label, tally in (pair for one in tallies for pair in one.items()):
        counters = totals.setdefault(label, {})
        for name, number in tally.items():
            counters[name] = counters.get(name, 0) + number
    return {label: dict(sorted(totals[label].items())) for label in sorted(totals)}


def label_of_tag(tag: str, owner: str | None = None) -> str:
    """Return the label of a tag, or that of one owner's jobs with it."""
    # JSON, since owners may be any text: no two pairs have the same label.
    return f"tag:{tag}" if owner is None else f"owned:{json.dumps([owner, tag])}"


def label_of_batch(batch: JobId | str, *, failed: bool = False) -> str:
    """Return the label of a batch's jobs, or that of its failed jobs."""
    return f"failed:{batch}" if failed else f"{BATCH_PREFIX}{batch}"


def _counted(job: Job) -> dict[str, int]:
    progress = 100 if job.status.terminal else job.progress
    counters = {TOTAL: 1, job.status.value: 1}
    return {**counters, PROGRESS: progress} if progress else counters
