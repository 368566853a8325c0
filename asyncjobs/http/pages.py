"""The status of a job as a page for people: live by events, and without JavaScript by refresh.

The page is complete as the server renders it. Its script only fills in anew what is marked by
`data-is`; all words it needs are in `data-` attributes, so that they are written here alone.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from http import HTTPStatus
from importlib.resources import files
from math import ceil
from typing import assert_never

from asyncjobs.core.job import Detail, Job, JobStatus
from asyncjobs.http.messages import Headers, Response
from asyncjobs.http.mounts import JobLinks


def _word(status: JobStatus) -> str:
    match status:
        case JobStatus.PENDING:
            return "Waiting"
        case JobStatus.PROCESSING:
            return "In progress"
        case JobStatus.COMPLETED:
            return "Completed"
        case JobStatus.FAILED:
            return "Failed"
        case JobStatus.CANCELLED:
            return "Cancelled"
        case _:
            assert_never(status)


#: What the page shows for each state: a status, or a running job that was asked to stop.
WORDS: Mapping[str, str] = {
    **{status: _word(status) for status in JobStatus},
    "stopping": "Stopping",
}

_NOTES: Mapping[str, str] = {
    "lost": "The server cannot be reached. Trying again.",
    "gone": "The job cannot be read any more.",
    "uncancelled": "The job could not be cancelled. Please try again.",
}

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def status_page(
    job: Job, links: JobLinks, *, retry_after: int | None, now: datetime | None = None
) -> Response:
    """Show a job; `retry_after` is when a page without JavaScript asks again, in seconds.

    From `now` on the page counts the time that has elapsed; without it, by the reader's own clock.
    """
    again = None if job.status.terminal else retry_after
    pace = () if again is None else (("Retry-After", str(again)),)
    page = _page(job, links, again, now)
    # A lone surrogate in a job's text must not cost the whole page.
    return Response(HTTPStatus.OK, (*_HEADERS, *pace), page.encode("utf-8", "replace"))


def _asset(name: str) -> str:
    """Read a file beside this module with the line ends that browsers hash: bare line feeds."""
    return (files("asyncjobs.http") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_STYLE, _SCRIPT = _asset("page.css"), _asset("page.js")

_POLICY = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_HEADERS: Headers = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Vary", "Accept, Prefer"),
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    # Not `no-referrer`: by that, a form is sent with `Origin: null` (Fetch, section 3.2), and over
    # plain HTTP, where no Sec-Fetch-Site is sent, the Cancel button would be refused as cross-site.
    ("Referrer-Policy", "same-origin"),
)


def _page(job: Job, links: JobLinks, again: int | None, now: datetime | None) -> str:
    refresh = "" if again is None else f'<meta http-equiv="refresh" content="{again}">'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{escape(_title(job))}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<noscript>{refresh}</noscript>
<style>{_STYLE}</style>
</head>
<body>
<main {_data(job, links, again, now)}>
{_heading(job)}
{_outcome(job, links)}
{_facts(job, now)}
</main>
<script type="module">{_SCRIPT}</script>
</body>
</html>
"""


def _data(job: Job, links: JobLinks, again: int | None, now: datetime | None) -> str:
    values = {
        "state": _state(job),
        "status-url": links.status,
        "events-url": links.events,
        "retry-after": "" if again is None else str(again),
        "now": _iso(now),
        **WORDS,
        **_NOTES,
    }
    return " ".join(f'data-{name}="{escape(value)}"' for name, value in values.items())


def _heading(job: Job) -> str:
    detail = job.detail or Detail()
    return f"""<header>
<h1 dir="auto" data-is="type">{escape(job.type)}</h1>
<p class="status" tabindex="-1" data-is="status">{WORDS[_state(job)]}</p>
</header>
<p class="pair"><label for="progress">Progress</label>
<span data-is="percent">{job.progress}%</span></p>
<progress id="progress" max="100" value="{job.progress}" data-is="progress"></progress>
<p class="pair detail"><span dir="auto" data-is="message">{escape(detail.message or "")}</span>
<span dir="auto" data-is="count">{escape(_count(detail))}</span></p>
<p class="announced" role="status" aria-live="polite" data-is="announced"></p>"""


def _outcome(job: Job, links: JobLinks) -> str:
    error = ("", "") if job.error is None else (job.error.message, job.error.code)
    return f"""<div class="error">
<p dir="auto" data-is="error">{escape(error[0])}</p>
<p><code data-is="code">{escape(error[1])}</code></p>
</div>
<p class="note" role="alert" data-is="note"></p>
<div class="actions">
{_result(job, links)}{_cancel(job, links)}
</div>"""


def _result(job: Job, links: JobLinks) -> str:
    match job.status:
        case JobStatus.PENDING | JobStatus.PROCESSING:
            hidden = " hidden"  # the script shows it
        case JobStatus.COMPLETED:
            hidden = ""
        case JobStatus.FAILED | JobStatus.CANCELLED:
            return ""
        case _:
            assert_never(job.status)
    return f'<a class="button" href="{escape(links.result)}" data-is="result"{hidden}>Result</a>'


def _cancel(job: Job, links: JobLinks) -> str:
    if job.status.terminal or job.cancel_requested_at is not None:
        return ""
    return (
        f'<form method="post" action="{escape(links.cancel)}" data-is="cancel">'
        '<button class="button">Cancel</button></form>'
    )


def _facts(job: Job, now: datetime | None) -> str:
    rows = (
        ("Elapsed", f'<dd data-is="elapsed">{_elapsed(job, now)}</dd>'),
        ("Estimated", f"<dd>{_estimate(job)}</dd>"),
        ("Attempt", f'<dd data-is="attempt">{job.attempt if job.attempt > 1 else ""}</dd>'),
        ("Created", f"<dd>{_time('created', job.created_at)}</dd>"),
        ("Started", f"<dd>{_time('started', job.started_at)}</dd>"),
        ("Finished", f"<dd>{_time('completed', job.completed_at)}</dd>"),
        ("Job", f"<dd><code>{escape(job.id)}</code></dd>"),
        ("Trace", f"<dd><code>{escape(job.trace_id)}</code></dd>"),
    )
    # What is empty is not shown: that is the style sheet's part, since the script may fill it.
    listed = "\n".join(f"<div><dt>{name}</dt>{row}</div>" for name, row in rows)
    return f"<dl>\n{listed}\n</dl>"


def _state(job: Job) -> str:
    if job.cancel_requested_at is not None and not job.status.terminal:
        return "stopping"
    return job.status


def _title(job: Job) -> str:
    running = _state(job) == JobStatus.PROCESSING
    return f"{f'{job.progress}%' if running else WORDS[_state(job)]} · {job.type}"


def _count(detail: Detail) -> str:
    if detail.current is None:
        return ""
    total = "" if detail.total is None else f" of {detail.total:,}"
    return f"{detail.current:,}{total} {detail.unit or ''}".rstrip()


def _estimate(job: Job) -> str:
    if job.estimated_duration is None:
        return ""
    return f"about {_spelt(ceil(job.estimated_duration.total_seconds()))}"


def _elapsed(job: Job, now: datetime | None) -> str:
    match job.status:
        case JobStatus.PENDING:
            until = None  # it may have begun, but waits for its next attempt
        case JobStatus.PROCESSING:
            until = now
        case JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.CANCELLED:
            until = job.completed_at
        case _:
            assert_never(job.status)
    if job.started_at is None or until is None:
        return ""
    return _spelt(int((until - job.started_at).total_seconds()))


def _spelt(seconds: int) -> str:
    """Write a duration in its two largest units."""
    if seconds < 1:
        return "under 1 s"
    first = next(place for place, (size, _) in enumerate(_UNITS) if seconds >= size)
    words: list[str] = []
    for size, unit in _UNITS[first : first + 2]:
        count, seconds = divmod(seconds, size)
        words += [f"{count} {unit}"] if count else []
    return " ".join(words)


def _time(name: str, moment: datetime | None) -> str:
    if moment is None:
        return f'<time data-is="{name}"></time>'
    shown = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f'<time data-is="{name}" datetime="{_iso(moment)}">{shown}</time>'


def _iso(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
