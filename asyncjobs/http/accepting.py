"""What a submission says beside its payload, and where its answer leads."""

from __future__ import annotations

from dataclasses import replace

from asyncjobs.errors import InvalidCallback
from asyncjobs.http.messages import Headers, Request
from asyncjobs.http.mounts import Links
from asyncjobs.submission import EnqueueOptions


def options_of(
    request: Request, given: EnqueueOptions | None, *, callbacks: bool
) -> EnqueueOptions:
    """Read what the application has not decided; raise `InvalidCallback` where clients may not."""
    options = given or EnqueueOptions()
    if options.traceparent is None:
        options = replace(options, traceparent=request.headers.get("traceparent"))
    if options.callback_url is None:
        options = replace(options, callback_url=_callback_url(request, allowed=callbacks))
    return options


def where_to_follow(links: Links, *, replayed: bool) -> Headers:
    """Write the headers that lead to a job, whether it has ended by now or not."""
    return (
        ("Operation-Location", links.operation),
        ("Link", f'<{links.status}>; rel="monitor"'),
        *((("Idempotency-Replayed", "true"),) if replayed else ()),
    )


def _callback_url(request: Request, *, allowed: bool) -> str | None:
    """Read where a client wants to be told; who asks in vain must know that it has to poll."""
    url = request.headers.get("callback-url")
    if url is not None and not allowed:
        raise InvalidCallback("clients may not name one here")
    return url
