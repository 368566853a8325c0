"""A list is asked for by a query string, and says how to ask for what follows."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import JobStatus
from asyncjobs.errors import InvalidQuery
from asyncjobs.http.requests import PageQuery, page_query_of, parameters_of

# The machine may be busy with other things.


texts = st.text(st.characters(exclude_categories=["Cs"]))
queries = st.builds(
    PageQuery,
    type=st.none() | texts,
    status=st.none() | st.sampled_from(JobStatus),
    limit=st.integers(1, 100),
    cursor=st.none() | texts,
)


def test_nothing_asked_for_is_the_first_page_of_everything() -> None:
    assert page_query_of("") == PageQuery(type=None, status=None, limit=20, cursor=None)


def test_each_parameter_narrows_the_list() -> None:
    query = "type=export&status=failed&limit=5&cursor=17&unknown=x"
    assert page_query_of(query) == PageQuery("export", JobStatus.FAILED, 5, "17")


@pytest.mark.parametrize("status", JobStatus)
def test_jobs_of_every_status_can_be_asked_for(status: JobStatus) -> None:
    assert page_query_of(f"status={status}").status is status


@pytest.mark.parametrize("status", ["", "Pending", "done", "pending ", "NotStarted", "PENDING"])
def test_what_is_no_status_is_refused_and_told_which_there_are(status: str) -> None:
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
def test_a_limit_that_makes_no_sense_is_refused(limit: str) -> None:
    with pytest.raises(InvalidQuery, match=r"'limit'.*from 1 to 100"):
        page_query_of(f"limit={quote_plus(limit)}")


def test_of_a_repeated_parameter_the_first_counts() -> None:
    assert parameters_of("after=1&x=&after=2") == {"after": "1", "x": ""}


@pytest.mark.parametrize("query", ["&".join(["a=1"] * 51), "after=1&" + "&" * 10_000 + "a=2" * 9])
def test_a_query_of_absurdly_many_parameters_says_nothing(query: str) -> None:
    assert parameters_of(query) == {}


def test_broken_percent_signs_are_no_fault() -> None:
    assert parameters_of("a=%&b=%zz&c=%ff&=d&e") == {
        "a": "%",
        "b": "%zz",
        "c": "�",
        "": "d",
        "e": "",
    }


@given(queries, texts)
def test_the_query_that_follows_asks_for_the_same_from_the_cursor_on(
    query: PageQuery, cursor: str
) -> None:
    assert page_query_of(query.following(cursor)) == replace(query, cursor=cursor)


@given(queries, texts)
def test_the_query_that_follows_can_stand_in_a_link(query: PageQuery, cursor: str) -> None:
    written = query.following(cursor)
    assert written.isascii()
    assert written.isprintable()
    assert not set(written) & set(' <>"')


def test_what_is_usual_is_not_written() -> None:
    assert PageQuery(limit=20).following("17") == "cursor=17"


@given(st.text())
def test_any_query_is_read_or_refused(query: str) -> None:
    found = None
    with contextlib.suppress(InvalidQuery):
        found = page_query_of(query)
    assert found is None or 1 <= found.limit <= 100
