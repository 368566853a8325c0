"""Pages for people: the status of a job, and problems.

The status page is complete as the server renders it; without JavaScript it is refreshed. Its script
updates the elements with a `part`. It shares texts and style with `<async-job>`: both are in
`browser/look.js`.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from http import HTTPStatus
from importlib.resources import files
from math import ceil
from typing import assert_never

from pydantic import JsonValue

from asyncjobs.core.files import listed_files
from asyncjobs.core.job import RESERVED_PREFIX, BatchCounts, Detail, Job, JobStatus
from asyncjobs.http.messages import Grant, Headers, Response
from asyncjobs.http.mounts import JobLinks


def _asset(folder: str, name: str) -> str:
    # Browsers hash scripts with LF line ends; reading as text converts all line ends to LF.
    return (files("asyncjobs") / folder / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Look:
    """The style, script and texts shared with the element; see `browser/look.js`."""

    words: Mapping[str, str]
    style: str
    script: str


def _look() -> _Look:
    text = _asset("browser", "look.js")
    _, _, after_words = text.partition("export const WORDS = ")
    words, _, _ = after_words.partition(";\n")
    before_style, _, after_style = text.partition("export const STYLE = `")
    style, _, rest = after_style.partition("`;\n")
    # The page's script is inline: a policy that names its hash allows no other script.
    script = (before_style + rest).replace("\nexport ", "\n")
    return _Look(json.loads(words), style, script)


_LOOK = _look()

#: The texts of page and element: for each status, and for a job that was asked to stop.
WORDS = _LOOK.words

_STYLE = _LOOK.style + _asset("http", "page.css")
_SCRIPT = _LOOK.script + _asset("http", "page.js")

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


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
    # Not `no-referrer`: forms would be sent with `Origin: null` (Fetch, section 3.2). Over plain
    # HTTP, which has no Sec-Fetch-Site, the Cancel button would then be refused as cross-site.
    ("Referrer-Policy", "same-origin"),
)


def status_page(
    job: Job,
    links: JobLinks,
    *,
    retry_after: int | None,
    now: datetime | None = None,
    grant: Grant | None = None,
    output: str | None = None,
) -> Response:
    """Return the page of a job.

    `retry_after` is the delay in seconds before a page without JavaScript reloads. The elapsed time
    counts from `now`; without it, from the reader's own clock. `grant` is what the token in the
    page's URL allows: then the script takes the token from there. `output` is the URL of what the
    job may emit, which the script shows if it is text.
    """
    again = None if job.status.terminal else retry_after
    pace = () if again is None else (("Retry-After", str(again)),)
    refresh = (
        ""
        if again is None
        else f'<noscript><meta http-equiv="refresh" content="{again}"></noscript>'
    )
    data = _data(job, links, again, now, grant) + _data_of_output(output, grant)
    body = f"""<main class="job" {data}>
{_heading(job, now)}
{_outcome(job, links, grant)}
{_batch(job, links)}{_facts(job)}
</main>
<script type="module">{_SCRIPT}</script>"""
    return Response(HTTPStatus.OK, (*_HEADERS, *pace), _document(_title(job), refresh, body))


def problem_page(answer: Response, links: JobLinks | None) -> Response:
    """Return a problem as a page; return any other answer unchanged.

    `links` are those of the job if the problem's URL is below the job's own.
    """
    if answer.header("Content-Type") != "application/problem+json":
        return answer
    problem = json.loads(answer.body)
    title, sentence = _explained(HTTPStatus(answer.status), problem["error"])
    body = f'<h1>{escape(title)}</h1>\n<p class="problem" dir="auto">{escape(sentence)}</p>'
    head, seconds = "", answer.header("Retry-After")
    if links is None and seconds is not None:
        head = f'<meta http-equiv="refresh" content="{escape(seconds)}">'
        body += '\n<p class="problem">This page reloads automatically.</p>'
    elif links is not None and answer.status != HTTPStatus.NOT_FOUND:
        back = f'<a class="button" href="{escape(links.status)}">Show the job</a>'
        body += f'\n<div part="actions">{back}</div>'
    kept = [pair for pair in answer.headers if pair[0] not in dict(_HEADERS)]
    page = _document(title, head, f'<main class="job">\n{body}\n</main>')
    return Response(answer.status, (*_HEADERS, *kept), page)


def _explained(status: HTTPStatus, sentence: str) -> tuple[str, str]:
    """Return a title and a sentence for people."""
    match status:
        case HTTPStatus.NOT_FOUND:
            return "Job not found", (
                "It may have been deleted some time after its end, the link may be incomplete, or "
                "the job belongs to another account. If it is yours, sign in and open the link "
                "again."
            )
        case HTTPStatus.UNAUTHORIZED:
            return "Not signed in", (
                f"{sentence} A link with a token opens the job for some minutes: get a new one, "
                "or sign in and open the job there."
            )
        case HTTPStatus.GONE:
            return "No result", sentence
        case HTTPStatus.FAILED_DEPENDENCY:
            return "The job has failed", sentence
        case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
            return "Not available at the moment", sentence
        case _:
            return status.phrase, sentence


def _document(title: str, head: str, body: str) -> bytes:
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
{head}
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""
    # A lone surrogate in a job's text must not prevent the whole page.
    return text.encode("utf-8", "replace")


def _data(
    job: Job, links: JobLinks, again: int | None, now: datetime | None, grant: Grant | None
) -> str:
    usual = job.estimated_duration
    shown = {
        "status": job.status,
        "progress": job.progress,
        "error": job.error and job.error.message,
        "startedAt": _iso(job.started_at),
        "completedAt": _iso(job.completed_at),
        "cancelRequestedAt": _iso(job.cancel_requested_at),
        "estimatedDuration": usual and usual.total_seconds(),
    }
    values = {
        "state": _state(job),
        "status-url": links.status,
        "events-url": links.events,
        "retry-after": "" if again is None else str(again),
        "now": _iso(now),
        "job": json.dumps(shown),
        **({} if grant is None else {"token-url": links.token}),
    }
    return " ".join(f'data-{name}="{escape(value)}"' for name, value in values.items())


def _data_of_output(output: str | None, grant: Grant | None) -> str:
    if output is None or (grant is not None and "output" not in grant.scopes):
        return ""
    return f' data-output-url="{escape(output)}"'


def _heading(job: Job, now: datetime | None) -> str:
    detail = job.detail or Detail()
    works = job.status is JobStatus.PROCESSING
    # The progress of a failed attempt does not apply to the next one.
    waits = job.status is JobStatus.PENDING
    # Some handlers report no progress: a constant 0 % would look like a stuck job.
    silent = works and not job.progress
    percent = "" if silent or waits else f"{job.progress}%"
    value = "" if silent else f' value="{0 if waits else job.progress}"'
    message = (detail.message or "") if works else ""
    count = "" if waits else _count(detail)
    return f"""<h1 dir="auto" part="title">{escape(heading_of(job))}</h1>
<p class="row"><span part="status" tabindex="-1">{WORDS[_state(job)]}</span>
<span part="percent">{percent}</span></p>
<progress part="bar" aria-label="{WORDS["progress"]}" max="100"{value}></progress>
<p part="message" dir="auto">{escape(message)}</p>
<p class="row"><span part="elapsed">{_elapsed(job, now)}</span>
<span part="count" dir="auto">{escape(count)}</span></p>"""


def _outcome(job: Job, links: JobLinks, grant: Grant | None) -> str:
    error = "" if job.error is None else job.error.message
    return f"""<p part="announced" role="status" aria-live="polite"></p>
<p part="error" dir="auto">{escape(error)}</p>
<p part="note" role="alert"></p>
<div part="actions">
{_result(job, links)}{_cancel(job, links, grant)}
</div>
<pre part="output" dir="auto" tabindex="0" aria-label="Output"></pre>
<ul part="files">{_files(job, links)}</ul>"""


def _files(job: Job, links: JobLinks) -> str:
    return "".join(
        f'<li><a href="{escape(links.file(one.name))}" download="{escape(one.name)}" dir="auto">'
        f'{escape(one.name)}</a><span part="size">{_bytes(one.size or 0)}</span></li>'
        for one in listed_files(job.files)
    )


def _bytes(size: int) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:  # as in the script
            return f"{size} {unit}"
        size //= 1000
    return f"{size:,} GB"


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
    address = escape(links.result)
    return f'<a class="button main" href="{address}" part="result"{hidden}>{WORDS["result"]}</a>'


def _cancel(job: Job, links: JobLinks, grant: Grant | None) -> str:
    if job.status.terminal or job.cancel_requested_at is not None:
        return ""
    if grant is not None and "cancel" not in grant.scopes:
        return ""
    # A form cannot send the token, so it is the script that shows the button.
    hidden = "" if grant is None else " hidden"
    return (
        f'<form method="post" action="{escape(links.cancel)}" part="cancel"{hidden}>'
        f'<button class="button">{WORDS["cancel"]}</button></form>'
    )


def _batch(job: Job, links: JobLinks) -> str:
    """Return the jobs of a batch by status, and the first that failed; empty for other jobs."""
    counts = job.counts
    if counts is None:
        return ""
    waiting = counts.total - counts.processing - counts.ended
    rows = tuple(
        (WORDS[status], f'<span part="jobs-{status}">{f"{number:,}" if number else ""}</span>')
        for status, number in (("pending", waiting), *_by_status(counts))
    )
    failures = "\n".join(
        f'<li><a href="{escape(links.status.replace(job.id, one.job_id))}" dir="auto">'
        f"{escape(one.message)}</a></li>"
        for one in counts.failures
    )
    return f"""{_list(rows)}
<ul part="failures">{failures}</ul>
"""


def _by_status(counts: BatchCounts) -> tuple[tuple[JobStatus, int], ...]:
    return (
        (JobStatus.PROCESSING, counts.processing),
        (JobStatus.COMPLETED, counts.completed),
        (JobStatus.FAILED, counts.failed),
        (JobStatus.CANCELLED, counts.cancelled),
    )


def _facts(job: Job) -> str:
    code = "" if job.error is None else job.error.code
    times = (
        ("Created", _time("created", job.created_at)),
        ("Started", _time("started", job.started_at)),
        ("Finished", _time("completed", job.completed_at)),
        ("Attempt", f'<span part="attempt">{job.attempt if job.attempt > 1 else ""}</span>'),
    )
    technical = (
        ("Type", f"<code>{escape(job.type)}</code>"),
        ("Job", f"<code>{escape(job.id)}</code>"),
        ("Trace", f"<code>{escape(job.trace_id)}</code>"),
        ("Error code", f'<code part="code">{escape(code)}</code>'),
    )
    tags = "".join(f'<span part="tag" dir="auto">{escape(tag)}</span>' for tag in job.tags)
    described = _list((("Tags", tags),)) + "\n" if tags else ""
    return f"""{_list(times)}
{described}<dl part="metadata">{_metadata(job)}</dl>
<details><summary>Technical details</summary>
{_list(technical)}
</details>"""


def _metadata(job: Job) -> str:
    """Return a row for each member of the metadata: texts as they are, other values as JSON."""
    return "".join(
        f'<div><dt part="name" dir="auto">{escape(name)}</dt>'
        f'<dd part="value" dir="auto">{escape(_shown(value))}</dd></div>'
        for name, value in job.metadata.items()
    )


def _shown(value: JsonValue) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _list(rows: tuple[tuple[str, str], ...]) -> str:
    # The style sheet hides empty rows: the script may fill them.
    listed = "\n".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<dl>\n{listed}\n</dl>"


def _state(job: Job) -> str:
    if job.cancel_requested_at is not None and not job.status.terminal:
        return "stopping"
    return job.status


def heading_of(job: Job) -> str:
    """Return what people see as the job's name: its title, else its type in words."""
    return job.title or title_of(job.type)


_BETWEEN_WORDS = re.compile(r"[\s._:/-]+|(?<=[a-z0-9])(?=[A-Z][a-z])")


def title_of(type: str) -> str:
    """Return the type of a job in words: "Export customers" for `export_customers`."""
    own = type.removeprefix(RESERVED_PREFIX)  # "Batch" for the type of batches
    words = [word for word in _BETWEEN_WORDS.split(own) if word]
    if not words:
        return type
    first, *others = words
    # Abbreviations keep their case: "PDF", "iOS".
    lower = [word.lower() if word.istitle() else word for word in others]
    return " ".join((first[:1].upper() + first[1:], *lower))


def _title(job: Job) -> str:
    running = _state(job) == JobStatus.PROCESSING and job.progress
    return f"{f'{job.progress}%' if running else WORDS[_state(job)]} · {heading_of(job)}"


def _count(detail: Detail) -> str:
    if detail.current is None:
        return ""
    whole = detail.total is None or detail.total == detail.current
    total = "" if whole else f" {WORDS['of']} {detail.total:,}"
    return f"{detail.current:,}{total} {detail.unit or ''}".rstrip()


def _elapsed(job: Job, now: datetime | None) -> str:
    match job.status:
        case JobStatus.PENDING:
            return ""  # it may have begun before, but waits for its next attempt
        case JobStatus.PROCESSING:
            until = now
        case JobStatus.COMPLETED | JobStatus.FAILED | JobStatus.CANCELLED:
            until = job.completed_at
        case _:
            assert_never(job.status)
    if job.started_at is None or until is None:
        return ""
    seconds = (until - job.started_at).total_seconds()
    spelt = _spelt(int(seconds))
    if job.status.terminal:
        return f"{WORDS['took']} {spelt}"
    if job.estimated_duration is None:
        return spelt
    usual = job.estimated_duration.total_seconds()
    if seconds > usual:
        return f"{spelt}, {WORDS['overrun']}"
    return f"{spelt} {WORDS['about']} {_spelt(ceil(usual))}"


def _spelt(seconds: int) -> str:
    """Format a duration in its two largest units."""
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
        return f'<time part="{name}"></time>'
    shown = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f'<time part="{name}" datetime="{_iso(moment)}">{shown}</time>'


def _iso(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
