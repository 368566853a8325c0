"""Code shared by both clients: the requests they send and how they read the answers. No I/O."""

from __future__ import annotations

import json
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from inspect import isclass
from math import inf
from random import Random
from typing import Any, Generic, TypeVar, assert_never, cast
from urllib.parse import urljoin, urlsplit

from asyncjobs.client.answers import (
    Monitor,
    SubmittedJob,
    Trouble,
    document_of,
    no_status,
    problem_of,
    read_submission,
    require_origin,
    trouble_of,
    version_of,
)
from asyncjobs.client.credential import Credential
from asyncjobs.client.documents import JobUpdate, RemoteFile, read_job
from asyncjobs.client.download import Download, file_url
from asyncjobs.client.errors import (
    AccessRefused,
    RemoteJobCancelled,
    RemoteJobFailed,
    RequestRefused,
    ResultMismatch,
    ServerUnreachable,
    shown_url,
)
from asyncjobs.client.exchange import (
    ActionResult,
    Answered,
    Ask,
    Broken,
    End,
    Hopeless,
    Step,
    Wait,
    Woke,
)
from asyncjobs.client.follower import Follower, Following
from asyncjobs.client.output import BEGINNING, OutputFollower, checked_offset, output_url
from asyncjobs.client.pace import backoff
from asyncjobs.client.sources import JobSource, read_source
from asyncjobs.core.status import JobStatus
from asyncjobs.errors import ConfigurationError
from asyncjobs.settings import Seconds, seconds

H = TypeVar("H")
T = TypeVar("T")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class RepeatedRequest:
    """Sends an idempotent request again until it is answered; a rule (`exchange.Rule`).

    `credential` has the job's token. If that is refused, the request is sent without it, since the
    caller may have other credentials.
    """

    def __init__(
        self, ask: Ask, give_up_after: float, random: Random, *, credential: Credential
    ) -> None:
        self._ask = ask
        self._credential = credential
        self._without_token = False
        self._renewing = False
        self._give_up_after = give_up_after
        self._random = random
        self._give_up_at = 0.0
        self._failures = 0
        self._answer: Answered | None = None

    @property
    def answer(self) -> Answered:
        """The answer; available only after an `End` without an error."""
        return cast("Answered", self._answer)

    def start(self, now: float) -> Step:
        """Send the request."""
        self._give_up_at = now + self._give_up_after
        return Step(self._request(now))

    def receive(self, result: ActionResult, now: float) -> Step:
        """End with the answer or an error, or try again."""
        if self._renewing:
            self._renewing = False
            self._credential.receive(result, now)
            return Step(self._request(now))
        match result:
            case Hopeless(error):
                return Step(End(error))
            case Broken(reason):
                return self._again(Trouble(reason, None), now)
            case Answered():
                trouble = trouble_of(result)
                return self._done(result, now) if trouble is None else self._again(trouble, now)
            case Woke():
                return Step(self._request(now))
            case _:
                return self._again(Trouble("the response was an event stream", None), now)

    def _request(self, now: float) -> Ask:
        if self._without_token:
            return self._ask
        renewal = self._credential.renewal(now, self._ask.origins)
        if renewal is not None:
            self._renewing = True
            return renewal
        token = self._credential.headers_for(self._ask.url)
        return replace(self._ask, headers={**self._ask.headers, **token}) if token else self._ask

    def _done(self, answer: Answered, now: float) -> Step:
        if not self._without_token and self._credential.refuse(answer.status, now):
            return Step(self._request(now))
        has_token = not self._without_token and self._credential.headers_for(self._ask.url)
        if answer.status == 403 and has_token:
            self._without_token = True
            return Step(self._ask)
        if answer.status in {401, 403}:
            return Step(End(AccessRefused(answer.url, answer.status)))
        if not 200 <= answer.status < 300:
            return Step(End(RequestRefused(answer.url, answer.status, problem_of(answer))))
        self._answer = answer
        return Step(End())

    def _again(self, trouble: Trouble, now: float) -> Step:
        self._failures += 1
        pause = backoff(self._failures, trouble.pause, self._random)
        if now + pause > self._give_up_at:
            return Step(End(ServerUnreachable(self._ask.url, trouble.reason)))
        return Step(Wait(pause))


class ClientBase(ABC, Generic[H]):
    """A client that submits jobs to a server and follows them; `H` is its HTTP client.

    `options` are the defaults for all its jobs. Raises `ConfigurationError` if both `base_url` and
    `http` have a base URL, and these differ, and without `http` if httpx2 is not installed.
    """

    def __init__(
        self, base_url: str = "", *, http: H | None = None, options: Following | None = None
    ) -> None:
        self.base_url = base_url
        self.options = options or Following()
        self._given = http
        self._own: H | None = None
        if http is None and find_spec("httpx2") is None:
            raise ConfigurationError(
                f"{type(self).__name__} needs the package 'httpx2': "
                "pip install 'asyncjobs-http[client]', or pass a client of httpx as `http`."
            )
        given = _base_of(http)
        if base_url and given and base_url.rstrip("/") != given.rstrip("/"):
            raise ConfigurationError(
                f"base_url is {shown_url(base_url)}, but that of http is {shown_url(given)}: "
                "set only one of them."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown_url(self.base_url or _base_of(self._given))!r})"

    @property
    @abstractmethod
    def http(self) -> H:
        """The HTTP client, for requests of your own."""

    def _http(self, new: Callable[[], H]) -> H:
        if self._given is not None:
            return self._given
        if self._own is None:
            self._own = new()
        return self._own

    def _absolute(self, url: str) -> str:
        """Add the base URL to a path, as httpx does."""
        base = self.base_url or _base_of(self._given)
        if not base or _SCHEME.match(url):
            return url
        return f"{base.rstrip('/')}/{url.lstrip('/')}"

    def _take_own(self) -> H | None:
        own, self._own = self._own, None
        return own

    def _submission(
        self, method: str, url: str, json: Any, headers: Mapping[str, str] | None, key: str | None
    ) -> RepeatedRequest:
        # Without an Idempotency-Key, a submission whose answer was lost could not be sent again.
        sent = {"accept": "application/json", **{k.lower(): v for k, v in (headers or {}).items()}}
        if key is not None or "idempotency-key" not in sent:
            sent["idempotency-key"] = str(uuid.uuid4()) if key is None else key
        ask = Ask(method, self._absolute(url), sent, json)
        return _repeated(ask, self.options, Credential(None, -inf))

    def _named(self, job: JobSource, token: str | None, token_url: str | None) -> SubmittedJob:
        origins = self.options.origins
        return read_source(job, self._absolute, origins, token=token, token_url=token_url)

    def _submitted(self, submission: RepeatedRequest, method: str) -> SubmittedJob:
        return read_submission(submission.answer, self.options.origins, method=method)


class RemoteJobBase(Generic[T, H]):
    """A job at a server; `T` is the type of its result, `H` the HTTP client.

    `last` is its newest known state, None before the first answer. `monitor` has all its URLs.
    """

    def __init__(
        self,
        client: ClientBase[H],
        submitted: SubmittedJob,
        type: Any = None,
        *,
        received: float,
    ) -> None:
        self.monitor: Monitor = submitted.monitor
        self.last: JobUpdate | None = submitted.update
        self._client = client
        self._type = type
        self._not_before = received + submitted.pause
        self._credential = Credential(submitted.monitor.token, received)

    def __repr__(self) -> str:
        state = "unknown" if self.last is None else self.last.status
        return f"<{type(self).__name__} {shown_url(self.monitor.status)} {state}>"

    @property
    def status_url(self) -> str:
        """The URL by which any client with access can `attach` to the job."""
        return self.monitor.status

    def _follower(self, timeout: Seconds | None, *, progress: bool) -> Follower:
        if progress and find_spec("rich") is None:
            raise ConfigurationError(
                "A progress bar needs the package 'rich': pip install 'asyncjobs-http[client]'."
            )
        options = self._client.options
        chosen = options if timeout is None else replace(options, timeout=seconds(timeout))
        random = Random()  # noqa: S311  # pauses
        return Follower(
            self.monitor,
            chosen,
            random,
            self.last,
            not_before=self._not_before,
            credential=self._credential,
        )

    def _output(self, stream: str, after: str | None, timeout: Seconds | None) -> OutputFollower:
        begin = BEGINNING if after is None else checked_offset(after)
        options = self._client.options
        chosen = options if timeout is None else replace(options, timeout=seconds(timeout))
        random = Random()  # noqa: S311  # pauses
        url = output_url(self.monitor.status, stream)
        return OutputFollower(url, begin, chosen, random, self._credential)

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """The files that the job had saved in its newest known state, with absolute URLs."""
        listed = () if self.last is None else self.last.files
        return tuple(replace(one, url=urljoin(self.monitor.status, one.url)) for one in listed)

    def _download(
        self, file: RemoteFile | str, timeout: Seconds | None, *, restarts: int = 0
    ) -> Download:
        options = self._client.options
        chosen = options if timeout is None else replace(options, timeout=seconds(timeout))
        named = (one for one in self.files if one.name == file)
        found = next(named, None) if isinstance(file, str) else file
        status = self.monitor.status
        url = file_url(status, file if found is None else found)
        require_origin(url, status, options.origins)
        size = None if found is None else found.size
        random = Random()  # noqa: S311  # pauses
        return Download(url, size, chosen, random, self._credential, restarts=restarts)

    def _learn(self, update: JobUpdate, follower: Follower) -> None:
        self.last, self.monitor = update, follower.monitor

    def _outcome(self, type: Any) -> Any:
        """Return the result of the ended job, or raise its error."""
        return outcome_of(cast("JobUpdate", self.last), self._type if type is None else type)

    def _cancellation(self) -> RepeatedRequest:
        parts = urlsplit(self.monitor.status)
        derived = parts._replace(path=f"{parts.path}/cancel").geturl()
        ask = Ask("POST", self.monitor.cancel or derived, {"accept": "application/json"})
        return _repeated(ask, self._client.options, self._credential)

    def _cancelled(self, cancellation: RepeatedRequest) -> JobUpdate:
        answer = cancellation.answer
        document = document_of(answer)
        update = read_job(document, version_of(answer.headers.get("etag")))
        if update is None:
            raise no_status(answer.url, answer.status, document)
        if update.status.terminal:
            self.last = update
        return update


def outcome_of(update: JobUpdate, type: Any) -> Any:
    """Return the result of an ended job as that type, or raise the job's error."""
    match update.status:
        case JobStatus.COMPLETED:
            return update.result if type is None else _validated(update.result, type)
        case JobStatus.FAILED:
            raise RemoteJobFailed(update)
        case JobStatus.CANCELLED:
            raise RemoteJobCancelled(update)
        case JobStatus.PENDING | JobStatus.PROCESSING:
            raise ValueError(f"The job is {update.status}: it has no outcome yet.")
        case _:
            assert_never(update.status)


def _base_of(http: object) -> str:
    base = str(getattr(http, "base_url", ""))
    return base if _SCHEME.match(base) else ""


def _repeated(ask: Ask, options: Following, credential: Credential) -> RepeatedRequest:
    own = replace(ask, origins=options.origins)
    random = Random()  # noqa: S311  # pauses
    return RepeatedRequest(own, options.submit_for, random, credential=credential)


def _validated(result: Any, type: Any) -> Any:
    # pydantic takes as long to load as the rest of the client, and few callers ask for a type.
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    try:
        if isinstance(result, bytes):
            return TypeAdapter(type).validate_python(result, strict=True)
        return TypeAdapter(type).validate_json(json.dumps(result))
    except (ValidationError, TypeError, RecursionError) as error:
        name = type.__name__ if isclass(type) else str(type)
        raise ResultMismatch(name, result, str(error)) from error
