"""Reading a request: the payload, the options, and the query of a list."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from asyncjobs import EnqueueOptions, JobStatus, JobType, Policy
from asyncjobs.core.job import new_job_id
from asyncjobs.errors import (
    InvalidCallback,
    InvalidPayload,
    InvalidQuery,
    MalformedBody,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from asyncjobs.http.messages import Request
from asyncjobs.http.requests import (
    IncomingBody,
    PageQuery,
    options_of,
    page_query_of,
    parameters_of,
    payload_of,
    rejection_of,
)


class Wish(BaseModel):
    format: str
    rows: int = 1


WISH: JobType[Wish, Any] = JobType("wish", payload=Wish, policy=Policy(max_payload_bytes=60))


def request(body: bytes, content_type: str | None = "application/json") -> Request:
    headers = {} if content_type is None else {"content-type": content_type}
    return Request("POST", headers=headers, body=body)


def errors_of(text: bytes) -> list[Any]:
    """Refuse a body as FastAPI does: by pydantic, below the location `body`."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Wish).validate_json(text)
    return [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]


def test_a_valid_body_becomes_the_payload() -> None:
    assert payload_of(request(b'{"format":"csv"}'), WISH) == Wish(format="csv")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/vnd.api+json",
        " application/json ;x=y",
    ],
)
def test_every_json_media_type_is_read(content_type: str) -> None:
    assert payload_of(request(b'{"format":"csv"}', content_type), WISH).rows == 1


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "json",
        "application/xml+jsonx",
    ],
)
def test_any_other_media_type_is_unsupported(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        payload_of(request(b'{"format":"csv"}', content_type), WISH)
    assert caught.value.content_type == (content_type or "")


@pytest.mark.parametrize("body", [b"", b"  \n", b"{", b"{'format': 'csv'}", b"\xff", b"[" * 59])
def test_a_body_that_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        payload_of(request(body), WISH)


def test_a_body_larger_than_the_limit_is_refused() -> None:
    assert payload_of(request(b'{"format":"csv"}'.ljust(60)), WISH).format == "csv"
    with pytest.raises(PayloadTooLarge) as caught:
        payload_of(request(b'{"format":"csv"}'.ljust(61)), WISH)
    assert caught.value.size is None


def test_json_of_the_wrong_shape_is_refused_with_its_fields() -> None:
    with pytest.raises(InvalidPayload) as caught:
        payload_of(request(b'{"rows":"many"}'), WISH)
    assert [issue.field for issue in caught.value.issues] == ["format", "rows"]


def test_errors_outside_the_body_are_left_to_the_framework() -> None:
    errors = [{"type": "missing", "loc": ("query", "page"), "msg": "Field required"}]
    assert rejection_of(request(b""), errors) is None
    assert rejection_of(request(b""), [*errors_of(b"{}"), *errors]) is None
    assert rejection_of(request(b""), []) is None


def test_a_wrong_body_parsed_by_a_framework_is_refused_with_its_fields() -> None:
    rejection = rejection_of(request(b""), errors_of(b'{"rows":"many"}'))
    assert isinstance(rejection, InvalidPayload)
    assert [issue.field for issue in rejection.issues] == ["format", "rows"]


def test_a_body_that_a_framework_cannot_parse_is_malformed() -> None:
    assert isinstance(rejection_of(request(b""), errors_of(b"{")), MalformedBody)


def test_a_missing_body_read_by_a_framework_is_malformed() -> None:
    missing = {"type": "missing", "loc": ("body",), "msg": "Field required"}
    assert isinstance(rejection_of(request(b""), [missing]), MalformedBody)


def test_a_body_that_a_framework_did_not_parse_has_an_unsupported_media_type() -> None:
    rejection = rejection_of(request(b"", "text/plain"), errors_of(b"{}"))
    assert isinstance(rejection, UnsupportedMediaType)


texts = st.text(st.characters(exclude_categories=["Cs"]))
queries = st.builds(
    PageQuery,
    type=st.none() | texts,
    status=st.none() | st.sampled_from(JobStatus),
    tag=st.none() | st.sampled_from(["customer:42", "a b&c", "märz"]),
    members=st.booleans(),
    limit=st.integers(1, 100),
    cursor=st.none() | texts,
)


def test_an_empty_query_is_the_first_page_of_all_jobs() -> None:
    assert page_query_of("") == PageQuery(type=None, status=None, limit=20, cursor=None)


def test_each_parameter_narrows_the_list() -> None:
    query = "type=export&status=failed&tag=customer%3A42&limit=5&cursor=17&unknown=x"
    assert page_query_of(query) == PageQuery(
        type="export", status=JobStatus.FAILED, tag="customer:42", limit=5, cursor="17"
    )


@pytest.mark.parametrize("status", JobStatus)
def test_a_list_can_select_every_status(status: JobStatus) -> None:
    assert page_query_of(f"status={status}").status is status


@pytest.mark.parametrize("status", ["", "Pending", "done", "pending ", "NotStarted", "PENDING"])
def test_an_unknown_status_is_refused_with_the_known_ones(status: str) -> None:
    with pytest.raises(InvalidQuery, match=r"'status'.*pending, processing, completed") as caught:
        page_query_of(f"status={quote_plus(status)}")
    assert caught.value.parameter == "status"


@pytest.mark.parametrize("limit", ["1", "100", "020"])
def test_a_page_has_one_to_a_hundred_jobs(limit: str) -> None:
    assert page_query_of(f"limit={limit}").limit == int(limit)


@pytest.mark.parametrize(
    "limit",
    ["", "0", "101", "-1", "+1", "1.5", "1e1", " 1", "x", "9" * 400, "٣", "²", "1\n", "000"],
)
def test_an_invalid_limit_is_refused(limit: str) -> None:
    with pytest.raises(InvalidQuery, match=r"'limit'.*from 1 to 100"):
        page_query_of(f"limit={quote_plus(limit)}")


@pytest.mark.parametrize("tag", ["", " x", "x ", "a\nb", "a\x00b", "t" * 129])
def test_a_tag_that_no_job_can_have_is_refused(tag: str) -> None:
    with pytest.raises(InvalidQuery, match=r"'tag' cannot be used: a tag (must|has).*[^.]\.$"):
        page_query_of(f"tag={quote_plus(tag)}")


def test_members_of_batches_are_left_out_unless_they_or_a_batch_are_asked_for() -> None:
    batch = new_job_id()
    for query, members in (
        ("", False),
        ("members=false", False),
        ("members=true", True),
        (f"batch={batch}", True),
        (f"batch={batch}&members=true", True),
    ):
        found = page_query_of(query)
        assert found.members is members, query
        assert page_query_of(found.following("7")) == replace(found, cursor="7"), query


@pytest.mark.parametrize("members", ["", "True", "1", "yes", "true ", "none"])
def test_members_are_asked_for_by_true_or_false(members: str) -> None:
    with pytest.raises(InvalidQuery, match=r"'members'.*true or false") as caught:
        page_query_of(f"members={quote_plus(members)}")
    assert caught.value.parameter == "members"


def test_the_first_value_of_a_repeated_parameter_applies() -> None:
    assert parameters_of("after=1&x=&after=2") == {"after": "1", "x": ""}


@pytest.mark.parametrize("query", ["&".join(["a=1"] * 51), "after=1&" + "&" * 10_000 + "a=2" * 9])
def test_a_query_of_too_many_parameters_is_refused(query: str) -> None:
    with pytest.raises(InvalidQuery, match="more than 50 parameters"):
        parameters_of(query)


def test_malformed_percent_encoding_is_kept() -> None:
    assert parameters_of("a=%&b=%zz&c=%ff&=d&e") == {
        "a": "%",
        "b": "%zz",
        "c": "�",
        "": "d",
        "e": "",
    }


@given(queries, texts)
def test_the_next_query_has_the_same_filters_and_the_cursor(query: PageQuery, cursor: str) -> None:
    assert page_query_of(query.following(cursor)) == replace(query, cursor=cursor)


@given(queries, texts)
def test_the_next_query_is_escaped_for_a_link(query: PageQuery, cursor: str) -> None:
    written = query.following(cursor)
    assert written.isascii()
    assert written.isprintable()
    assert not set(written) & set(' <>"')


def test_default_values_are_not_written() -> None:
    assert PageQuery(limit=20).following("17") == "cursor=17"


@given(st.text())
def test_any_query_is_read_or_refused(query: str) -> None:
    found = None
    with contextlib.suppress(InvalidQuery):
        found = page_query_of(query)
    assert found is None or 1 <= found.limit <= 100


# options


def test_a_callback_url_is_accepted_only_if_allowed() -> None:
    url = "https://example.com/done"
    named = Request("POST", headers={"callback-url": url})
    assert options_of(named, None, callbacks=True).callback_url == url
    with pytest.raises(InvalidCallback):
        options_of(named, None, callbacks=False)
    assert options_of(Request("POST"), None, callbacks=False).callback_url is None


def test_application_options_take_precedence_over_the_request() -> None:
    ours = EnqueueOptions(callback_url="https://example.com/ours", traceparent="00-ours")
    theirs = Request(
        "POST", headers={"callback-url": "https://example.org", "traceparent": "00-theirs"}
    )
    assert options_of(theirs, ours, callbacks=False) == ours


def test_a_body_is_read_up_to_one_byte_over_the_limit() -> None:
    body = IncomingBody(10)
    assert [body.add(b"abcd") for _ in range(4)] == [True] * 4
    assert body.content == b"abcdabcdabc"
    assert not body.is_unfinished


def test_the_rest_of_a_body_is_discarded_up_to_a_limit() -> None:
    body = IncomingBody(10)
    chunk = bytes(1024 * 1024)
    read = 0
    while body.add(chunk):
        read += 1
    assert body.is_unfinished
    assert read == 64
    assert len(body.content) == 11
