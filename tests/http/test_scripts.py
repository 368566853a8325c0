from http import HTTPStatus
from pathlib import Path

import pytest

import asyncjobs
from asyncjobs.http.messages import Request
from asyncjobs.http.scripts import SCRIPTS, script

NAMES = ["client.js", "element.js", "look.js", "react.js"]


def test_each_script_of_the_folder_is_served() -> None:
    folder = Path(asyncjobs.__file__).parent / "browser"
    assert sorted(SCRIPTS) == sorted(path.name for path in folder.glob("*.js")) == NAMES


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_a_module_that_is_revalidated_each_time(name: str, method: str) -> None:
    answer = script(Request(method, name))
    assert answer is not None
    assert (answer.status, answer.header("Content-Type")) == (200, "text/javascript; charset=utf-8")
    assert answer.header("Cache-Control") == "public, no-cache"
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert b"import " in answer.body or b"export " in answer.body


def test_a_client_with_the_current_script_gets_304() -> None:
    found = {name: script(Request("GET", name)) for name in NAMES}
    tags = {name: answer.header("ETag") for name, answer in found.items() if answer}
    assert len(set(tags.values())) == 4
    for name, tag in tags.items():
        again = script(Request("GET", name, headers={"if-none-match": f"W/{tag}"}))
        assert again is not None
        assert (again.status, again.header("ETag"), again.body) == (304, tag, b"")
        assert again.header("Content-Type") is None
        changed = script(Request("GET", name, headers={"if-none-match": '"other"'}))
        assert changed is not None
        assert changed.status == HTTPStatus.OK


def test_a_script_only_has_get_and_head() -> None:
    answer = script(Request("DELETE", "client.js"))
    assert answer is not None
    assert (answer.status, answer.header("Allow")) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("path", ["", "client", "client.js//", "client.js/result", "../client.js"])
def test_other_paths_are_not_scripts(path: str) -> None:
    assert script(Request("GET", path)) is None
