"""`list` and `show`: their output; they change nothing."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from asyncjobs import JobStatus
from asyncjobs.core import lifecycle
from asyncjobs.protocols import Selection
from asyncjobs.testing.samples import sample_error

if TYPE_CHECKING:
    from asyncjobs import Job
    from tests.cli.conftest import Do, Fill, Made, Shell


pytestmark = pytest.mark.every_store(without="memory")


async def all_of(store: Any) -> list[Job]:
    page = await store.list(Selection(), limit=1000)
    return list(await store.get([job.id for job in page.jobs]))


@pytest.fixture
def five(url: str, fill: Fill, made: Made) -> list[Job]:
    """Store a job of each status, oldest first."""
    jobs = [
        made(status, user_id=user, type=kind)
        for status, user, kind in zip(
            JobStatus,
            ("ann", "ann", "bob", None, "bob"),
            ("export", "mail", "export", "mail", "export"),
            strict=True,
        )
    ]
    fill(url, jobs)
    return jobs


def listed(asyncjobs: Shell, url: str, *words: str) -> list[str]:
    result = asyncjobs("list", "--json", "--store", url, *words)
    assert (result.exit_code, result.stderr) == (0, "")
    return [job["jobId"] for job in json.loads(result.stdout)["jobs"]]


def test_list_prints_the_newest_jobs_first_and_changes_nothing(
    asyncjobs: Shell, url: str, five: list[Job], do: Do[Any]
) -> None:
    before = do(url, all_of)
    newest_first = [job.id for job in reversed(five)]
    assert listed(asyncjobs, url) == newest_first
    table = asyncjobs("list", "--store", url).stdout.splitlines()
    assert [line.split()[0] for line in table[1:]] == newest_first
    asyncjobs("show", "--store", url, five[2].id)
    assert do(url, all_of) == before


def test_filters_select_by_owner_type_and_status(
    asyncjobs: Shell, url: str, five: list[Job]
) -> None:
    for option, value, places in (
        ("--user", "ann", [1, 0]),
        ("--type", "export", [4, 2, 0]),
        *(("--status", status.value, [place]) for place, status in enumerate(JobStatus)),
    ):
        assert listed(asyncjobs, url, option, value) == [five[place].id for place in places]
    assert listed(asyncjobs, url, "--user", "bob", "--status", "cancelled") == [five[4].id]
    failed = list(JobStatus).index(JobStatus.FAILED)
    assert listed(asyncjobs, url, "--failed") == [five[failed].id]
    assert listed(asyncjobs, url, "--failed", "--status", "failed") == [five[failed].id]
    assert listed(asyncjobs, url, "--failed", "--type", "export") == []


def test_jobs_are_selected_by_tag_and_shown_with_their_titles(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    described = {"given_title": "Customers\x1b[2J", "given_metadata_json": b'{"rows":[1,"a"]}'}
    tagged = made(tags=("customer:42", "monthly"), **described)
    other = made(tags=("monthly",))
    fill(url, [tagged, other])
    assert listed(asyncjobs, url, "--tag", "customer:42") == [tagged.id]
    assert listed(asyncjobs, url, "--tag", "monthly") == [other.id, tagged.id]
    assert listed(asyncjobs, url, "--tag", "monthly", "--user", "ann") == []
    heads, row = asyncjobs("list", "--tag", "customer:42", "--store", url).stdout.splitlines()
    assert heads.split()[:3] == ["id", "type", "title"]
    assert "Customers" in row
    assert "\x1b" not in row
    words = asyncjobs("list", "--json", "--tag", "customer:42", "--store", url).stdout
    [document] = json.loads(words)["jobs"]
    assert (document["title"], document["tags"]) == (tagged.title, ["customer:42", "monthly"])
    assert document["metadata"] == {"rows": [1, "a"]}
    sheet = asyncjobs("show", "--store", url, tagged.id).stdout
    assert "customer:42" in sheet
    assert '{"rows":[1,"a"]}' in sheet
    plain = asyncjobs("show", "--store", url, made_without(url, fill, made)).stdout
    assert not {"title", "tags", "metadata"} & {line.split()[0] for line in plain.splitlines()}


def made_without(url: str, fill: Fill, made: Made) -> str:
    """Store a job without title, tags and metadata; return its id."""
    job = made()
    fill(url, [job])
    return job.id


@pytest.mark.parametrize("command", ["list", "purge", "retry"])
def test_a_malformed_tag_is_refused(asyncjobs: Shell, url: str, command: str) -> None:
    result = asyncjobs(command, "--store", url, "--tag", " x")
    assert result.exit_code == 2
    assert "A tag must not" in result.stderr


def test_two_statuses_at_once_are_refused(asyncjobs: Shell, url: str) -> None:
    result = asyncjobs("list", "--store", url, "--failed", "--status", "completed")
    assert (result.exit_code, "--failed or --status" in result.stderr) == (2, True)


def test_a_page_continues_after_the_previous_page(
    asyncjobs: Shell, url: str, five: list[Job]
) -> None:
    first = asyncjobs("list", "--store", url, "--limit", "3")
    assert len(first.stdout.splitlines()) == 4
    cursor = first.stderr.split()[-1]
    rest = listed(asyncjobs, url, "--after", cursor, "--limit", "3")
    assert rest == [five[1].id, five[0].id]


def test_a_malformed_cursor_is_refused(asyncjobs: Shell, url: str, fill: Fill) -> None:
    fill(url, [])
    result = asyncjobs("list", "--store", url, "--after", "soon")
    assert (result.exit_code, "cursor" in result.stderr) == (1, True)


def test_show_prints_the_result_and_the_payload_only_on_request(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    job = made(JobStatus.COMPLETED, payload_json=b'{"secret":1}', result=b'{"rows":7}')
    fill(url, [job])
    sheet = asyncjobs("show", "--store", url, job.id)
    assert ("secret" in sheet.stdout, '{"rows":7}' in sheet.stdout) == (False, True)
    document = json.loads(asyncjobs("show", "--json", "--store", url, job.id).stdout)
    assert (document["result"], "payload" in document) == ({"rows": 7}, False)
    whole = json.loads(asyncjobs("show", "--json", "--payload", "--store", url, job.id).stdout)
    assert whole["payload"] == {"secret": 1}


def test_show_prints_the_error_of_each_attempt_newest_last(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    job = made(JobStatus.FAILED)
    hostile = sample_error(2).changed(message="row\x1b[2J 7", traceback="one\n  two\x1b[2J\nend\n")
    for error in (sample_error(1), hostile):
        job = lifecycle.note_error(job, error)
    fill(url, [job])
    sheet = asyncjobs("show", "--store", url, job.id).stdout
    assert "\x1b" not in sheet
    first = "attempt 1, 2030-01-01 12:00:00 UTC: ValueError: No such file: Grüße.csv"
    second = "attempt 2, 2030-01-01 12:00:00 UTC: ValueError: row [2J 7"
    lines = sheet.splitlines()
    assert lines[lines.index(first) + 1] == "    Traceback (most recent call last):"
    assert lines[lines.index(second) :] == [second, "    one", "      two [2J", "    end"]
    document = json.loads(asyncjobs("show", "--json", "--store", url, job.id).stdout)
    assert [error["attempt"] for error in document["attemptErrors"]] == [1, 2]
    assert document["attemptErrors"][1]["traceback"] == hostile.traceback
    assert set(document["attemptErrors"][0]) == {"attempt", "at", "type", "message", "traceback"}


def test_show_prints_no_errors_of_a_job_without_any(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    job = made(JobStatus.FAILED)
    fill(url, [job])
    assert "attempt 1" not in asyncjobs("show", "--store", url, job.id).stdout
    document = json.loads(asyncjobs("show", "--json", "--store", url, job.id).stdout)
    assert document["attemptErrors"] == []


def test_an_unknown_job_exits_with_4(asyncjobs: Shell, url: str, fill: Fill) -> None:
    fill(url, [])
    result = asyncjobs("show", "--store", url, "job_x")
    assert (result.exit_code, result.stderr) == (4, "Error: No job has the id 'job_x'.\n")


def test_json_output_has_the_member_names_of_the_http_api(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    job = made(JobStatus.PROCESSING)
    fill(url, [job])
    document = json.loads(asyncjobs("show", "--json", "--store", url, job.id).stdout)
    assert all(name.isalpha() and name[0].islower() for name in document)
    assert document["detail"]["message"] == "packing"
    assert (document["worker"], document["timeout"]) == ("host:1", 900)


def test_a_job_past_its_deadline_is_shown_as_failed(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    late = made(ago=timedelta(days=2), deadline=made().created_at - timedelta(days=1))
    fill(url, [late])
    document = json.loads(asyncjobs("show", "--json", "--store", url, late.id).stdout)
    assert (document["status"], document["errorCode"]) == ("failed", "deadline_exceeded")


def test_escape_sequences_of_users_are_not_printed(
    asyncjobs: Shell, url: str, fill: Fill, made: Made
) -> None:
    job = made(user_id="ann\x1b[2J\nbob")
    fill(url, [job])
    for words in (("list",), ("show", job.id)):
        out = asyncjobs(*words, "--store", url).stdout
        assert "\x1b" not in out
        assert "ann [2J bob" in out
