from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from hashlib import sha256
from html.parser import HTMLParser
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjobs import Job, JobError, JobStatus
from asyncjobs.core.job import Detail, JobFile
from asyncjobs.http.messages import Grant, Request, Response
from asyncjobs.http.mounts import JobLinks, Mount
from asyncjobs.http.pages import WORDS, problem_page, status_page, title_of
from asyncjobs.http.problems import problem
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, sample_file

Jobs = dict[JobStatus, Job]
Attributes = dict[str, str | None]

LIVE = {JobStatus.PENDING, JobStatus.PROCESSING}
VOID = {"meta", "link", "img", "input", "br"}
HOSTILE = "</title></style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """The elements of a response and the text of each, by `part` name or `<tag>`."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.texts: dict[str, str] = {}
        self.each: dict[str, list[str]] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(response.body.decode())
        self.close()
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            name = attributes.get("part") or f"<{tag}>"
            self._open.append((tag, name))
            self.each.setdefault(name, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, "elements are properly nested"

    def handle_data(self, data: str) -> None:
        name = self._open[-1][1] if self._open else ""
        self.texts[name] = self.texts.get(name, "") + data
        if name:
            self.each[name][-1] += data

    def text(self, name: str) -> str:
        return self.texts.get(name, "")

    def texts_of(self, name: str) -> list[str]:
        """Return the texts of all elements with this part."""
        return self.each.get(name, [])

    def all(self, tag: str) -> list[Attributes]:
        return [attributes for name, attributes in self.elements if name == tag]

    def part(self, name: str) -> Attributes | None:
        found = [each for _, each in self.elements if each.get("part") == name]
        return found[0] if found else None


def links_of(job: Job, base_url: str | None = None) -> JobLinks:
    return Mount(base_url=base_url).links(Request("GET"), job.id)


def answer(job: Job, retry_after: int | None = 3) -> Response:
    return status_page(job, links_of(job), retry_after=retry_after, now=NOW + timedelta(seconds=75))


def page_of(job: Job) -> Page:
    return Page(answer(job))


def refreshes(page: Page) -> list[str | None]:
    return [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "refresh"]


def policy_of(response: Response) -> dict[str, str]:
    policy = response.header("content-security-policy") or ""
    return dict(part.strip().split(" ", 1) for part in policy.split(";"))


def hash_of(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def test_a_page_shows_the_status_type_and_progress(job: Job) -> None:
    page = page_of(job)
    assert page.text("status") == WORDS[job.status]
    assert page.text("title") == "Export"
    waits = job.status is JobStatus.PENDING
    assert page.text("percent") == ("" if waits else f"{job.progress}%")
    assert (page.part("bar") or {})["value"] == str(job.progress)


def test_a_running_job_without_progress_has_a_bar_without_a_value(
    job_of_each_status: Jobs,
) -> None:
    running = job_of_each_status[JobStatus.PROCESSING]
    page = page_of(running.model_copy(update={"progress": 0}))
    assert "value" not in (page.part("bar") or {})
    assert (page.text("percent"), page.text("<title>")) == ("", "In progress · Export")


def test_every_status_has_a_label() -> None:
    assert [WORDS[status] for status in JobStatus] == [
        "Waiting",
        "In progress",
        "Completed",
        "Failed",
        "Cancelled",
    ]


@pytest.mark.parametrize(
    ("type", "shown"),
    [
        ("export", "Export"),
        ("export_customers", "Export customers"),
        ("export-customers", "Export customers"),
        ("shop.tasks.Export_Customers", "Shop tasks export customers"),
        ("exportCustomers", "Export customers"),
        ("print_PDF", "Print PDF"),
        ("iOS_build", "IOS build"),
        ("Kunden exportieren", "Kunden exportieren"),
        ("überweisen", "Überweisen"),
        ("__", "__"),
    ],
)
def test_the_heading_is_the_type_in_words(type: str, shown: str) -> None:
    page = page_of(sample_job(type=type))
    assert page.text("title") == shown
    assert page.text("<title>") == f"Waiting · {shown}"


def test_a_job_with_a_title_has_it_as_its_heading() -> None:
    page = page_of(sample_job(type="export_customers", given_title="Customers, März"))
    assert page.text("title") == "Customers, März"
    assert page.text("<title>") == "Waiting · Customers, März"
    assert "export_customers" in page.text("<code>")
    renamed = page_of(sample_job(given_title="Customers").changed(new_title="All customers"))
    assert renamed.text("title") == "All customers"


def test_tags_and_metadata_are_facts() -> None:
    metadata = b'{"file":"a.csv","rows":[1,2.5,"\xc3\xa9"],"on":true,"none":null,"text":""}'
    page = page_of(sample_job(tags=("customer:42", "monthly"), given_metadata_json=metadata))
    assert page.texts_of("tag") == ["customer:42", "monthly"]
    assert page.texts_of("name") == ["file", "rows", "on", "none", "text"]
    assert page.texts_of("value") == ["a.csv", '[1,2.5,"é"]', "true", "null", ""]
    plain = page_of(sample_job())
    assert plain.texts_of("tag") == plain.texts_of("name") == []


def test_hostile_tags_and_metadata_stay_text() -> None:
    def described(text: str) -> Page:
        text_json = json.dumps({text: text, "inner": {text: [text]}}).encode()
        return page_of(sample_job(tags=(text,), given_metadata_json=text_json))

    page = described(HOSTILE)
    assert page.texts_of("tag") == [HOSTILE]
    assert page.texts_of("name") == [HOSTILE, "inner"]
    inner = json.dumps({HOSTILE: [HOSTILE]}, separators=(",", ":"))
    assert page.texts_of("value") == [HOSTILE, inner]
    assert bones(page) == bones(described("plain"))


def test_the_title_shows_the_state(job_of_each_status: Jobs) -> None:
    titles = {status: page_of(job).text("<title>") for status, job in job_of_each_status.items()}
    assert titles == {
        JobStatus.PENDING: "Waiting · Export",
        JobStatus.PROCESSING: "50% · Export",
        JobStatus.COMPLETED: "Completed · Export",
        JobStatus.FAILED: "Failed · Export",
        JobStatus.CANCELLED: "Cancelled · Export",
    }


def test_a_page_is_only_refreshed_while_the_job_is_not_terminal(job: Job) -> None:
    response = answer(job, 3)
    live = job.status in LIVE
    assert refreshes(Page(response)) == (["3"] if live else [])
    assert response.header("retry-after") == ("3" if live else None)


def test_only_browsers_without_javascript_refresh_the_page(job_of_each_status: Jobs) -> None:
    text = answer(job_of_each_status[JobStatus.PENDING]).body.decode()
    assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in text


def test_without_retry_after_the_page_is_not_refreshed(job_of_each_status: Jobs) -> None:
    response = answer(job_of_each_status[JobStatus.PENDING], None)
    assert (refreshes(Page(response)), response.header("retry-after")) == ([], None)


def test_only_a_job_that_is_not_terminal_has_a_cancel_button(job: Job) -> None:
    forms = page_of(job).all("form")
    wanted = {"method": "post", "action": links_of(job).cancel, "part": "cancel"}
    assert forms == ([wanted] if job.status in LIVE else [])


def test_a_job_that_was_asked_to_stop_has_no_cancel_button(job_of_each_status: Jobs) -> None:
    running = job_of_each_status[JobStatus.PROCESSING]
    page = page_of(running.model_copy(update={"cancel_requested_at": NOW}))
    assert page.text("status") == "Stopping"
    assert page.text("<title>") == "Stopping · Export"
    assert page.all("form") == []


def test_the_result_is_linked_once_there_is_one(job: Job) -> None:
    links = page_of(job).all("a")
    if job.status in {JobStatus.FAILED, JobStatus.CANCELLED}:
        assert links == []
    else:
        [link] = links
        assert link["href"] == links_of(job).result
        assert ("hidden" in link) == (job.status is not JobStatus.COMPLETED)


def test_a_result_is_never_part_of_the_page(job_of_each_status: Jobs) -> None:
    job = job_of_each_status[JobStatus.COMPLETED]
    huge = job.model_copy(update={"result_json": b'"%s"' % (b"abc" * 100_000)})
    assert answer(huge).body == answer(job).body


def test_a_failed_job_shows_a_sentence_and_a_code(job: Job) -> None:
    page = page_of(job)
    failed = job.status is JobStatus.FAILED
    assert page.text("error") == ("The disk is full." if failed else "")
    assert page.text("code") == ("disk_full" if failed else "")


def test_progress_shows_its_message_and_count(job_of_each_status: Jobs) -> None:
    page = page_of(job_of_each_status[JobStatus.PROCESSING])
    assert (page.text("message"), page.text("count")) == ("writing", "1 of 2 rows")


def test_the_message_is_only_shown_while_the_job_runs(job: Job) -> None:
    message = "Uploading…" if job.status is JobStatus.PROCESSING else ""
    count = "" if job.status is JobStatus.PENDING else "1 of 2"
    detail = Detail(message="Uploading…", current=1, total=2)
    page = page_of(job.model_copy(update={"detail": detail}))
    assert (page.text("message"), page.text("count")) == (message, count)


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        (Detail(), ""),
        (Detail(total=9), ""),
        (Detail(current=0), "0"),
        (Detail(current=12345, unit="rows"), "12,345 rows"),
        (Detail(current=1000, total=2000), "1,000 of 2,000"),
        (Detail(current=2000, total=2000, unit="rows"), "2,000 rows"),
    ],
)
def test_counts_are_shown_as_far_as_they_are_known(
    job_of_each_status: Jobs, detail: Detail, shown: str
) -> None:
    running = job_of_each_status[JobStatus.PROCESSING]
    assert page_of(running.model_copy(update={"detail": detail})).text("count") == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "under 1 s"),
        (0.9, "under 1 s"),
        (1, "1 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600 + 59, "1 h"),
        (7380.5, "2 h 3 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(
    job_of_each_status: Jobs, seconds: float, shown: str
) -> None:
    times = {"started_at": NOW, "completed_at": NOW + timedelta(seconds=seconds)}
    job = job_of_each_status[JobStatus.COMPLETED].model_copy(update=times)
    assert page_of(job).text("elapsed") == f"Took {shown}"


def test_time_elapses_while_a_job_runs(job_of_each_status: Jobs) -> None:
    elapsed = {status: page_of(job).text("elapsed") for status, job in job_of_each_status.items()}
    assert elapsed == {
        JobStatus.PENDING: "",
        JobStatus.PROCESSING: "1 min 15 s, longer than usual",
        JobStatus.COMPLETED: "Took 3 s",
        JobStatus.FAILED: "Took 3 s",
        JobStatus.CANCELLED: "",
    }


def test_a_job_that_waits_for_its_next_attempt_does_not_run(job_of_each_status: Jobs) -> None:
    running = job_of_each_status[JobStatus.PROCESSING]
    waiting = running.model_copy(update={"status": JobStatus.PENDING, "attempt": 2})
    page = page_of(waiting)
    assert (page.text("elapsed"), page.text("attempt")) == ("", "2")
    assert (page.text("percent"), page.text("count")) == ("", "")
    assert (page.part("bar") or {})["value"] == "0"


def test_without_a_server_time_no_elapsed_time_is_shown(job_of_each_status: Jobs) -> None:
    job = job_of_each_status[JobStatus.PROCESSING]
    page = Page(status_page(job, links_of(job), retry_after=2))
    [main] = page.all("main")
    assert (page.text("elapsed"), main["data-now"]) == ("", "")


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (None, "1 min 15 s"),
        (89.2, "1 min 15 s of about 1 min 30 s"),
        (75, "1 min 15 s of about 1 min 15 s"),
        (74.9, "1 min 15 s, longer than usual"),
        (0.009, "1 min 15 s, longer than usual"),
    ],
)
def test_an_estimate_is_shown_until_it_is_overrun(
    job_of_each_status: Jobs, estimate: float | None, shown: str
) -> None:
    usual = None if estimate is None else timedelta(seconds=estimate)
    running = job_of_each_status[JobStatus.PROCESSING]
    page = page_of(running.model_copy(update={"estimated_duration": usual}))
    assert page.text("elapsed") == shown


def test_times_are_readable_by_people_and_programs(job_of_each_status: Jobs) -> None:
    page = page_of(job_of_each_status[JobStatus.COMPLETED])
    assert page.text("created") == "2030-01-01 12:00:00 UTC"
    assert (page.part("completed") or {})["datetime"] == "2030-01-01T12:00:03.123456Z"
    assert "datetime" not in (page_of(sample_job()).part("completed") or {})


def test_details_for_support_are_collapsed(job: Job) -> None:
    shown, _, folded = answer(job).body.decode().partition("<details>")
    for technical in (f"<code>{job.id}</code>", f"<code>{job.trace_id}</code>"):
        assert technical in folded
        assert technical not in shown


def test_links_may_be_absolute(job_of_each_status: Jobs) -> None:
    job = job_of_each_status[JobStatus.PROCESSING]
    links = links_of(job, "https://api.example.com")
    [main] = Page(status_page(job, links, retry_after=2)).all("main")
    assert main["data-status-url"] == f"https://api.example.com/api/jobs/{job.id}"
    assert main["data-events-url"] == f"https://api.example.com/api/jobs/{job.id}/events"


def test_a_page_is_neither_stored_nor_sniffed_nor_framed(job: Job) -> None:
    response = answer(job)
    assert response.status == 200
    assert response.header("content-type") == "text/html; charset=utf-8"
    assert response.header("cache-control") == "no-store"
    assert response.header("vary") == "Accept, Prefer"
    assert response.header("x-content-type-options") == "nosniff"
    assert response.header("referrer-policy") == "same-origin"


def test_only_the_hashed_script_and_style_are_allowed(job: Job) -> None:
    response = answer(job)
    page = Page(response)
    assert policy_of(response) == {
        "default-src": "'none'",
        "script-src": hash_of(page.text("<script>")),
        "style-src": hash_of(page.text("<style>")),
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }


def test_the_script_is_small(job: Job) -> None:
    assert 1000 < len(page_of(job).text("<script>")) < 15_000


def test_no_element_has_an_inline_style_a_handler_or_an_asset(job: Job) -> None:
    for _, attributes in page_of(job).elements:
        assert not {"style", "src", "srcset"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]


TEXTS: dict[str, Callable[[Job, str], Job]] = {
    "title": lambda job, text: job.changed(new_title=text),
    "type": lambda job, text: job.model_copy(update={"type": text}),
    "message": lambda job, text: job.model_copy(update={"detail": Detail(message=text)}),
    "error": lambda job, text: _failed(job, JobError(code="code", message=text)),
    "code": lambda job, text: _failed(job, JobError(code=text, message="message")),
}


def _failed(job: Job, error: JobError) -> Job:
    return job.model_copy(update={"error": error})


def shown(where: str, text: str, job: Job) -> str:
    if where == "message" and job.status is not JobStatus.PROCESSING:
        return ""
    if where == "title":
        return text or "Export"  # no job has an empty title
    return title_of(text) if where == "type" else text


def part_of(where: str) -> str:
    return "title" if where == "type" else where


def bones(page: Page) -> list[tuple[str, set[str]]]:
    return [(tag, set(attributes)) for tag, attributes in page.elements]


@pytest.mark.parametrize("where", TEXTS)
def test_hostile_text_stays_text(job: Job, where: str) -> None:
    page = page_of(TEXTS[where](job, HOSTILE))
    assert page.text(part_of(where)) == shown(where, HOSTILE, job)
    assert bones(page) == bones(page_of(job))


def test_hostile_units_traces_and_links_stay_text(job: Job) -> None:
    waits = job.status is JobStatus.PENDING
    detail = Detail(current=1, unit=HOSTILE)
    odd = job.model_copy(update={"detail": detail, "trace_id": HOSTILE})
    links = JobLinks(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    page = Page(status_page(odd, links, retry_after=3, now=NOW))
    assert page.text("count") == ("" if waits else f"1 {HOSTILE}")
    assert [main["data-events-url"] for main in page.all("main")] == [HOSTILE]
    assert bones(page) == bones(page_of(job))


@given(
    text=st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])),
    where=st.sampled_from(sorted(TEXTS)),
)
def test_any_text_is_shown_as_it_is_written(text: str, where: str) -> None:
    page = page_of(TEXTS[where](sample_job(), text))
    assert page.text(part_of(where)) == shown(where, text, sample_job())
    assert bones(page) == bones(page_of(sample_job()))


def test_a_lone_surrogate_is_replaced() -> None:
    assert page_of(sample_job().model_copy(update={"type": "a\ud800b"})).text("title") == "A?b"


def test_progress_has_a_name_and_changes_are_announced(job: Job) -> None:
    page = page_of(job)
    [html] = page.all("html")
    progress, announced = page.part("bar") or {}, page.part("announced") or {}
    assert html["lang"] == "en"
    assert (progress["aria-label"], progress["max"]) == ("Progress", "100")
    assert (announced["role"], announced["aria-live"]) == ("status", "polite")


PROBLEMS = {
    HTTPStatus.UNAUTHORIZED: "Not signed in",
    HTTPStatus.FORBIDDEN: "Forbidden",
    HTTPStatus.NOT_FOUND: "Job not found",
    HTTPStatus.GONE: "No result",
    HTTPStatus.FAILED_DEPENDENCY: "The job has failed",
    HTTPStatus.TOO_MANY_REQUESTS: "Not available at the moment",
    HTTPStatus.SERVICE_UNAVAILABLE: "Not available at the moment",
}


@pytest.mark.parametrize("status", PROBLEMS)
def test_a_problem_is_a_page_with_the_status_and_headers_of_the_problem(
    status: HTTPStatus,
) -> None:
    given = problem(status, "code", HOSTILE, headers=(("Retry-After", "7"), ("Allow", "GET")))
    response = problem_page(given, None)
    page = Page(response)
    assert (response.status, page.text("<title>")) == (status, PROBLEMS[status])
    assert page.text("<h1>") == PROBLEMS[status]
    assert refreshes(page) == ["7"]
    assert (response.header("retry-after"), response.header("allow")) == ("7", "GET")
    assert response.header("content-type") == "text/html; charset=utf-8"
    assert policy_of(response)["default-src"] == "'none'"
    assert (page.all("script"), page.all("a"), page.all("img")) == ([], [], [])
    assert len({name for name, _ in response.headers}) == len(response.headers)


@pytest.mark.parametrize("status", PROBLEMS)
def test_the_page_of_a_problem_with_a_job_leads_to_the_job(status: HTTPStatus) -> None:
    links = links_of(sample_job())
    page = Page(problem_page(problem(status, "code", "No."), links))
    known = status != HTTPStatus.NOT_FOUND
    assert [link["href"] for link in page.all("a")] == ([links.status] if known else [])


def test_only_problems_become_pages() -> None:
    other = Response(404, (("Content-Type", "text/plain"),), b"No.")
    assert problem_page(other, None) is other


def test_a_page_links_to_each_file_that_is_stored() -> None:
    job = sample_job()
    file = sample_file(job, name='<b>"&.csv', size=13_237_598)
    pending = JobFile(name="next.csv", key=f"{job.id}/1-b")
    page = page_of(job.changed(files=(file, pending)))
    [link] = [one for one in page.all("a") if "download" in one]
    assert link["download"] == file.name
    assert str(link["href"]).endswith(f"/{job.id}/files/%3Cb%3E%22%26.csv")
    assert page.text("size") == "13 MB"


def test_the_script_knows_where_output_is_unless_the_token_does_not_allow_it() -> None:
    job = sample_job()
    url = '/api/jobs/x?"<'
    shown = partial(status_page, job, links_of(job), retry_after=2)
    for grant in (None, Grant(job.id, None, ("read", "output"))):
        [main] = Page(shown(output=url, grant=grant)).all("main")
        assert main["data-output-url"] == url
    for page in (shown(), shown(output=url, grant=Grant(job.id, None, ("read",)))):
        assert "data-output-url" not in Page(page).all("main")[0]
