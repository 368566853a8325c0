"""Handlers: valid signatures, limits, and the encoding of payloads and results."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import pytest
from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from asyncjobs import AsyncJobs, JobContext, JobStatus, Policy, Retry
from asyncjobs.core.handlers import ImportPath, JobType
from asyncjobs.errors import (
    ConfigurationError,
    FieldIssue,
    InvalidPayload,
    InvalidResult,
    JobUnsuccessful,
    PayloadTooLarge,
    UnknownType,
)
from asyncjobs.testing import sample_job
from tests.queues import finished


@pytest.fixture
def jobs() -> AsyncJobs:
    return AsyncJobs("memory://")


def kind_of(payload: Any, result: Any = JsonValue, **limits: Any) -> JobType[Any, Any]:
    return JobType("kind", payload=payload, result=result, policy=Policy(**limits))


# payload and result


@dataclass
class Point:
    x: int
    y: int


class Size(TypedDict):
    width: int


class Order(BaseModel):
    amount: int = Field(gt=0)


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)

    user_id: int
    made_at: float = Field(default_factory=time.monotonic)


class OneWay(BaseModel):
    number: int = Field(validation_alias="a", serialization_alias="b")
    rows: int = Field(1, validation_alias="numRows")


class Measure(BaseModel):
    x: float


class Login(BaseModel):
    password: SecretStr


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Order, Order(amount=21)),
        (Point, Point(1, 2)),
        (Size, Size(width=3)),
        (set[str], {"a", "b"}),
        (JsonValue, {"a": [1, None, "b"]}),
    ],
)
def test_payload_and_result_survive_encoding(annotation: Any, value: Any) -> None:
    kind = kind_of(annotation, annotation)
    assert kind.load_payload(kind.dump_payload(value)) == value
    assert kind.load_result(kind.dump_result(value)) == value


def test_a_payload_keeps_its_members_with_any_aliases() -> None:
    kind = kind_of(OneWay)
    sent = kind.read_payload(b'{"a": 7, "numRows": 1000}')
    stored = kind.load_payload(kind.dump_payload(sent))
    assert (stored.number, stored.rows) == (7, 1000)


def test_a_result_is_encoded_by_alias() -> None:
    kind = kind_of(Camel, Camel)
    text = kind.dump_result(Camel(user_id=1, made_at=2))
    assert text == b'{"userId":1,"madeAt":2.0}'
    assert kind.load_result(text) == Camel(user_id=1, made_at=2)


@pytest.mark.parametrize(
    ("annotation", "payload", "field"),
    [
        (Order, {"amount": -1}, "amount"),
        (Order, {"amount": "many"}, "amount"),
        (Measure, {"x": float("inf")}, "x"),
        (Measure, {"x": float("nan")}, "x"),
        (dict[str, object], {"x": float("nan")}, ""),
        (dict[str, object], {"a": object()}, ""),
        (dict[str, object], {"a": "\ud800"}, ""),
        (Login, Login(password=SecretStr("swordfish")), ""),
    ],
)
def test_a_payload_that_does_not_survive_as_json_is_refused(
    annotation: Any, payload: Any, field: str
) -> None:
    with pytest.raises(InvalidPayload) as refused:
        kind_of(annotation).dump_payload(payload)
    assert refused.value.issues[0].field == field


def test_a_payload_over_the_limit_is_refused_with_its_size() -> None:
    kind = kind_of(str, max_payload_bytes=10)
    assert kind.dump_payload("x" * 8)
    with pytest.raises(PayloadTooLarge) as refused:
        kind.dump_payload("x" * 9)
    assert (refused.value.size, refused.value.limit) == (11, 10)


def test_payload_equality_ignores_defaults_and_member_order() -> None:
    camel, tags = kind_of(Camel), kind_of(set[str])
    assert camel.fingerprint(Camel(user_id=1)) == camel.fingerprint(Camel(user_id=1))
    assert camel.fingerprint(Camel(user_id=1)) != camel.fingerprint(Camel(user_id=2))
    assert tags.load_payload(b'["a","b"]') == tags.load_payload(b'["b","a"]')


def test_result_of_needs_a_completed_job_of_the_same_type() -> None:
    kind = kind_of(int, int)
    job = sample_job(type="kind")
    done = job.changed(status=JobStatus.COMPLETED, result_json=b"7")
    assert kind.result_of(done) == 7
    with pytest.raises(ValueError, match="is pending: it has no result yet"):
        kind.result_of(job)
    with pytest.raises(ValueError, match="is of type 'export', not 'kind'"):
        kind.result_of(sample_job())
    for status in (JobStatus.FAILED, JobStatus.CANCELLED):
        with pytest.raises(JobUnsuccessful) as raised:
            kind.result_of(job.changed(status=status))
        assert raised.value.job.status is status
    with pytest.raises(InvalidResult):
        kind.result_of(done.changed(result_json=b'"of an older release"'))


def test_an_issue_names_its_field_if_it_has_one() -> None:
    assert str(FieldIssue("a.b", "is odd")) == "a.b: is odd"
    assert str(FieldIssue("", "is odd")) == "is odd"


# registration


async def double(number: int, _job: JobContext) -> int:
    """Double it."""
    return 2 * number


class Doubler:
    async def __call__(self, number: int, job: JobContext) -> int:
        return await double(number, job)

    def method(self, number: int, _job: JobContext) -> int:
        return 2 * number


async def with_factor(factor: int, number: int, _job: JobContext) -> int:
    return factor * number


@pytest.mark.anyio
@pytest.mark.parametrize(
    "function",
    [double, functools.partial(with_factor, 2), Doubler(), Doubler().method],
    ids=["function", "partial", "object", "method"],
)
async def test_any_callable_of_payload_and_job_is_a_handler(jobs: AsyncJobs, function: Any) -> None:
    handler = jobs.handler("double")(function)
    with pytest.raises(InvalidPayload):
        handler.dump_payload("many")
    async with jobs:
        assert (await finished(jobs, handler, 21)).result == 42


@pytest.mark.anyio
async def test_a_handler_can_be_called_like_its_function(jobs: AsyncJobs) -> None:
    handler = jobs.handler("double")(double)
    assert await handler(4, JobContext(sample_job())) == 8
    assert handler.__doc__ == "Double it."
    assert repr(handler) == "<Handler 'double'>"


@pytest.mark.anyio
async def test_a_handler_without_payload_is_enqueued_without_one(jobs: AsyncJobs) -> None:
    @jobs.handler("nightly")
    async def nightly(job: JobContext) -> str:
        return job.type

    @jobs.handler("nothing")
    def nothing() -> int:
        return 7

    async with jobs:
        assert await (await jobs.enqueue(nightly)).result(timeout=60) == "nightly"
        assert await (await jobs.enqueue(nothing, None)).result(timeout=60) == 7
        assert await (await jobs.enqueue("nothing")).result(timeout=60) == 7
        with pytest.raises(InvalidPayload):
            await jobs.enqueue("nothing", 3)


@pytest.mark.anyio
async def test_a_handler_without_job_gets_its_payload(jobs: AsyncJobs) -> None:
    @jobs.handler("double")
    async def double(number: int) -> int:
        return 2 * number

    async with jobs:
        assert (await finished(jobs, double, 21)).result == 42
        with pytest.raises(InvalidPayload):
            await jobs.enqueue("double")


def test_a_handler_with_another_signature_is_refused(jobs: AsyncJobs) -> None:
    async def greedy(_payload: int, _job: JobContext, _limit: int) -> None: ...

    with pytest.raises(ConfigurationError, match="its parameter '_limit' is not the job"):
        jobs.handler("greedy")(greedy)
    assert list(jobs.registry) == []


def test_an_annotation_that_json_cannot_represent_is_refused_at_once(jobs: AsyncJobs) -> None:
    async def strange(_payload: AsyncJobs, _job: JobContext) -> None: ...

    with pytest.raises(ConfigurationError, match="cannot be written as JSON"):
        jobs.handler("strange")(strange)


def test_an_unresolvable_annotation_is_refused_at_once(jobs: AsyncJobs) -> None:
    async def lost(_payload: int, _job: JobContext) -> None: ...

    lost.__annotations__["_payload"] = "Nowhere"
    with pytest.raises(ConfigurationError, match="Nowhere"):
        jobs.handler("lost")(lost)


def test_a_name_can_only_be_registered_once(jobs: AsyncJobs) -> None:
    jobs.external("import", payload=str, result=int)
    with pytest.raises(ConfigurationError, match="twice"):
        jobs.external("import", payload=str, result=int)


def test_a_decorator_without_parentheses_is_refused_with_the_remedy(
    jobs: AsyncJobs,
) -> None:
    with pytest.raises(ConfigurationError, match=r'write @jobs\.handler\("double"\)'):
        jobs.handler(cast("Any", double))
    assert list(jobs.registry) == []


@pytest.mark.anyio
async def test_only_handlers_of_this_queue_are_enqueued(jobs: AsyncJobs) -> None:
    other = AsyncJobs("memory://")
    theirs = other.handler("double")(double)
    jobs.handler("double")(double)
    async with jobs:
        with pytest.raises(UnknownType, match=r"'treble'.*double"):
            await jobs.enqueue("treble", 1)
        with pytest.raises(ConfigurationError, match="'double' belongs to another AsyncJobs"):
            await jobs.enqueue(theirs, 1)
        with pytest.raises(ConfigurationError, match="double is not a handler: decorate it"):
            await jobs.enqueue(cast("Any", double), 1)


def in_module(number: int, _job: JobContext) -> int:
    return number


def test_a_child_process_finds_a_handler_by_its_qualified_name(jobs: AsyncJobs) -> None:
    handler = jobs.handler("here", run_in="process")(in_module)
    assert handler.import_path == ImportPath(__name__, "in_module")


def a_local_function() -> Callable[[int, JobContext], int]:
    def local(number: int, _job: JobContext) -> int:
        return number

    return local


A_LAMBDA: Callable[[int, JobContext], int] = lambda number, _job: number  # noqa: E731


@pytest.mark.parametrize(
    "function",
    [a_local_function(), A_LAMBDA, Doubler().method, Doubler(), functools.partial(with_factor, 2)],
    ids=["local", "lambda", "method", "object", "partial"],
)
def test_a_handler_that_a_child_process_cannot_import_is_refused(
    jobs: AsyncJobs, function: Any
) -> None:
    with pytest.raises(ConfigurationError, match="must be a module-level function"):
        jobs.handler("lost", run_in="process")(function)
    assert jobs.registry.handler("lost") is None


# aliases


def test_an_alias_resolves_to_the_handler(jobs: AsyncJobs) -> None:
    export = jobs.handler("export", aliases=["old_export", "older"])(double)
    assert export.aliases == ("old_export", "older")
    for name in ("export", "old_export", "older"):
        assert jobs.registry.handler(name) is export
        assert jobs.registry.find(name) is export
    assert list(jobs.registry) == [export]


def test_the_result_of_a_job_stored_under_an_alias_is_read(jobs: AsyncJobs) -> None:
    export = jobs.handler("export", aliases=("old_export",))(double)
    done = sample_job(type="old_export").changed(status=JobStatus.COMPLETED, result_json=b"7")
    assert export.result_of(done) == 7


@pytest.mark.parametrize("taken", ["double", "former"])
@pytest.mark.parametrize("options", [{"aliases": ("double",)}, {"aliases": ("former",)}])
def test_an_alias_that_is_another_types_name_is_refused(
    jobs: AsyncJobs, taken: str, options: dict[str, Any]
) -> None:
    jobs.handler("double", aliases=("former",))(double)
    with pytest.raises(ConfigurationError, match="'double' already has it"):
        jobs.handler("treble", **options)(double)
    with pytest.raises(ConfigurationError, match=r"registered twice|'double' already has it"):
        jobs.external(taken, payload=int, result=int)
    assert len(list(jobs.registry)) == 1


@pytest.mark.parametrize(
    "aliases", ["old_export", ("export",), ("old", "old"), (3,)], ids=["str", "own", "twice", "int"]
)
def test_invalid_aliases_are_refused_at_once(jobs: AsyncJobs, aliases: Any) -> None:
    with pytest.raises(ConfigurationError, match="aliases of handler 'export'"):
        jobs.handler("export", aliases=aliases)


# limits


@pytest.mark.parametrize("given", [7, 7.0, timedelta(seconds=7)])
def test_durations_of_a_handler_are_seconds_or_a_timedelta(
    jobs: AsyncJobs, given: float | timedelta
) -> None:
    handler = jobs.handler("double", timeout=given, inline_wait=given, estimate=given)(double)
    kind = jobs.external("render", payload=int, result=int, timeout=given, inline_wait=given)
    for one in (handler, kind):
        assert (one.policy.timeout, one.policy.inline_wait) == (timedelta(seconds=7),) * 2
    assert handler.estimate == timedelta(seconds=7)


@pytest.mark.parametrize("limit", ["timeout", "inline_wait"])
@pytest.mark.parametrize("value", [-1, timedelta.max, float("nan"), float("inf"), "soon"])
def test_invalid_limits_are_refused_at_once(jobs: AsyncJobs, limit: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=limit):
        jobs.handler("never", **cast("Any", {limit: value}))


def test_a_timeout_must_be_positive(jobs: AsyncJobs) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        jobs.handler("never", timeout=0)


def test_limits_of_a_handler_are_merged_with_those_of_the_application() -> None:
    often = Retry(max_attempts=5)
    jobs = AsyncJobs("memory://", policy=Policy(retry=often, timeout=60, retention=None))

    def limits(**options: Any) -> Policy:
        return jobs.external("kind" + str(len(list(jobs.registry))), **options).policy

    plain = limits(payload=int, result=int)
    assert plain == jobs.policy
    queued = limits(payload=int, result=int, policy=Policy(queue="slow"))
    assert (queued.queue, queued.retry, queued.retention) == ("slow", often, None)
    timed = limits(payload=int, result=int, policy=Policy(timeout=7), timeout=8)
    assert (timed.timeout, timed.retry) == (timedelta(seconds=8), often)
    unlimited = limits(payload=int, result=int, timeout=None)
    assert (unlimited.timeout, unlimited.retry) == (None, often)


def test_a_limit_that_equals_the_default_counts_as_given() -> None:
    jobs = AsyncJobs("memory://", policy=Policy(retry=Retry(max_attempts=5), timeout=60))
    by_policy = jobs.handler("a", policy=Policy(retry=Retry(), timeout=15 * 60))(double)
    by_option = jobs.handler("b", retry=Retry())(double)
    assert by_policy.policy == Policy()
    assert (by_option.policy.retry, by_option.policy.timeout) == (Retry(), timedelta(minutes=1))
