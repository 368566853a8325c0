from __future__ import annotations

import pytest

from asyncjobs.http.messages import Request, Response


def test_a_header_of_a_response_is_found_in_any_case() -> None:
    response = Response(200, (("ETag", '"1"'), ("etag", '"2"')))
    assert response.header("eTAG") == '"1"'


def test_a_missing_header_is_none() -> None:
    assert Response(200).header("ETag") is None


@pytest.mark.parametrize("value", [Request("GET"), Response(200)])
def test_requests_and_responses_are_immutable(value: object) -> None:
    assert hash(type(value)) == hash(type(value))
    with pytest.raises(AttributeError):
        value.body = b""  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
