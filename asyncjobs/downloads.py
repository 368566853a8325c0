"""Reads the files of jobs, and deletes those of jobs that are gone: a part of `AsyncJobs`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from asyncjobs.core.files import file_named
from asyncjobs.core.job import JobFile, JobId
from asyncjobs.errors import ConfigurationError, UnknownFile
from asyncjobs.files.contents import Reading, delete_files_of, jobs_with_files
from asyncjobs.files.storage import FileStorage
from asyncjobs.records.repository import Repository

# How many jobs are looked up by one read.
_MAX_BATCH_SIZE = 200


class Files(ABC):
    """Gives access to the files that jobs have saved."""

    #: Where files are stored; None if the queue cannot store any.
    file_storage: FileStorage | None

    @property
    @abstractmethod
    def _repository(self) -> Repository:
        """The access to the store of the open queue; raises `NotOpen` and `WrongEventLoop`."""

    async def read_file(self, job_id: JobId, name: str, /) -> Reading:
        """Return the chunks of a file of a job, for `async for`.

        If you do not read to the end, close them by `aclose`. Raises `UnknownJob`, `UnknownFile`,
        `FileMissing` if the storage lacks the content, and `StorageUnavailable`.
        """
        file = file_named(await self._repository.find(job_id), name)
        if file is None:
            raise UnknownFile(job_id, name)
        return await self.read_content(file, 0, file.size or 0)

    async def read_content(self, file: JobFile, start: int, stop: int, /) -> Reading:
        """Return the chunks of a range of a listed file; raise as `read_file`."""
        return await Reading(self._storage, file.key, start, stop).begin()

    async def sweep_files(self) -> Sequence[JobId]:
        """Delete the files of jobs that are gone from the store; return the ids of these jobs.

        Files are deleted with their job, so this is only needed after data was lost: a store that
        was restored from an old copy, or keys of Redis that expired. No other queue may use the
        same folder or prefix. Raises `StorageUnavailable`, and `ConfigurationError` without a
        storage.
        """
        storage, swept = self._storage, list[JobId]()
        found = await jobs_with_files(storage)
        for start in range(0, len(found), _MAX_BATCH_SIZE):
            ids = [JobId(one) for one in found[start : start + _MAX_BATCH_SIZE]]
            jobs = await self._repository.get(ids)
            gone = [one for one, job in zip(ids, jobs, strict=True) if job is None]
            for job_id in gone:
                await delete_files_of(storage, job_id)
            swept += gone
        return swept

    @property
    def _storage(self) -> FileStorage:
        if self.file_storage is None:
            raise ConfigurationError("This queue has no storage for files.")
        return self.file_storage
