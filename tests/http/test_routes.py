from __future__ import annotations

from http import HTTPStatus

import pytest

from asyncjobs.http.routes import (
    LIST,
    RENEWAL,
    ROUTES,
    TAG_RENEWAL,
    Operation,
    Route,
    operations_at,
)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
def test_each_route_is_found_by_its_path_and_method(route: Route) -> None:
    job_id, operations = operations_at(f"job_1{route.suffix}")
    assert job_id == "job_1"
    assert operations[route.method] is route.operation


def test_each_operation_has_a_route() -> None:
    assert {route.operation for route in (LIST, *ROUTES, RENEWAL, TAG_RENEWAL)} == set(Operation)


def test_tokens_are_given_for_a_job_and_for_a_tag() -> None:
    assert operations_at("job_1/token") == ("job_1", {"POST": Operation.RENEW})
    assert operations_at("token") == operations_at("token/") == ("", {"POST": Operation.RENEW_TAG})
    assert operations_at("token/token") == ("token", {"POST": Operation.RENEW})


def test_a_path_allows_its_own_methods_only() -> None:
    assert operations_at("job_1")[1].keys() == {"GET", "DELETE"}
    assert operations_at("job_1/result")[1].keys() == {"GET"}
    assert operations_at("job_1/cancel")[1].keys() == {"POST"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
def test_one_slash_at_the_end_is_ignored(route: Route) -> None:
    path = f"job_1{route.suffix}"
    assert operations_at(f"{path}/") == operations_at(path)
    assert operations_at(f"{path}//") == ("job_1", {})


@pytest.mark.parametrize(
    "path",
    [
        "job_1/results", "job_1/result/x", "job_1//result", "job_1//",
        "job_1/x/files/a.txt", "job_1/result/files/a.txt", "job_1//files/a.txt",
        "job_1/files/files/a.txt", "job_1/files//a.txt", "job_1/files/a.txt/b",
    ],
)  # fmt: skip
def test_any_other_path_has_no_operation(path: str) -> None:
    assert operations_at(path) == ("job_1", {})


@pytest.mark.parametrize("path", ["/", "//", "/job_1", "/result"])
def test_a_path_that_begins_with_a_slash_has_no_operation(path: str) -> None:
    assert operations_at(path) == ("", {})


def test_the_prefix_itself_is_the_list() -> None:
    assert operations_at("") == ("", {"GET": Operation.LIST})


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.suffix}")
def test_each_route_describes_its_answers(route: Route) -> None:
    assert {HTTPStatus.OK, HTTPStatus.NOT_FOUND} <= route.answers.keys()
    assert all(route.answers.values())
    assert route.summary
