from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from asyncjobs import JobType, Policy
from asyncjobs.errors import InvalidPayload, MalformedBody, PayloadTooLarge, UnsupportedMediaType
from asyncjobs.http.messages import Request
from asyncjobs.http.requests import payload_of, rejection_of


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


def test_a_good_body_becomes_the_payload() -> None:
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
def test_json_has_many_names(content_type: str) -> None:
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
def test_what_is_not_called_json_is_not_read(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        payload_of(request(b'{"format":"csv"}', content_type), WISH)
    assert caught.value.content_type == (content_type or "")


@pytest.mark.parametrize("body", [b"", b"  \n", b"{", b"{'format': 'csv'}", b"\xff", b"[" * 59])
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        payload_of(request(body), WISH)


def test_a_body_may_be_as_large_as_the_limit_and_no_larger() -> None:
    assert payload_of(request(b'{"format":"csv"}'.ljust(60)), WISH).format == "csv"
    with pytest.raises(PayloadTooLarge) as caught:
        payload_of(request(b'{"format":"csv"}'.ljust(61)), WISH)
    assert caught.value.size is None


def test_json_of_the_wrong_shape_names_the_fields() -> None:
    with pytest.raises(InvalidPayload) as caught:
        payload_of(request(b'{"rows":"many"}'), WISH)
    assert [issue.field for issue in caught.value.issues] == ["format", "rows"]


def test_a_framework_that_refused_something_else_than_the_body_is_left_alone() -> None:
    errors = [{"type": "missing", "loc": ("query", "page"), "msg": "Field required"}]
    assert rejection_of(request(b""), errors) is None
    assert rejection_of(request(b""), [*errors_of(b"{}"), *errors]) is None
    assert rejection_of(request(b""), []) is None


def test_a_body_that_a_framework_refused_for_its_shape_names_the_fields() -> None:
    rejection = rejection_of(request(b""), errors_of(b'{"rows":"many"}'))
    assert isinstance(rejection, InvalidPayload)
    assert [issue.field for issue in rejection.issues] == ["format", "rows"]


def test_a_body_that_a_framework_could_not_read_as_json_is_malformed() -> None:
    assert isinstance(rejection_of(request(b""), errors_of(b"{")), MalformedBody)


def test_no_body_is_malformed_for_every_framework() -> None:
    missing = {"type": "missing", "loc": ("body",), "msg": "Field required"}
    assert isinstance(rejection_of(request(b""), [missing]), MalformedBody)


def test_a_body_that_a_framework_did_not_take_for_json_is_of_the_wrong_type() -> None:
    rejection = rejection_of(request(b"", "text/plain"), errors_of(b"{}"))
    assert isinstance(rejection, UnsupportedMediaType)
