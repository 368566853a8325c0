"""Lists jobs and follows lists: a part of `AsyncJobs`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from asyncjobs.core.job import Job
from asyncjobs.protocols import Listing, Page, Selection, Store
from asyncjobs.records.list_feed import ListWatch
from asyncjobs.records.repository import Repository
from asyncjobs.runtime.runtime import Runtime


class Lists(ABC):
    """Finds jobs by their properties."""

    _store: Store

    @property
    @abstractmethod
    def _repository(self) -> Repository:
        """The access to the store of the open queue; raises `NotOpen` and `WrongEventLoop`."""

    @property
    @abstractmethod
    def _running(self) -> Runtime:
        """The runtime of the open queue; raises as above."""

    @property
    def can_list(self) -> bool:
        """Whether the store can list jobs."""
        return Listing in self._store.powers

    async def list(self, which: Selection, /, *, limit: int = 50, after: str | None = None) -> Page:
        """Return jobs, the newest first, without their payloads and results.

        `after` is the `next` of the previous page. Raises `ConfigurationError` if the store cannot
        list jobs in this way, and `InvalidQuery` for a malformed tag, properties that exclude each
        other, or an `after` that was not the `next` of a page.
        """
        return await self._repository.list(which, limit=limit, after=after)

    def subscribe_list(self, which: Selection, /, *, limit: int = 50) -> ListWatch:
        """Yield the first page of `list`, then the newest one when a job in it changes.

        A page also follows when a job is added or deleted, but not more than one a second. A slow
        consumer misses pages in between, never the newest. Ends when the queue closes. Raises as
        `list`.
        """
        return self._running.lists.watch(which, limit)

    async def position(self, job: Job, /) -> int | None:
        """Return the job's position in its queue; 1 is next.

        Returns None if it does not wait for one of our workers, if a thousand jobs are before it,
        or if the store cannot count them.
        """
        return await self._repository.position(job)
