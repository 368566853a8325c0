from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs.http.headers import etag_of, matches

TAG = etag_of(7)


def test_a_tag_is_strong_and_quoted() -> None:
    assert TAG == '"7"'


@pytest.mark.parametrize(
    "header",
    [
        '"7"',
        'W/"7"',
        ' "7" ',
        '"6","7"',
        '"6", W/"7" , "8"',
        "*",
        " * ",
        '"a,b", "7"',
        'garbage, "7"',
        '"", "7"',
    ],
)
def test_a_client_that_names_the_tag_has_it(header: str) -> None:
    assert matches(header, TAG)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "7",
        '"6"',
        '"77"',
        '"7',
        '7"',
        "'7'",
        'W/"6"',
        '"6, 7"',
        "**",
        '"*"',
        ",,,",
        '"7 "',
    ],
)
def test_a_client_that_does_not_name_the_tag_has_it_not(header: str | None) -> None:
    assert not matches(header, TAG)


def test_the_quote_between_two_tags_begins_no_tag() -> None:
    assert not matches('"6","8"', '","')


@given(st.text())
def test_no_header_whatever_is_an_error(header: str) -> None:
    assert matches(header, TAG) in {True, False}


@given(st.lists(st.integers(min_value=0), max_size=9), st.integers(min_value=0))
def test_a_list_matches_when_one_of_its_tags_does(versions: list[int], version: int) -> None:
    header = ", ".join(map(etag_of, versions))
    assert matches(header, etag_of(version)) == (version in versions)
