"""Downloads: ranges, conditions and headers of a file (RFC 9110, 6266, 8187, 9530)."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from email.message import Message
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
from anyio import from_thread
from hypothesis import example, given
from hypothesis import strategies as st

from asyncjobs import AsyncJobs, JobContext, JobId, Retry
from asyncjobs.core.files import check_file_name, media_type_of
from asyncjobs.core.job import Job, JobFile
from asyncjobs.files import FolderStorage
from asyncjobs.http.endpoints import Endpoints
from asyncjobs.http.files import disposition_of, part_of, range_of
from asyncjobs.http.messages import Request, Response, StreamingResponse
from asyncjobs.http.mounts import Mount, MountOptions
from asyncjobs.testing import sample_job
from asyncjobs.testing.samples import NOW, sample_file
from tests.http.mounted import document
from tests.queues import QUICK

TEXT = bytes(range(256)) * 4
SIZE = len(TEXT)
FILE = sample_file(sample_job(), size=SIZE, digest=sha256(TEXT).hexdigest(), media_type="text/csv")
ETAG = f'"{FILE.digest[:32]}"'
BEFORE, AT, AFTER = (
    format_datetime((NOW + timedelta(seconds=seconds)).replace(microsecond=0), usegmt=True)
    for seconds in (-1, 0, 1)
)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 10)),
        ("bytes=3-5", (3, 6)),
        ("bytes=3-99999999999999999999", (3, 10)),
        ("bytes=9-", (9, 10)),
        ("bytes=-1", (9, 10)),
        ("bytes=-10", (0, 10)),
        ("bytes=-11", (0, 10)),
        ("Bytes= 3-5 ", (3, 6)),
        ("bytes=10-", (10, 10)),
        ("bytes=10-20", (10, 10)),
        ("bytes=-0", (10, 10)),
        ("bytes=5-3", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0-1,3-4", None),
        ("bytes=٣-5", None),
        ("bytes 0-1", None),
        ("rows=0-1", None),
        ("", None),
    ],
)
def test_a_single_range_is_read_and_others_are_ignored(
    header: str, found: tuple[int, int] | None
) -> None:
    assert range_of(header, 10) == found


@pytest.mark.parametrize("header", ["bytes=-5", "bytes=-0"])
def test_an_empty_file_has_no_last_bytes_and_is_sent_whole(header: str) -> None:
    assert range_of(header, 0) is None
    assert range_of("bytes=0-", 0) == (0, 0)


RANGES = st.one_of(
    st.text(),
    st.from_regex(r"bytes=[0-9]{0,6}-[0-9]{0,6}", fullmatch=True),
    st.from_regex(r"\s*[Bb]ytes\s*=\s*[0-9,\s-]{0,20}", fullmatch=True),
)


@given(header=RANGES, size=st.integers(0, 2000))
@example(header="bytes=" + "9" * 5000 + "-", size=1)
@example(header="bytes=0-" + "9" * 1000, size=1)
def test_no_range_leads_outside_of_the_file(header: str, size: int) -> None:
    found = range_of(header, size)
    if found is not None:
        start, stop = found
        assert 0 <= start <= stop <= size


@given(header=RANGES, if_range=st.sampled_from([None, ETAG, f"W/{ETAG}", '"other"', AT]))
def test_status_length_and_range_of_an_answer_agree(header: str, if_range: str | None) -> None:
    headers = {"range": header} | ({} if if_range is None else {"if-range": if_range})
    status, answered, start, stop = part_of(FILE, headers)
    named = dict(answered)
    if status == 416:
        assert named["Content-Range"] == f"bytes */{SIZE}"
        return
    assert named["Content-Length"] == str(stop - start)
    if status == 206:
        assert if_range in {None, ETAG}
        assert named["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert start < stop
    else:
        assert (status, start, stop) == (200, 0, SIZE)
        assert "Content-Range" not in named


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"if-none-match": ETAG}, 304),
        ({"if-none-match": f"W/{ETAG}"}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"other"'}, 200),
        ({"if-none-match": '"other"', "if-modified-since": AT}, 200),
        ({"if-modified-since": AT}, 304),
        ({"if-modified-since": AFTER}, 304),
        ({"if-modified-since": BEFORE}, 200),
        ({"if-modified-since": "nonsense"}, 200),
        ({"if-modified-since": "Thu, 01 Jan 99999 00:00:00 GMT"}, 200),
        ({"if-match": ETAG}, 200),
        ({"if-match": f"W/{ETAG}"}, 412),
        ({"if-match": '"other"'}, 412),
        ({"if-match": ETAG, "if-unmodified-since": BEFORE}, 200),
        ({"if-unmodified-since": BEFORE}, 412),
        ({"if-unmodified-since": AT}, 200),
        ({"range": "bytes=0-1", "if-match": '"other"'}, 412),
        ({"range": "bytes=0-1", "if-none-match": ETAG}, 304),
        ({"range": "bytes=0-1", "if-range": ETAG}, 206),
        ({"range": "bytes=0-1", "if-range": f" {ETAG} "}, 206),
        ({"range": "bytes=0-1", "if-range": f"W/{ETAG}"}, 200),
        ({"range": "bytes=0-1", "if-range": '"other"'}, 200),
        ({"range": "bytes=0-1", "if-range": AT}, 200),
    ],
)
def test_conditions_are_evaluated_in_their_order(headers: dict[str, str], status: int) -> None:
    assert part_of(FILE, headers).status == status


def test_a_download_is_saved_and_never_rendered() -> None:
    named = dict(part_of(FILE, {}).headers)
    assert named["Content-Type"] == "text/csv"
    assert named["Content-Disposition"] == 'attachment; filename="export.csv"'
    assert named["X-Content-Type-Options"] == "nosniff"
    assert named["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert named["Cache-Control"] == "private, no-cache"
    assert named["Accept-Ranges"] == "bytes"
    assert named["Last-Modified"] == AT
    assert re.fullmatch(r"sha-256=:[A-Za-z0-9+/=]{44}:", named["Repr-Digest"])


def usable(name: str) -> bool:
    try:
        check_file_name(name)
    except ValueError:
        return False
    return True


NAMES = st.text(min_size=1, max_size=60).filter(usable)


@given(NAMES)
@example('a"b\\c'.replace("\\", ""))
@example("50% März 世界 🎈.csv")
@example("it's (1)*!.txt")
def test_every_name_arrives_in_an_ascii_header(name: str) -> None:
    value = disposition_of(name)
    assert value.isascii()
    assert value.isprintable()
    _, _, exact = value.partition("filename*=UTF-8''")
    if exact:
        assert unquote(exact, errors="strict") == name
        return
    message = Message()
    message["Content-Disposition"] = value
    assert message.get_filename() == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "a\\b", "a\0", "a\nb", "a\x7f", "\ud800", "a\u2028", "a\u202ecsv"),
        *(" a", "a ", "a.", "x" * 256, "é" * 128),
    ],
)
def test_a_name_that_is_unsafe_somewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="The file name") as refused:
        check_file_name(name)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    "name", ["a", ".env", "export (1).csv", "März.csv", "x" * 255, "👩‍👩‍👧.png", "a:b?c*", "%2e"]
)
def test_other_names_are_kept_as_they_are(name: str) -> None:
    check_file_name(name)


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("a.csv", None, "text/csv"),
        ("a.csv.gz", None, "application/octet-stream"),
        ("a", None, "application/octet-stream"),
        ("a.csv", "text/csv; charset=utf-8", "text/csv; charset=utf-8"),
        ("a", 'a/b; c="d e"', 'a/b; c="d e"'),
    ],
)
def test_the_media_type_is_the_given_one_or_that_of_the_suffix(
    name: str, given: str | None, found: str
) -> None:
    assert media_type_of(name, given) == found


@pytest.mark.parametrize("wrong", ["", "text", "text/", "a/b\r\nX: y", "a/b;c", "ä/b", "a/b; c=\n"])
def test_a_malformed_media_type_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="media type"):
        media_type_of("a.csv", wrong)


# the route


@pytest.fixture
def endpoints(new_store: Callable[[], Any], tmp_path: Path) -> Endpoints:
    jobs = AsyncJobs(new_store(), settings=QUICK, files=tmp_path / "files")

    @jobs.handler("export")
    async def export(job: JobContext) -> None:
        await job.save_file("export.csv", TEXT)
        await job.save_file("März 50%.txt", b"one")
        await job.save_file("empty", b"")

    return Endpoints(jobs, Mount(identified=True, options=MountOptions(max_held=0)))


async def saved(endpoints: Endpoints) -> Job:
    handle = await endpoints.jobs.enqueue("export", user_id="ann")
    return await endpoints.jobs.wait(handle.id, timeout=60)


async def got(
    endpoints: Endpoints, path: str, method: str = "GET", owner: str = "ann", **headers: str
) -> tuple[Response, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await endpoints.handle(Request(method, path, headers=named, owner=owner))
    if not isinstance(answer, StreamingResponse):
        return answer, answer.body
    try:
        return answer, b"".join([chunk async for chunk in answer.chunks])
    finally:
        await answer.chunks.aclose()


@pytest.mark.anyio
@pytest.mark.every_store
async def test_a_file_is_sent_whole_or_in_parts_and_without_room_for_streams(
    endpoints: Endpoints,
) -> None:
    async with endpoints.jobs:
        path = f"{(await saved(endpoints)).id}/files/export.csv"
        answer, body = await got(endpoints, path)
        assert (answer.status, body) == (200, TEXT)
        assert answer.header("ETag") == ETAG
        part, body = await got(endpoints, path, range="bytes=1000-", if_range=ETAG)
        assert (part.status, body) == (206, TEXT[1000:])
        assert part.header("Content-Range") == f"bytes 1000-1023/{SIZE}"
        known, body = await got(endpoints, path, if_none_match=ETAG)
        assert (known.status, body) == (304, b"")
        head, body = await got(endpoints, path, "HEAD", range="bytes=0-1")
        assert (head.status, body) == (200, b"")
        assert head.headers == answer.headers


@pytest.mark.anyio
@pytest.mark.every_store
async def test_what_cannot_be_sent_is_a_problem(endpoints: Endpoints) -> None:
    async with endpoints.jobs:
        job = await saved(endpoints)
        path = f"{job.id}/files/export.csv"
        far, _ = await got(endpoints, path, range="bytes=1024-")
        assert (far.status, document(far)["code"]) == (416, "range_not_satisfiable")
        assert far.header("Content-Range") == f"bytes */{SIZE}"
        other, _ = await got(endpoints, path, if_match='"other"')
        assert (other.status, document(other)["code"]) == (412, "precondition_failed")
        assert other.header("ETag") == ETAG
        for name in ("other.csv", "EXPORT.CSV", "%2e%2e", "..", "export.csv\n"):
            missing, _ = await got(endpoints, f"{job.id}/files/{name}")
            assert (missing.status, document(missing)["code"]) == (404, "file_not_found"), name
        for path in (f"{job.id}/files/", f"{job.id}/files", f"{job.id}/files/a/b"):
            assert document((await got(endpoints, path))[0])["code"] == "job_not_found"
        refused, _ = await got(endpoints, f"{job.id}/files/export.csv", "DELETE")
        assert (refused.status, refused.header("Allow")) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.anyio
@pytest.mark.every_store
async def test_another_caller_gets_the_answer_of_an_unknown_job(endpoints: Endpoints) -> None:
    async with endpoints.jobs:
        job = await saved(endpoints)
        foreign, _ = await got(endpoints, f"{job.id}/files/export.csv", owner="bob")
        unknown, _ = await got(endpoints, f"{sample_job().id}/files/export.csv", owner="bob")
        assert foreign == unknown
        assert foreign.status == 404


@pytest.mark.anyio
@pytest.mark.every_store
async def test_the_status_document_leads_to_each_file(endpoints: Endpoints) -> None:
    async with endpoints.jobs:
        job = await saved(endpoints)
        status, _ = await got(endpoints, job.id)
        for file in document(status)["files"]:
            path = unquote(file["url"]).removeprefix("/api/jobs/")
            answer, body = await got(endpoints, path)
            assert (answer.status, len(body)) == (200, file["size"])


@pytest.mark.anyio
@pytest.mark.every_store
async def test_a_content_that_is_lost_or_out_of_reach_is_a_server_error(
    endpoints: Endpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(FolderStorage):
        def read(self, key: str, start: int, stop: int, /) -> Any:
            raise PermissionError("secret", key, start, stop)

    async with endpoints.jobs:
        job = await saved(endpoints)
        path = f"{job.id}/files/export.csv"
        endpoints.jobs.file_storage = Away(tmp_path)
        away, _ = await got(endpoints, path)
        endpoints.jobs.file_storage = FolderStorage(tmp_path / "another")
        lost, _ = await got(endpoints, path)
        empty, body = await got(endpoints, f"{job.id}/files/empty")
    assert (lost.status, document(lost)["code"]) == (500, "file_missing")
    assert (away.status, document(away)["code"]) == (503, "storage_unavailable")
    assert away.header("Retry-After")
    assert "secret" not in away.body.decode()
    assert (empty.status, body) == (200, b"")
    assert caplog.text.count("cannot be read") == 2


@pytest.mark.anyio
async def test_a_file_that_the_next_attempt_replaces_meanwhile_is_read_from_its_new_place(
    endpoints: Endpoints, tmp_path: Path
) -> None:
    jobs = endpoints.jobs
    texts = [b"of the first attempt", b"of the second"]
    second, read = anyio.Event(), anyio.Event()

    @jobs.handler("again", retry=Retry(max_attempts=2, initial_delay=timedelta(0)))
    async def again(job: JobContext) -> None:
        if job.attempt == 2:
            second.set()
            await read.wait()
        await job.save_file("a.txt", texts[job.attempt - 1])
        if job.attempt == 1:
            raise LookupError

    async def replace(job_id: JobId) -> None:
        read.set()
        await jobs.wait(job_id, timeout=60)

    class Replacing(FolderStorage):
        """Replaces the file just before it is read for the first time."""

        def read(self, key: str, start: int, stop: int, /) -> Any:
            from_thread.run(replace, JobId(key.partition("/")[0]))
            return super().read(key, start, stop)

    async with jobs:
        handle = await jobs.enqueue(again, user_id="ann")
        await second.wait()
        jobs.file_storage = Replacing(tmp_path / "files")
        answer, body = await got(endpoints, f"{handle.id}/files/a.txt")
        assert (answer.status, body) == (200, texts[1])
        assert answer.header("Content-Length") == str(len(body))


def test_a_file_has_a_path_below_any_prefix() -> None:
    file = JobFile(name="a b.csv", key="job_1/1-a")
    assert file.path == "job_1/files/a%20b.csv"
