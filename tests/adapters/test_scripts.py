"""The scripts for browsers, on every framework."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from asyncjobs import AsyncJobs

OpenSite = Callable[..., AbstractContextManager[Any]]

pytestmark = pytest.mark.every_store

NAMES = ["client.js", "element.js", "look.js", "react.js"]


@pytest.mark.parametrize("name", NAMES)
def test_scripts_are_served_beside_the_jobs(client: httpx2.Client, name: str) -> None:
    answer = client.get(f"/api/jobs/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "public, no-cache"
    assert "export" in answer.text
    head = client.head(f"/api/jobs/{name}")
    assert (head.status_code, head.headers["etag"]) == (200, answer.headers["etag"])
    again = client.get(f"/api/jobs/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]


def test_scripts_only_allow_get_and_head(client: httpx2.Client) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = client.request(method, "/api/jobs/client.js")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_scripts_are_served_without_identify(
    open_site: OpenSite, new_jobs: Callable[..., AsyncJobs], stack: Any
) -> None:
    def nobody(_: Any) -> None:
        stack.refuse(401)

    with open_site(new_jobs(), identify=nobody) as site:
        assert site.client.get("/api/jobs/job_x").status_code == 401
        assert site.client.get("/api/jobs/client.js").status_code == 200


def test_scripts_are_below_the_root_of_a_mounted_app(open_site: OpenSite) -> None:
    with open_site(root="/tenant") as site:
        assert site.client.get("/tenant/api/jobs/element.js").status_code == 200
