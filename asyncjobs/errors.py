"""Every exception of the library, built from data.

AsyncJobsError
├── ConfigurationError        wrong set-up, found before any job is changed
│   ├── UnknownType           no handler of that name is registered
│   ├── NotOpen               used outside `async with jobs`
│   ├── WrongEventLoop        used in another event loop than the one that opened it
│   ├── BlockingCall          `jobs.sync` used in the event loop of the queue
│   └── UnusableConnection    the connection's transaction cannot enqueue a job
├── RequestRejected           the request is rejected
│   ├── MalformedBody         the body is not JSON
│   ├── UnsupportedMediaType  the body has another media type than JSON
│   ├── PayloadTooLarge       more bytes than the policy allows
│   ├── InvalidPayload        JSON of the wrong shape: names the fields
│   ├── InvalidIdempotencyKey the header is malformed
│   ├── IdempotencyConflict   the key was used for another payload
│   ├── InvalidCallback       a callback URL that will not be called
│   ├── InvalidQuery          an invalid query parameter
│   ├── PreconditionFailed    the job is at another version than the caller requires
│   ├── CrossSite             sent by a page of another site
│   ├── InvalidToken          a token that opens nothing: expired, or not signed by us
│   ├── InsufficientScope     a token that does not allow the operation
│   └── TooManyPolls          polled far too often
├── ResourcesUnavailable      the handlers' shared resources could not be opened
├── NotDispatched             an engine refused some of several jobs
├── InvalidResult             the handler returned a value that cannot be stored
├── OutputError               an item cannot be emitted
│   ├── InvalidOutput         the item does not fit its stream
│   └── OutputTooLarge        more output than the policy allows
├── FileError                 a file cannot be saved or read
│   ├── DuplicateFile         the attempt has saved a file of that name already
│   ├── TooManyFiles          more files than the policy allows
│   ├── FileTooLarge          more bytes than the policy allows
│   ├── UnknownFile           the job has no such file
│   ├── FileMissing           the job lists the file, and the storage does not have it
│   └── StorageUnavailable    the storage cannot do its work now
├── NotAwaited                `job.emit` or `job.save_file` was not awaited; also a RuntimeError
├── UnknownJob                no job has that id
├── UnknownSchedule           no schedule has that name
├── JobUnsuccessful           the awaited job has failed or was cancelled
├── IllegalMove               the job's status does not allow the change
├── TransferRefused           the jobs cannot be transferred between these stores now
├── LostLease                 another attempt owns the job now
├── StoreError                errors of the store itself
│   ├── StoreUnavailable      down, full, read-only or corrupt: nothing was half-written
│   ├── SchemaError           a database of a newer version or of another program
│   └── UnreadableJob         one job's data is damaged, or of a newer release
└── JobFailed                 raised by a handler on purpose; clients see its message

JobCancelled (a BaseException) ends a handler from inside `JobContext.check()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncjobs.core.job import Job


def _name_option(error: BaseException, option: str) -> None:
    """Name the option of a limit in the traceback; clients see the message, without it."""
    error.add_note(f"The limit is set by {option}.")


class AsyncJobsError(Exception):
    """The base of all errors that this library raises."""

    def __reduce__(self) -> tuple[Callable[..., AsyncJobsError], tuple[object, ...]]:
        # Rebuilt from their data: the constructors do not take the message that `args` holds.
        return _again, (type(self), self.args, self.__dict__)


def _again(
    kind: type[AsyncJobsError], args: tuple[object, ...], data: Mapping[str, object]
) -> AsyncJobsError:
    error = kind.__new__(kind, *args)
    vars(error).update(data)
    return error


class ConfigurationError(AsyncJobsError):
    """Raised when the set-up is wrong; no job was touched."""


class UnknownType(ConfigurationError):
    """Raised for a job type that is not registered here."""

    def __init__(self, type: str, known: Iterable[str] = ()) -> None:
        self.type = type
        self.known = tuple(sorted(known))
        listed = ", ".join(self.known) or "none"
        super().__init__(f"No job type {type!r} is registered (registered: {listed}).")


class NotDispatched(AsyncJobsError):
    """Raised by a dispatcher whose engine refused some jobs, by id, and took all others."""

    def __init__(self, refused: Iterable[str], reason: str) -> None:
        self.refused = frozenset(refused)
        self.reason = reason
        super().__init__(reason)


class NotOpen(ConfigurationError):
    """Raised when an object is used outside its `async with`."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what} is not open in this process: enter it with `async with`, "
            "or run the lifespan of the app it is mounted on."
        )


class WrongEventLoop(ConfigurationError):
    """Raised when an object is used in another event loop, or thread, than the one it is open in.

    Nothing was done, and the object is unharmed.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what} is open in another event loop of this process, and can only be used there. "
            "In a thread, a `def` function or a script, use `jobs.sync`: `jobs.sync.enqueue(...)`."
        )


class BlockingCall(ConfigurationError):
    """Raised by `jobs.sync` in the event loop of the queue, which would wait for itself."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        super().__init__(
            f"jobs.sync.{verb} would block the event loop in which the queue is open. "
            f"In `async def`, write `await jobs.{verb}(...)`."
        )


class ResourcesUnavailable(AsyncJobsError):
    """Raised when the handlers' shared resources, the queue's `lifespan`, cannot be opened here."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The lifespan of the handlers could not be opened: {reason}")


class UnusableConnection(ConfigurationError):
    """Raised when a connection's transaction cannot enqueue a job; it is left alone."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"No job can be enqueued on this connection: {reason}.")


@dataclass(frozen=True)
class FieldIssue:
    """One error of one field; `field` is a dotted path, empty for the whole value."""

    field: str
    message: str

    @classmethod
    def at(cls, location: Iterable[str | int], message: str) -> FieldIssue:
        """Make an issue for the field at a path of keys and indices."""
        return cls(".".join(map(str, location)), message)

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class RequestRejected(AsyncJobsError):
    """Raised when a request is rejected; nothing was stored."""


class MalformedBody(RequestRejected):
    """Raised when the request's body is not JSON."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The request body is not valid JSON: {reason}.")


class UnsupportedMediaType(RequestRejected):
    """Raised when the request's body has another media type than JSON."""

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type
        got = content_type or "no Content-Type"
        super().__init__(f"The request body must be application/json, got {got}.")


class PayloadTooLarge(RequestRejected):
    """Raised for a payload over the limit; `size` is None if counting stopped at the limit."""

    def __init__(self, size: int | None, limit: int) -> None:
        self.size = size
        self.limit = limit
        found = "more" if size is None else f"{size} bytes"
        super().__init__(f"The payload must have at most {limit} bytes, got {found}.")


class InvalidPayload(RequestRejected):
    """Raised for a payload whose fields do not fit the handler's annotation."""

    def __init__(self, issues: Iterable[FieldIssue]) -> None:
        self.issues = tuple(issues)
        super().__init__(f"The payload is not valid: {'; '.join(map(str, self.issues))}")


class InvalidIdempotencyKey(RequestRejected):
    """Raised when the Idempotency-Key header is malformed."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The Idempotency-Key cannot be used: {reason}.")


class IdempotencyConflict(RequestRejected):
    """Raised when an idempotency key was used before, for another payload."""

    def __init__(self, key: str, job_id: str) -> None:
        self.key = key
        self.job_id = job_id
        super().__init__("The idempotency key was already used for a different payload.")


class InvalidCallback(RequestRejected):
    """Raised for a callback URL that will not be called."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The callback URL cannot be used: {reason}.")


class InvalidQuery(RequestRejected):
    """Raised for a query parameter that cannot be used."""

    def __init__(self, parameter: str, reason: str) -> None:
        self.parameter = parameter
        self.reason = reason
        super().__init__(f"The query parameter {parameter!r} cannot be used: {reason}.")


class PreconditionFailed(RequestRejected):
    """Raised when a job is not at a version that the caller requires; it was not changed."""

    def __init__(self, job_id: str, version: int) -> None:
        self.job_id = job_id
        self.version = version
        super().__init__(f"The job is at version {version}, which the request does not allow.")


class CrossSite(RequestRejected):
    """Raised when a page of another site sends an unsafe request."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        super().__init__(
            f"Requests from pages of {origin or 'other sites'} are not allowed; "
            "the server can allow their origin."
        )


class InvalidToken(RequestRejected):
    """Raised for a token that opens nothing; `reason` never quotes it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The token cannot be used: {reason}.")


class InsufficientScope(RequestRejected):
    """Raised for a token of the right job that does not allow the operation."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__(f"The token does not have the scope {scope}.")


class TooManyPolls(RequestRejected):
    """Raised when a client polls far too often; it may poll again after `seconds`."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"This job is polled too often; poll again in {seconds} s.")


class InvalidResult(AsyncJobsError):
    """Raised for a result that cannot be stored: wrong shape, not JSON, or too large."""

    def __init__(self, type: str, reason: str) -> None:
        self.type = type
        self.reason = reason
        super().__init__(f"The result of job type {type!r} cannot be used: {reason}")


class OutputError(AsyncJobsError):
    """The base of the errors of output."""


class InvalidOutput(OutputError):
    """Raised for an item that does not fit the type or the kind of its stream; it is not stored."""

    def __init__(self, stream: str, reason: str) -> None:
        self.stream = stream
        self.reason = reason
        super().__init__(f"An item of the stream {stream!r} cannot be used: {reason}")


class OutputTooLarge(OutputError):
    """Raised when a job emits more than its policy allows; what it emitted before stays."""

    def __init__(self, limit: int, unit: str, option: str = "") -> None:
        self.limit = limit
        self.unit = unit
        self.option = option
        super().__init__(f"A job of this type may emit at most {limit} {unit}.")
        if option:
            _name_option(self, option)


class NotAwaited(AsyncJobsError, RuntimeError):
    """Raised when an `async def` handler leaves out an `await`: nothing was stored.

    `call` is the call that was not awaited, and `lost` is what it should have stored.
    """

    def __init__(self, call: str, lost: str) -> None:
        self.call = call
        self.lost = lost
        super().__init__(
            f"{lost} was not stored, because the call was not awaited: write `await {call}`."
        )


class FileError(AsyncJobsError):
    """The base of the errors of files."""


class DuplicateFile(FileError):
    """Raised when an attempt saves a second file of the same name; the first one stays."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"This attempt has already saved a file named {name!r}.")


class TooManyFiles(FileError):
    """Raised when a job saves more files than `Policy.max_files`; the earlier ones stay."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"A job of this type may save at most {limit} files.")
        _name_option(self, "Policy.max_files")


class FileTooLarge(FileError):
    """Raised for a file of more than `Policy.max_file_bytes`; it is not stored."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        super().__init__(f"The file {name!r} must have at most {limit} bytes.")
        _name_option(self, "Policy.max_file_bytes")


class UnknownFile(FileError):
    """Raised when a job has no file of that name."""

    def __init__(self, job_id: str, name: str) -> None:
        self.job_id = job_id
        self.name = name
        super().__init__(f"Job {job_id} has no file named {name!r}.")


class FileMissing(FileError):
    """Raised when the content of a listed file is not in the storage, or only a part of it."""

    def __init__(self, storage: str, key: str) -> None:
        self.storage = storage
        self.key = key
        super().__init__(f"The file storage {storage} lacks the content {key}.")


class StorageUnavailable(FileError):
    """Raised when the file storage cannot do its work now; its own error is the `__cause__`."""

    def __init__(self, storage: str, reason: str) -> None:
        self.storage = storage
        self.reason = reason
        super().__init__(f"The file storage {storage} is unavailable: {reason}")


class UnknownJob(AsyncJobsError):
    """Raised when no job has that id: it never existed, or its retention has ended."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"No job has the id {job_id!r}.")


class UnknownSchedule(AsyncJobsError):
    """Raised for a schedule that neither the store nor the code of this process has."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"There is no schedule {name!r}.")


class JobUnsuccessful(AsyncJobsError):
    """Raised for the result of a job that has failed or was cancelled; `job` is that job.

    This is an ordinary exception, unlike `JobCancelled`: if a handler awaits another job and does
    not catch it, the handler fails; it is not treated as cancelled.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        reason = "was cancelled" if job.error is None else f"failed: {job.error.message}"
        super().__init__(f"Job {job.id} ({job.type}) {reason}")


class IllegalMove(AsyncJobsError):
    """Raised when the job's status does not allow the move; nothing was changed."""

    def __init__(self, job_id: str, move: str, status: str, reason: str = "") -> None:
        self.job_id = job_id
        self.move = move
        self.status = status
        self.reason = reason
        because = f": {reason}" if reason else ""
        super().__init__(f"Job {job_id} is {status} and cannot {move}{because}.")


class TransferRefused(AsyncJobsError):
    """Raised when jobs cannot be transferred between two stores now; copied jobs stay."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The jobs cannot be transferred: {reason}.")


class LostLease(AsyncJobsError):
    """Raised when another attempt owns the job now; the write was refused."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"The attempt no longer holds the lease of job {job_id}.")


class StoreError(AsyncJobsError):
    """The base of all errors that a store raises."""


class StoreUnavailable(StoreError):
    """Raised when the store cannot do its work now; the driver's error is the `__cause__`."""

    def __init__(self, store: str, reason: str) -> None:
        self.store = store
        self.reason = reason
        super().__init__(f"The store {store} is unavailable: {reason}")


class SchemaError(StoreError):
    """Raised for stored data of another version, or of another program."""

    def __init__(self, store: str, reason: str) -> None:
        self.store = store
        self.reason = reason
        super().__init__(f"The store {store} cannot be used: {reason}")


class UnreadableJob(StoreError):
    """Raised for one job whose stored data cannot be read; others are not affected."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"The stored data of job {job_id} cannot be read.")


class JobFailed(AsyncJobsError):
    """Raise it in a handler to fail the job with a message for the client; never retried."""

    def __init__(self, message: str, code: str = "job_failed") -> None:
        self.message = str(message)
        self.code = str(code)
        super().__init__(self.message)


class JobCancelled(BaseException):
    """Ends a handler whose job is to stop.

    Like asyncio.CancelledError, it is not an `Exception`: a handler's own `except Exception` must
    not catch it.
    """

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"Job {job_id} was asked to stop.")
