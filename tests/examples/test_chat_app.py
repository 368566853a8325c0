"""The example of a chat over real HTTP, with clients that speak the AI SDK's protocol by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from tests.waiting import until_sync

Serve = Callable[..., AbstractContextManager[httpx2.Client]]

UVICORN = ("uvicorn", "--app-dir", "{examples}/chat_app", "--port", "{port}", "app:app")
ANN, BOB = {"Cookie": "visitor=ann"}, {"Cookie": "visitor=bob"}


@pytest.fixture
def client(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Generator[httpx2.Client]:
    monkeypatch.setenv("CHAT_PAUSE", "0.005")
    with serve(UVICORN) as client:
        yield client


def question(chat: str, text: str = "why?") -> dict[str, Any]:
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}
    return {"id": chat, "messages": [message], "trigger": "submit-message"}


def chunks(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a stream; check how it is framed."""
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    ended = False
    for line in response.iter_lines():
        if line:
            assert not ended
            data = line.removeprefix("data: ")
            ended = data == "[DONE]"
            if not ended:
                yield json.loads(data)
    assert ended


def text(found: list[dict[str, Any]]) -> str:
    return "".join(chunk.get("delta", "") for chunk in found)


def test_an_answer_is_streamed_to_its_end_and_then_among_the_messages(
    client: httpx2.Client,
) -> None:
    with client.stream("POST", "/api/chat", json=question("a"), headers=ANN) as response:
        found = list(chunks(response))
    kinds = [chunk["type"] for chunk in found]
    assert kinds[:2] + kinds[-2:] == ["start", "text-start", "text-end", "finish"]
    assert text(found).endswith("That is all. ")
    stored = client.get("/api/chat/a", headers=ANN).json()
    assert stored[0] == question("a")["messages"][0]
    assert stored[1]["id"] == found[0]["messageId"]
    assert stored[1]["parts"] == [{"type": "text", "text": text(found)}]


def test_a_resumed_answer_begins_with_its_first_chunk(client: httpx2.Client) -> None:
    with client.stream("POST", "/api/chat", json=question("a"), headers=ANN) as response:
        begun = [chunk for chunk, _ in zip(chunks(response), range(5), strict=False)]
    with client.stream("GET", "/api/chat/a/stream", headers=ANN) as response:
        found = list(chunks(response))
    assert found[:5] == begun
    assert found[-1]["type"] == "finish"


def test_a_stopped_answer_ends_with_an_abort_chunk(client: httpx2.Client) -> None:
    with client.stream("POST", "/api/chat", json=question("a"), headers=ANN) as response:
        found: list[dict[str, Any]] = []
        for chunk in chunks(response):
            if not found:
                assert client.post("/api/chat/a/stop", headers=ANN).status_code == 204
            found.append(chunk)
    assert found[-1] == {"type": "abort"}
    assert client.post("/api/chat/a/stop", headers=ANN).status_code == 204  # it has ended


def test_there_is_nothing_to_resume_for_others(client: httpx2.Client) -> None:
    with client.stream("POST", "/api/chat", json=question("a"), headers=ANN):
        pass
    until_sync(lambda: client.get("/api/chat/a", headers=ANN).json())
    for headers, chat in ((ANN, "b"), (BOB, "a")):
        assert client.get(f"/api/chat/{chat}/stream", headers=headers).status_code == 204
        assert client.get(f"/api/chat/{chat}", headers=headers).json() == []
        assert client.post(f"/api/chat/{chat}/stop", headers=headers).status_code == 204
    client.cookies.clear()
    assert client.get("/api/chat/a/stream").status_code == 401


@pytest.mark.parametrize("chat", ["", "a b", "a" * 65])
def test_a_malformed_chat_is_refused(client: httpx2.Client, chat: str) -> None:
    assert client.post("/api/chat", json=question(chat), headers=ANN).status_code == 422
