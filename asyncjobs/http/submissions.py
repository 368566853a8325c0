"""What a route gives to `accept`, and the mount that answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from asyncjobs.core.handlers import Handler, JobType
from asyncjobs.core.job import Job
from asyncjobs.core.submission import EnqueueOptions
from asyncjobs.errors import ConfigurationError, UnknownType
from asyncjobs.protocols import JobHandle
from asyncjobs.sync import SyncJobHandle

if TYPE_CHECKING:
    from asyncjobs.http.endpoints import Endpoints

#: A job or a batch that exists already.
Handle = JobHandle[Any] | SyncJobHandle[Any]


class Body(Enum):
    """Stands for the request's own body, instead of a payload that the application has read."""

    UNREAD = "unread"


@dataclass(frozen=True)
class Submit:
    """The options of a submission by an application's own route."""

    user_id: str | None = None
    options: EnqueueOptions | None = None
    idempotency_key: str | None = None


def job_alone(handle: Handle, payload: object, submit: Submit) -> Job:
    """Return the job that exists; raise `ConfigurationError` if more than its handle was given."""
    if not isinstance(payload, Body) or submit != Submit():
        raise ConfigurationError(
            f"accept() takes only the handle of a job that exists, {handle!r}: "
            "give payload, owner, options and idempotency key when you enqueue or retry it."
        )
    return handle.job


def find_mount(mounts: Sequence[Endpoints], what: JobType[Any, Any] | str | Handle) -> Endpoints:
    """Return the mount whose queue has this type or job; the links of the answer lead there.

    Raises `ConfigurationError` if there is none, or if queues of several mounts have the name.
    """
    if isinstance(what, JobHandle | SyncJobHandle):
        return _find_holding(mounts, what)
    kind = what
    if not isinstance(kind, (JobType, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(
            "accept() needs a function registered by @jobs.handler(...), its name, or the handle "
            f"of a job, got {kind!r}."
        )
    if not mounts:
        raise ConfigurationError(
            f"accept() found no AsyncJobs for {kind!r}: none is mounted on the app of this route, "
            "or on the outermost app. Call mount(app, jobs) on that app, or include a jobs_router."
        )
    having = [one for one in mounts if kind in one.jobs.registry]
    if isinstance(kind, str):
        return _find_named(mounts, having, kind)
    if having:
        return having[0]
    if isinstance(kind, Handler) and kind.declaration is None:
        raise ConfigurationError(
            f"{kind!r} is not included in an AsyncJobs that is mounted on this app: "
            "call jobs.include(...) with it, or with its module."
        )
    raise ConfigurationError(
        f"{kind!r} is registered on another AsyncJobs than those mounted on this app: "
        "mount that one, too, or use a handler of a mounted one."
    )


def _find_holding(mounts: Sequence[Endpoints], handle: Handle) -> Endpoints:
    found = next((one for one in mounts if handle.belongs_to(one.jobs)), None)
    if found is None:
        raise ConfigurationError(
            f"accept() found no mount for {handle!r}: its AsyncJobs is not mounted on the app of "
            "this route, nor on the outermost app. Mount the queue that has made the handle."
        )
    return found


def _find_named(mounts: Sequence[Endpoints], having: Sequence[Endpoints], name: str) -> Endpoints:
    if not having:
        raise UnknownType(name, {kind.name for one in mounts for kind in one.jobs.registry})
    if any(one.jobs is not having[0].jobs for one in having):
        raise ConfigurationError(
            f"Several AsyncJobs that are mounted on this app have a job type {name!r}: "
            "call accept() with the handler instead of its name."
        )
    return having[0]
