"""JSON documents about jobs. Each model makes its document and describes it in OpenAPI.

A field is read from the job's attribute of the same name unless its annotation names another
source. To add a field to a document, declare it in the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, NotRequired, assert_never

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SerializeAsAny, TypeAdapter
from pydantic.alias_generators import to_camel
from pydantic_core import to_json
from typing_extensions import TypedDict

from asyncjobs.core.files import listed_files
from asyncjobs.core.job import BatchFailure, Detail, Job, JobFile, JobId, JobStatus
from asyncjobs.core.output import StreamInfo, StreamKind
from asyncjobs.http import sse
from asyncjobs.http.mounts import JobLinks
from asyncjobs.protocols import Page


@dataclass(frozen=True)
class From:
    """Reads a field from the job; `omit_none` leaves the field out if the value is None."""

    read: Callable[[Job], object]
    omit_none: bool = False


@dataclass(frozen=True)
class FromLinks:
    """Reads a field from the job and its URLs; `omit_none` as above."""

    read: Callable[[Job, JobLinks], object]
    omit_none: bool = False


@dataclass(frozen=True)
class FromAny:
    """Reads a field from the job, and from its URLs if they are known; None leaves it out."""

    read: Callable[[Job, JobLinks | None], object]


@dataclass(frozen=True)
class Stored:
    """Copies JSON text that the job stores, without parsing it; None leaves the field out."""

    read: Callable[[Job], bytes | None]


@dataclass(frozen=True)
class WhenSent:
    """Marks a field that depends on more than the job; it is added when the document is sent."""


_Source = From | FromLinks | FromAny | Stored | WhenSent


class _Writer:
    """Makes the document of one model. It is a separate class to keep lookups fast."""

    def __init__(self, model: type[BaseModel]) -> None:
        # The fields by their JSON names, sorted by source.
        self._from_job: list[tuple[str, Callable[[Job], object]]] = []
        self._from_links: list[tuple[str, Callable[[Job, JobLinks], object]]] = []
        self._from_any: list[tuple[str, Callable[[Job, JobLinks | None], object]]] = []
        self._stored: list[tuple[bytes, Callable[[Job], bytes | None]]] = []
        self._omit_none: list[str] = []
        types: dict[str, Any] = {}
        for attribute, field in model.model_fields.items():
            name = field.alias or attribute
            types[name] = Annotated[field.annotation, field]
            given = (one for one in field.metadata if isinstance(one, _Source))
            self._add(name, next(given, From(attrgetter(attribute))))
        # Knowing the types, it takes two thirds of the time of `to_json`.
        members = TypedDict(model.__name__, types, total=False)  # type: ignore[misc]  # made at run time
        self._serializer = TypeAdapter(members).serializer

    def _add(self, name: str, source: _Source) -> None:
        match source:
            case From():
                self._from_job.append((name, source.read))
            case FromLinks():
                self._from_links.append((name, source.read))
            case FromAny():
                self._from_any.append((name, source.read))
            case Stored():
                self._stored.append((b',"%s":' % name.encode(), source.read))
            case WhenSent():
                pass
            case _:
                assert_never(source)
        if isinstance(source, From | FromLinks) and source.omit_none:
            self._omit_none.append(name)

    def members(self, job: Job, links: JobLinks | None) -> dict[str, object]:
        members = {name: read(job) for name, read in self._from_job}
        if links is not None:
            for name, read in self._from_links:
                members[name] = read(job, links)
        for name, read in self._from_any:
            if (value := read(job, links)) is not None:
                members[name] = value
        for name in self._omit_none:
            if members[name] is None:
                del members[name]
        return members

    def encode(self, job: Job, links: JobLinks | None) -> bytes:
        document = self._serializer.to_json(self.members(job, links))
        for name, read in self._stored:
            text = read(job)
            if text is not None:
                document = b"".join((document[:-1], name, text, b"}"))
        return document


class Document(BaseModel):
    """A document that is made from a job, and from its URLs if a field needs them."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    _writer: ClassVar[_Writer]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls._writer = _Writer(cls)

    @classmethod
    def members(cls, job: Job, links: JobLinks | None = None) -> dict[str, object]:
        """Return the members that are not stored as JSON; times and enums are not converted."""
        return cls._writer.members(job, links)

    @classmethod
    def encode(cls, job: Job, links: JobLinks | None = None) -> bytes:
        """Return the document as JSON, without the fields that are added when it is sent."""
        return cls._writer.encode(job, links)


def _accepted(_job: Job) -> str:
    return "accepted"


def _error_message(job: Job) -> str | None:
    return None if job.error is None else job.error.message


def _error_code(job: Job) -> str | None:
    return None if job.error is None else job.error.code


def _estimated_seconds(job: Job) -> float | None:
    """Return the estimate in seconds, an int if there is no fraction."""
    if job.estimated_duration is None:
        return None
    seconds = job.estimated_duration.total_seconds()
    return int(seconds) if seconds.is_integer() else seconds


def _metadata(job: Job) -> bytes:
    return job.metadata_json or b"{}"


def _result(job: Job) -> bytes:
    return job.result_json or b"null"


def _failure(failure: BatchFailure) -> BatchFailureDocument:
    return {"jobId": failure.job_id, "error": failure.message, "errorCode": failure.code}


def _batch(job: Job) -> BatchDocument | None:
    counts = job.counts
    if counts is None:
        return None
    return {
        "total": counts.total,
        # Jobs that are not stored yet will be pending.
        "pending": counts.total - counts.processing - counts.ended,
        "processing": counts.processing,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "failures": [_failure(one) for one in counts.failures],
    }


def _files(job: Job, links: JobLinks | None) -> list[FileDocument] | None:
    if not job.files:  # nearly always
        return None
    return [_file(one, links) for one in listed_files(job.files)] or None


def _file(file: JobFile, links: JobLinks | None) -> FileDocument:
    document: FileDocument = {
        "name": file.name,
        "size": file.size or 0,
        "mediaType": file.media_type,
    }
    if links is not None:
        document["url"] = links.file(file.name)
    return document


_Id = Annotated[JobId, From(attrgetter("id"))]
_StatusUrl = Annotated[str, FromLinks(lambda _job, links: links.status)]
_BatchId = Annotated[JobId | None, From(attrgetter("batch"), omit_none=True)]
_Percent = Annotated[int, Field(ge=0, le=100)]
_ErrorMessage = Annotated[str | None, From(_error_message)]
_Metadata = Annotated[dict[str, JsonValue], Stored(_metadata)]
# Serialized by its actual type: the serializer of floats would turn 30 into 30.0.
_Seconds = SerializeAsAny[float]


class AcceptedDocument(Document):
    """The answer to a submission: where to follow the job."""

    status: Annotated[Literal["accepted"], From(_accepted)] = "accepted"
    job_id: _Id
    status_url: _StatusUrl
    result_url: Annotated[str, FromLinks(lambda _job, links: links.result)]
    events_url: Annotated[str, FromLinks(lambda _job, links: links.events)]
    cancel_url: Annotated[str, FromLinks(lambda _job, links: links.cancel)]
    estimated_duration: Annotated[_Seconds | None, From(_estimated_seconds, omit_none=True)] = (
        Field(default=None, description="seconds")
    )
    token: Annotated[str | None, WhenSent()] = Field(
        default=None, description="opens the job for some minutes, if the server gives tokens"
    )
    token_url: Annotated[str | None, WhenSent()] = Field(
        default=None, description="where the token is renewed"
    )
    token_expires_at: Annotated[datetime | None, WhenSent()] = Field(
        default=None, description="when the token ends, unless it is renewed before"
    )


def with_token(document: bytes, token: str, url: str, expires_at: datetime) -> bytes:
    """Add a token, where it is renewed and when it ends, to the encoded answer to a submission."""
    members = (to_json(token), to_json(url), to_json(expires_at))
    return b'%s,"token":%s,"tokenUrl":%s,"tokenExpiresAt":%s}' % (document[:-1], *members)


class TokenDocument(BaseModel):
    """A renewed token."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    token: str
    expires_at: datetime


class BatchFailureDocument(TypedDict):
    """A failed job of a batch."""

    jobId: JobId
    error: str
    errorCode: str


class BatchDocument(TypedDict):
    """The jobs of a batch by status, and the first that failed."""

    total: int
    pending: int
    processing: int
    completed: int
    failed: int
    cancelled: int
    failures: list[BatchFailureDocument]


class FileDocument(TypedDict):
    """A file that the job has saved; `url` is its download."""

    name: str
    size: int
    mediaType: str
    url: NotRequired[str]


class OutputDocument(TypedDict):
    """A stream of the job's output and its size; `url` is where it is read."""

    name: str
    kind: StreamKind
    items: int
    bytes: int
    url: str


class JobDocument(Document):
    """A job as its owner sees it."""

    job_id: _Id
    type: str
    title: str | None = Field(default=None, description="what people see; the handler may set it")
    status: JobStatus
    progress: _Percent
    detail: Detail | None = None
    result: Annotated[JsonValue, Stored(_result)] = None
    error: _ErrorMessage = None
    error_code: Annotated[str | None, From(_error_code)] = None
    attempt: int = Field(default=0, description="how many times the job was started")
    created_at: datetime
    started_at: datetime | None = Field(default=None, description="of the latest attempt")
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    estimated_duration: Annotated[_Seconds | None, From(_estimated_seconds)] = Field(
        default=None, description="seconds"
    )
    batch: Annotated[BatchDocument | None, From(_batch, omit_none=True)] = Field(
        default=None, description="the jobs of a batch; only a batch has it"
    )
    batch_id: _BatchId = Field(default=None, description="the batch to which the job belongs")
    files: Annotated[list[FileDocument] | None, FromAny(_files)] = Field(
        default=None, description="what the job has saved; absent if there is none"
    )
    trace_id: str
    tags: tuple[str, ...] = ()
    metadata: _Metadata = Field(default={}, description="the handler may replace it")
    version: int = Field(description="increases with each change; the number in the ETag")
    retry_after: Annotated[int | None, WhenSent()] = Field(
        default=None, description="seconds; null once terminal"
    )
    position: Annotated[int | None, WhenSent()] = Field(
        default=None, description="place in its queue, 1 for the next job"
    )
    outputs: Annotated[list[OutputDocument] | None, WhenSent()] = Field(
        default=None,
        description="what the job has emitted; not in events, and absent if there is nothing. The "
        "sizes change without a new version",
    )
    token: Annotated[str | None, WhenSent()] = Field(
        default=None, description="only in the answer to a submission, if the server gives tokens"
    )
    token_url: Annotated[str | None, WhenSent()] = Field(
        default=None, description="where the token is renewed"
    )
    token_expires_at: Annotated[datetime | None, WhenSent()] = Field(
        default=None, description="when the token ends, unless it is renewed before"
    )


def of_unreadable(job: Job, links: JobLinks) -> bytes:
    """Return what a caller learns of a job that it may cancel and may not read."""
    return to_json({"jobId": job.id, "status": job.status, "statusUrl": links.status})


def with_outputs(document: bytes, streams: Sequence[StreamInfo], links: JobLinks) -> bytes:
    """Add the streams of a job to a document that is complete otherwise."""
    if not streams:
        return document
    listed: list[OutputDocument] = [
        {
            "name": one.name,
            "kind": one.kind,
            "items": one.items,
            "bytes": one.bytes,
            "url": links.stream(one.name),
        }
        for one in streams
    ]
    return b'%s,"outputs":%s}' % (document[:-1], to_json(listed))


def with_pace(document: bytes, retry_after: int | None, position: int | None = None) -> bytes:
    """Add the fields that are valid only at this moment to an encoded `JobDocument`."""
    pace = b"null" if retry_after is None else b"%d" % retry_after
    place = b"null" if position is None else b"%d" % position
    return b'%s,"retryAfter":%s,"position":%s}' % (document[:-1], pace, place)


class ListedDocument(Document):
    """A job in a list: its status without its result."""

    job_id: _Id
    status_url: _StatusUrl
    type: str
    title: str | None = None
    status: JobStatus
    progress: _Percent
    error: _ErrorMessage = None
    created_at: datetime
    started_at: datetime | None = Field(default=None, description="of the latest attempt")
    completed_at: datetime | None = None
    batch_id: _BatchId = Field(default=None, description="the batch to which the job belongs")
    tags: tuple[str, ...] = ()
    metadata: _Metadata = {}


class ListDocument(BaseModel):
    """A page of a caller's jobs, the newest first."""

    model_config = ConfigDict(frozen=True)

    jobs: list[ListedDocument]
    next: str | None = Field(default=None, description="the URL of the next page")


def encode_list(page: Page, links_of: Callable[[JobId], JobLinks], next_url: str | None) -> bytes:
    """Return a `ListDocument` as JSON."""
    jobs = b",".join(ListedDocument.encode(job, links_of(job.id)) for job in page.jobs)
    return b'{"jobs":[%s],"next":%s}' % (jobs, to_json(next_url))


class ListEvents:
    """Makes the events of one stream of a list, from one page after the other.

    The first event is `list`, with the page. Then each job that is new or has changed is an event
    without a name. A `removed` is a job that was deleted, or is not among the newest any more.
    Clients put each new job before the others. If that is not its place, `list` comes again.
    """

    def __init__(
        self,
        links_of: Callable[[JobId], JobLinks],
        next_url: Callable[[str | None], str | None] = lambda _: None,
    ) -> None:
        self._links_of = links_of
        self._next_url = next_url
        self._seen: dict[JobId, int] | None = None

    def events(self, page: Page) -> bytes:
        """Return the events that lead from the page before to this one; empty if there are none."""
        before, self._seen = self._seen, {job.id: job.version for job in page.jobs}
        if before is None or not _newest_first(before, self._seen):
            following = self._next_url(page.next)
            return sse.unnumbered_event(encode_list(page, self._links_of, following), "list")
        gone = [to_json({"jobId": job_id}) for job_id in before if job_id not in self._seen]
        # The newest last, since clients put each new one before the others.
        changed = [job for job in reversed(page.jobs) if before.get(job.id) != job.version]
        texts = [ListedDocument.encode(job, self._links_of(job.id)) for job in changed]
        removals = [sse.unnumbered_event(text, "removed") for text in gone]
        return b"".join([*removals, *(sse.unnumbered_event(text) for text in texts)])


def _newest_first(before: Mapping[JobId, int], now: Mapping[JobId, int]) -> bool:
    """Return whether all new jobs of a list come before the others, whose order is as before."""
    new = (job_id for job_id in now if job_id not in before)
    kept = (job_id for job_id in before if job_id in now)
    return [*new, *kept] == [*now]


OperationStatus = Literal["NotStarted", "Running", "Succeeded", "Failed", "Canceled"]


def operation_status(status: JobStatus) -> OperationStatus:
    """Return Azure's name of a status."""
    match status:
        case JobStatus.PENDING:
            return "NotStarted"
        case JobStatus.PROCESSING:
            return "Running"
        case JobStatus.COMPLETED:
            return "Succeeded"
        case JobStatus.FAILED:
            return "Failed"
        case JobStatus.CANCELLED:
            return "Canceled"
        case _:
            assert_never(status)


class OperationError(BaseModel):
    """Why an operation did not succeed."""

    code: str
    message: str


_CANCELLED = OperationError(code="job_cancelled", message="The job was cancelled.")


def _operation_status(job: Job) -> OperationStatus:
    return operation_status(job.status)


def _operation_error(job: Job) -> OperationError | None:
    if job.status is JobStatus.CANCELLED:
        return _CANCELLED
    if job.error is None:
        return None
    return OperationError(code=job.error.code, message=job.error.message)


def _last_action(job: Job) -> datetime:
    return job.completed_at or job.started_at or job.created_at


def _result_location(job: Job, links: JobLinks) -> str | None:
    if job.status is not JobStatus.COMPLETED:
        return None
    # Absolute, like the operation's URL: pollers fetch it with the client's own credentials.
    return links.operation.removesuffix("/operation") + "/result"


def _operation_result(job: Job) -> bytes | None:
    return _result(job) if job.status is JobStatus.COMPLETED else None


class OperationDocument(Document):
    """A job as an operation; `result` and `resourceLocation` come with success."""

    id: JobId
    kind: Annotated[str, From(attrgetter("type"))]
    status: Annotated[OperationStatus, From(_operation_status)]
    percent_complete: Annotated[_Percent, From(attrgetter("progress"))]
    created_date_time: Annotated[datetime, From(attrgetter("created_at"))]
    last_action_date_time: Annotated[datetime, From(_last_action)]
    error: Annotated[OperationError | None, From(_operation_error)] = None
    resource_location: Annotated[str | None, FromLinks(_result_location, omit_none=True)] = Field(
        default=None, description="the URL of the result"
    )
    result: Annotated[JsonValue, Stored(_operation_result)] = None


_MAX_CACHE_BYTES = 8 * 1024 * 1024

_Key = tuple[JobId, int, str]


class DocumentCache:
    """Caches the latest encoded documents and events, each up to `max_bytes`."""

    def __init__(self, *, max_bytes: int = _MAX_CACHE_BYTES) -> None:
        self._documents = _Cache(_encode_below, max_bytes)
        self._events = _Cache(self._encode_event, max_bytes)

    def document(self, job: Job, base: str = "") -> bytes:
        """Return the `JobDocument` of a job, to be completed by `with_pace`.

        `base` is the URL of the list; only the document of a job with files depends on it.
        """
        return self._documents.get(job, base)

    def event(self, job: Job, base: str = "") -> bytes:
        """Return the Server-Sent Event with the job's current state; `base` as above."""
        return self._events.get(job, base)

    def _encode_event(self, job: Job, base: str) -> bytes:
        return sse.event(job.version, with_pace(self.document(job, base), None))


def _encode_below(job: Job, base: str) -> bytes:
    return JobDocument.encode(job, JobLinks.below(base, job.id) if job.files else None)


class _Cache:
    def __init__(self, encode: Callable[[Job, str], bytes], max_bytes: int) -> None:
        self._encode = encode
        self._max_bytes = max_bytes
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, job: Job, base: str) -> bytes:
        key = (job.id, job.revision, base if job.files else "")
        text = self._kept.get(key)
        if text is None:
            text = self._kept[key] = self._encode(job, base)
            self._bytes += len(text)
            while self._bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest)
        return text
