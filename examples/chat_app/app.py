"""A chat whose answers survive a reload: `uvicorn --app-dir examples/chat_app app:app`.

The page at http://127.0.0.1:8000/ uses `useChat` of the AI SDK, unmodified, and loads it from a
CDN. Each answer is a job: it goes on while no page is open. A cookie identifies each visitor; your
application has users instead. `generate` needs no model: put the stream of yours in its place.
"""

import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from asyncjobs import AsyncJobs, EnqueueOptions, Job, JobContext, JobId, JobStatus, Selection
from asyncjobs.adapters.fastapi import mount

PAGE = Path(__file__).parent / "page"
STORE = os.environ.get("CHAT_STORE", "sqlite:///chats.db")
PAUSE = float(os.environ.get("CHAT_PAUSE", "0.06"))  # seconds between two words

#: A page may have read the messages just before the answer ended.
JUST_ENDED = timedelta(minutes=1)

HEADERS = {
    "x-vercel-ai-ui-message-stream": "v1",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}

ChatId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Chunk = dict[str, Any]
Message = dict[str, Any]

jobs = AsyncJobs(STORE)


class Chat(BaseModel):
    """What `useChat` sends: the id of the chat, and its messages."""

    id: ChatId
    messages: Annotated[list[Message], Field(min_length=1, max_length=500)]


async def generate(question: str) -> AsyncIterator[str]:
    """Yield the words of an answer, as a language model would."""
    answer = (
        f"You wrote {len(question)} characters: “{question}”. I have no model, so I count. "
        + ", ".join(map(str, range(1, 101)))
        + ". That is all."
    )
    for word in answer.split(" "):
        await anyio.sleep(PAUSE)
        yield f"{word} "


@jobs.handler("answer", emit_every=0.02)
async def answer(chat: Chat, job: JobContext) -> AsyncIterator[Chunk]:
    """Answer the last message, as chunks of the AI SDK's UI message stream."""
    yield {"type": "start", "messageId": job.id}
    yield {"type": "text-start", "id": "text"}
    async for word in generate(text_of(chat.messages[-1])):
        yield {"type": "text-delta", "id": "text", "delta": word}
    yield {"type": "text-end", "id": "text"}
    yield {"type": "finish"}


def text_of(message: Message) -> str:
    """Return the text of a message."""
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")


async def stream(job_id: JobId) -> AsyncIterator[str]:
    """Yield the answer as Server-Sent Events: what exists of it, then each new chunk.

    If the process with the handler dies, the job runs again, and its answer begins anew.
    """
    [streams] = await jobs.outputs([job_id])
    attempt = streams[0].epoch if streams else 1
    async with aclosing(jobs.output(job_id)) as chunks:
        async for chunk in chunks:
            if chunk.epoch > attempt:
                yield event({"type": "error", "errorText": "It begins anew. Reload the page."})
                return
            if chunk.epoch == attempt:
                yield event(chunk.value)
    job = await jobs.get(job_id)
    if job is None or not job.status.terminal:
        yield event({"type": "error", "errorText": "The server stops. Reload the page."})
    elif job.status is JobStatus.CANCELLED:
        yield event({"type": "abort"})
    elif job.error is not None:
        yield event({"type": "error", "errorText": job.error.message})
    yield "data: [DONE]\n\n"


def event(chunk: Chunk) -> str:
    """Return one event."""
    return f"data: {json.dumps(chunk)}\n\n"


def streamed(job_id: JobId) -> StreamingResponse:
    """Return the response that streams an answer."""
    return StreamingResponse(stream(job_id), media_type="text/event-stream", headers=HEADERS)


async def visitor(request: Request) -> str | None:
    """Return the owner of chats: visitors see only their own."""
    return request.cookies.get("visitor")


async def known_visitor(owner: Annotated[str | None, Depends(visitor)]) -> str:
    """Return the owner; refuse a client without the page's cookie."""
    if owner is None:
        raise HTTPException(401)
    return owner


Visitor = Annotated[str, Depends(known_visitor)]


async def last_answer(chat_id: str, owner: str) -> Job | None:
    """Return the job of the last answer in a chat."""
    page = await jobs.list(Selection(user_id=owner, tag=f"chat:{chat_id}"), limit=1)
    return page.jobs[0] if page.jobs else None


app = FastAPI(title="Chat")
mount(app, jobs, prefix="/api/jobs", identify=visitor)


@app.post("/api/chat")
async def send(chat: Chat, owner: Visitor) -> Response:
    """Start an answer, and stream it."""
    options = EnqueueOptions(title=text_of(chat.messages[-1])[:200], tags=(f"chat:{chat.id}",))
    job = await jobs.enqueue(answer, chat, user_id=owner, options=options)
    return streamed(job.id)


@app.get("/api/chat/{chat_id}/stream")
async def resume(chat_id: ChatId, owner: Visitor) -> Response:
    """Stream the answer in progress, from its beginning; 204 if there is none."""
    job = await last_answer(chat_id, owner)
    if job is None or (job.completed_at and datetime.now(UTC) - job.completed_at > JUST_ENDED):
        return Response(status_code=204)
    return streamed(job.id)


@app.post("/api/chat/{chat_id}/stop", status_code=204)
async def stop(chat_id: ChatId, owner: Visitor) -> None:
    """Stop the answer in progress. A page that is closed does not stop it."""
    job = await last_answer(chat_id, owner)
    if job is not None:
        await jobs.cancel(job.id)


@app.get("/api/chat/{chat_id}")
async def messages(chat_id: ChatId, owner: Visitor) -> list[Message]:
    """Return the messages of a chat, without the answer in progress."""
    last = await last_answer(chat_id, owner)
    job = None if last is None else await jobs.get(last.id)
    if job is None:
        return []
    earlier = Chat.model_validate(job.payload).messages
    if not job.status.terminal:
        return earlier
    chunks = [chunk async for chunk in jobs.output(job.id)]
    last_ones = [chunk.value for chunk in chunks if chunk.epoch == chunks[-1].epoch]
    parts = [{"type": "text", "text": "".join(one.get("delta", "") for one in last_ones)}]
    return [*earlier, {"id": job.id, "role": "assistant", "parts": parts}]


@app.get("/", include_in_schema=False)
async def page(owner: Annotated[str | None, Depends(visitor)]) -> FileResponse:
    """Return the page, with a cookie for a new visitor."""
    response = FileResponse(PAGE / "index.html")
    if owner is None:
        response.set_cookie("visitor", secrets.token_urlsafe(), httponly=True, samesite="lax")
    return response


app.mount("/page", StaticFiles(directory=PAGE))
