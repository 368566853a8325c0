"""Dependencies: resolved for each attempt, cleaned up after it, and overridden by tests."""

import functools
import threading
from collections.abc import AsyncGenerator, Generator
from datetime import timedelta
from typing import Annotated, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from fast_depends import Depends
from fastapi import Depends as FastAPIDepends

from asyncjobs import AsyncJobs, JobContext, JobFailed, JobStatus, Retry, handler
from asyncjobs.errors import ConfigurationError
from tests.queues import finished, running, settled

pytestmark = [pytest.mark.anyio, pytest.mark.every_store]

AT_ONCE = Retry(max_attempts=3, initial_delay=timedelta(0))


class Session:
    """A resource that handlers of an application share; it records its use."""

    #: The log of the present test.
    log: list[str]

    def __init__(self, name: str) -> None:
        self.name = name
        self.log.append(f"open {name}")

    def close(self) -> None:
        self.log.append(f"close {self.name}")


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(Session, "log", lines, raising=False)
    return lines


async def a_session() -> AsyncGenerator[Session]:
    session = Session("a")
    try:
        yield session
    finally:
        await checkpoint()  # clean-up may await, however the handler ended
        session.close()


def plain_session() -> Generator[Session]:
    session = Session("plain")
    try:
        yield session
    finally:
        session.close()


class Ledger:
    def __init__(self, session: Session, owner: str, rows: int) -> None:
        self.session, self.owner, self.rows = session, owner, rows


async def a_ledger(
    session: Annotated[Session, Depends(a_session)], context: JobContext, order: int
) -> AsyncGenerator[Ledger]:
    session.log.append("open ledger")
    yield Ledger(session, context.type, order)
    session.log.append("close ledger")


AsyncSession = Annotated[Session, Depends(a_session)]
PlainSession = Annotated[Session, Depends(plain_session)]


async def test_dependencies_are_made_before_the_handler_and_cleaned_up_after_it(
    jobs: AsyncJobs, log: list[str]
) -> None:
    @jobs.handler("export")
    async def export(
        order: int, job: JobContext, session: AsyncSession, plain: PlainSession
    ) -> str:
        session.log.append(f"{job.type} {order}")
        return f"{session.name} {plain.name}"

    async with jobs:
        assert (await finished(jobs, export, 3)).result == "a plain"
    assert log == ["open a", "open plain", "export 3", "close plain", "close a"]


async def test_a_dependency_can_use_dependencies_the_job_and_the_payload(
    jobs: AsyncJobs, log: list[str]
) -> None:
    @jobs.handler("export")
    async def export(
        order: int, *, session: AsyncSession, ledger: Annotated[Ledger, Depends(a_ledger)]
    ) -> bool:
        assert (ledger.owner, ledger.rows) == ("export", order)
        return ledger.session is session

    async with jobs:
        assert (await finished(jobs, export, 3)).result is True
    assert log == ["open a", "open ledger", "close ledger", "close a"]


async def test_dependencies_with_equal_parameter_names_do_not_mix(jobs: AsyncJobs) -> None:
    def reader() -> str:
        return "reader"

    def writer() -> str:
        return "writer"

    def repository(
        db: Annotated[str, Depends(writer)], order: Annotated[str, Depends(reader)]
    ) -> str:
        return f"{db} {order}"

    @jobs.handler("export")
    async def export(
        order: int, db: Annotated[str, Depends(reader)], used: Annotated[str, Depends(repository)]
    ) -> str:
        return f"{order} {db} {used}"

    async with jobs:
        assert (await finished(jobs, export, 3)).result == "3 reader writer reader"


async def test_dependencies_of_a_def_handler_run_in_its_thread(
    jobs: AsyncJobs, log: list[str]
) -> None:
    def thread() -> int:
        return threading.get_ident()

    @jobs.handler("export")
    def export(plain: PlainSession, made_in: Annotated[int, Depends(thread)]) -> bool:
        plain.log.append("export")
        return made_in == threading.get_ident() != threading.main_thread().ident

    async with jobs:
        assert (await finished(jobs, export)).result is True
    assert log == ["open plain", "export", "close plain"]


async def test_each_attempt_resolves_its_dependencies_anew(jobs: AsyncJobs, log: list[str]) -> None:
    @jobs.handler("export", retry=AT_ONCE)
    async def export(job: JobContext, session: AsyncSession) -> int:
        if job.attempt < 3:
            raise LookupError(session.name)
        return job.attempt

    async with jobs:
        assert (await finished(jobs, export)).result == 3
    assert log == ["open a", "close a"] * 3


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_an_error_of_a_dependency_fails_the_attempt(
    jobs: AsyncJobs, log: list[str], kind: str
) -> None:
    attempts: list[int] = []

    def flaky(job: JobContext, session: PlainSession) -> str:
        attempts.append(job.attempt)
        if job.attempt == 1:
            raise LookupError(session.name)
        raise JobFailed("The disk is full.", "disk_full")

    if kind == "def":

        @jobs.handler("export", retry=AT_ONCE)
        def export(_disk: Annotated[str, Depends(flaky)]) -> None: ...

    else:

        @jobs.handler("export", retry=AT_ONCE)
        async def export(_disk: Annotated[str, Depends(flaky)]) -> None: ...

    async with jobs:
        done = await finished(jobs, "export")
    assert done.error is not None
    assert done.error.code == "disk_full"
    assert attempts == [1, 2]
    assert log == ["open plain", "close plain"] * 2


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_clean_up_sees_the_error_and_cannot_suppress_it(
    jobs: AsyncJobs, log: list[str], kind: str
) -> None:
    def swallowing() -> Generator[None]:
        try:
            yield
        except LookupError as error:
            log.append(f"swallow {error}")

    if kind == "def":

        @jobs.handler("export")
        def export(_: Annotated[None, Depends(swallowing)]) -> None:
            raise LookupError(3)

    else:

        @jobs.handler("export")
        async def export(_: Annotated[None, Depends(swallowing)]) -> None:
            raise LookupError(3)

    async with jobs:
        assert (await finished(jobs, "export")).status is JobStatus.FAILED
    assert log == ["swallow 3"]


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_clean_up_that_fails_fails_the_attempt(jobs: AsyncJobs, kind: str) -> None:
    def transaction() -> Generator[None]:
        yield
        raise JobFailed("The commit failed.", "no_commit")

    if kind == "def":

        @jobs.handler("export")
        def export(_: Annotated[None, Depends(transaction)]) -> None: ...

    else:

        @jobs.handler("export")
        async def export(_: Annotated[None, Depends(transaction)]) -> None: ...

    async with jobs:
        done = await finished(jobs, "export")
    assert done.error is not None
    assert done.error.code == "no_commit"


async def test_a_cancelled_handler_has_its_dependencies_cleaned_up(
    jobs: AsyncJobs, log: list[str]
) -> None:
    sleeps = anyio.Event()

    @jobs.handler("asleep")
    async def asleep(_session: AsyncSession, _plain: PlainSession) -> None:
        sleeps.set()
        await anyio.sleep_forever()

    async with jobs:
        job = await running(jobs, asleep)
        await sleeps.wait()
        await jobs.cancel(job.id)
        done = await settled(jobs, job.id)
    assert done.status is JobStatus.CANCELLED
    assert log == ["open a", "open plain", "close plain", "close a"]


async def test_a_cancelled_thread_has_its_dependencies_cleaned_up(
    jobs: AsyncJobs, log: list[str]
) -> None:
    @jobs.handler("steps")
    def steps(job: JobContext, _plain: PlainSession) -> None:
        while True:
            job.check()

    async with jobs:
        job = await running(jobs, steps)
        await jobs.cancel(job.id)
        assert (await settled(jobs, job.id)).status is JobStatus.CANCELLED
    assert log == ["open plain", "close plain"]


async def test_a_dependency_is_made_once_per_attempt_unless_use_cache_is_false(
    jobs: AsyncJobs, log: list[str]
) -> None:
    @jobs.handler("shared")
    async def shared(one: AsyncSession, other: AsyncSession) -> bool:
        return one is other

    @jobs.handler("apart")
    async def apart(
        one: Annotated[Session, Depends(a_session, use_cache=False)],
        other: Annotated[Session, Depends(a_session, use_cache=False)],
    ) -> bool:
        return one is other

    async with jobs:
        assert (await finished(jobs, shared)).result is True
        assert log == ["open a", "close a"]
        assert (await finished(jobs, apart)).result is False
    assert len(log) == 6


class Fake(Session):
    def __init__(self) -> None:
        super().__init__("fake")


async def an_async_fake() -> Session:
    return Fake()


def a_nested_fake(name: Annotated[Session, Depends(an_async_fake)]) -> Session:
    return name


@pytest.mark.parametrize("fake", [Fake, an_async_fake, a_nested_fake])
async def test_a_dependency_is_overridden_for_handlers_that_are_registered_already(
    jobs: AsyncJobs, log: list[str], fake: Any
) -> None:
    @jobs.handler("direct")
    async def direct(session: AsyncSession) -> str:
        return session.name

    @jobs.handler("nested")
    async def nested(order: int, ledger: Annotated[Ledger, Depends(a_ledger)]) -> str:
        return f"{ledger.session.name} {order}"

    async with jobs:
        jobs.dependency_overrides[a_session] = fake
        assert (await finished(jobs, direct)).result == "fake"
        assert (await finished(jobs, nested, 3)).result == "fake 3"
        assert "open a" not in log
        del jobs.dependency_overrides[a_session]
        assert (await finished(jobs, direct)).result == "a"


async def test_overrides_apply_to_one_queue(make: Any) -> None:
    @handler("direct")
    async def direct(session: AsyncSession) -> str:
        return session.name

    one, other = make(), make()
    for jobs in (one, other):
        jobs.include(direct)
    one.dependency_overrides[a_session] = Fake
    async with one:
        assert (await finished(one, direct)).result == "fake"
    async with other:
        assert (await finished(other, direct)).result == "a"


async def test_an_asynchronous_override_of_a_def_handler_fails_the_attempt(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    @jobs.handler("export")
    def export(_session: PlainSession) -> None: ...

    jobs.dependency_overrides[plain_session] = an_async_fake
    async with jobs:
        assert (await finished(jobs, export)).status is JobStatus.FAILED
    assert "its dependency an_async_fake is asynchronous" in caplog.text


@pytest.mark.parametrize("dependency", [a_session, an_async_fake, a_nested_fake])
def test_a_def_handler_cannot_have_an_asynchronous_dependency(
    jobs: AsyncJobs, dependency: Any
) -> None:
    def export(_session: Annotated[Session, Depends(dependency)]) -> None: ...

    with pytest.raises(ConfigurationError, match="export is a `def`, and its dependency a"):
        jobs.handler("export")(export)
    assert list(jobs.registry) == []


def of_a_route(session: Annotated[str, FastAPIDepends(a_session)]) -> str:
    return session


def of_a_request(request: object) -> object:
    return request


def with_default(limit: int = 3, *more: int) -> int:
    return limit + len(more)


@pytest.mark.parametrize(
    ("dependency", "sentence"),
    [
        (of_a_route, "Dependency of_a_route of handler .*'session' has FastAPI's Depends"),
        (of_a_request, "'request' is neither a dependency, nor the job"),
    ],
)
def test_a_dependency_with_unsupported_parameters_is_refused(
    jobs: AsyncJobs, dependency: Any, sentence: str
) -> None:
    async def export(_order: int, _given: Annotated[Any, Depends(dependency)]) -> None: ...

    with pytest.raises(ConfigurationError, match=sentence):
        jobs.handler("export")(export)


async def test_a_dependency_may_have_default_values(jobs: AsyncJobs) -> None:
    @jobs.handler("export")
    async def export(limit: Annotated[int, Depends(with_default)]) -> int:
        return limit

    async with jobs:
        assert (await finished(jobs, export)).result == 3


async def test_a_def_that_returns_a_coroutine_cannot_have_dependencies(
    jobs: AsyncJobs, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(session: PlainSession) -> str:
        return session.name

    @functools.wraps(work)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return work(*args, **kwargs)

    jobs.handler("export")(wrapped)
    async with jobs:
        assert (await finished(jobs, "export")).status is JobStatus.FAILED
    assert "declare it with `async def`" in caplog.text


def test_a_handler_can_be_tested_by_a_call_with_its_arguments(jobs: AsyncJobs) -> None:
    @jobs.handler("export")
    def export(order: int, session: PlainSession) -> str:
        return f"{session.name} {order}"

    assert export(3, session=Fake()) == "fake 3"
