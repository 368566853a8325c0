"""The wire's bytes of a job, made once per version however many ask for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from asyncjobs.http.sse import event
from asyncjobs.http.wire import encode_job, with_pace
from asyncjobs.model import Job, JobId

_MOST_BYTES = 8 * 1024 * 1024

_Key = tuple[JobId, int]


class Encoded:
    """Keeps what was written last, up to some megabytes."""

    def __init__(self) -> None:
        self._documents = _Cache(encode_job)
        self._events = _Cache(lambda job: event(job.version, with_pace(self.document(job), None)))

    def document(self, job: Job) -> bytes:
        """Return what `encode_job` makes of a job."""
        return self._documents.get(job)

    def event(self, job: Job) -> bytes:
        """Return the event of a stream that shows a job as it stands."""
        return self._events.get(job)


class _Cache:
    def __init__(self, encode: Callable[[Job], bytes]) -> None:
        self._encode = encode
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._size = 0

    def get(self, job: Job) -> bytes:
        key = (job.id, job.revision)
        text = self._kept.get(key)
        if text is None:
            text = self._kept[key] = self._encode(job)
            self._size += len(text)
            while self._size > _MOST_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._size -= len(oldest)
        return text
