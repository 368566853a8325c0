"""The rules of downloads against a simulated server, in simulated time."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import repeat
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncjobs.client import (
    AccessRefused,
    ClientError,
    DownloadFailed,
    DownloadTimeout,
    Following,
    JobNotFound,
    RemoteFile,
    RemoteFileChanged,
    RemoteFileNotFound,
    RequestRefused,
    ServerUnreachable,
)
from asyncjobs.client.credential import Credential
from asyncjobs.client.documents import read_job
from asyncjobs.client.download import MAX_RESTARTS, Download, file_url
from asyncjobs.client.exchange import (
    ActionResult,
    Answered,
    Arrived,
    Ask,
    Broken,
    End,
    Opened,
    Read,
    Wait,
    Woke,
)
from asyncjobs.client.tokens import JobToken

STATUS = "http://jobs.example/api/jobs/job_1"
URL = f"{STATUS}/files/a.csv"
CUT = Broken("the connection was cut")
TEXT = b"".join(b"%d\n" % number for number in range(40))


def etag_of(content: bytes) -> str:
    return f'"{sha256(content).hexdigest()[:32]}"'


def digest_of(content: bytes) -> str:
    return f"sha-256=:{b64encode(sha256(content).digest()).decode()}:"


@dataclass
class FileServer:
    """Serves one file as asyncjobs does; each of `cuts` is where a connection ends early.

    Before the connection after a cut, the file is replaced by the next of `versions`, if any.
    `dropped` are headers that a proxy removes, `other` are those that it sends instead of the
    file's; `whole` is set if it removes the range, `orderly` if it ends cut answers as if they were
    whole. The first requests get `answers`.
    """

    content: bytes
    cuts: list[int] = field(default_factory=list[int])
    versions: list[bytes] = field(default_factory=list[bytes])
    dropped: tuple[str, ...] = ()
    whole: bool = False
    orderly: bool = False
    other: dict[str, str] | None = None
    status: int | None = None
    answers: Iterator[ActionResult] = field(default_factory=lambda: iter(()))
    piece: int = 7
    renewals: list[str] = field(default_factory=list[str])
    asked: list[Ask] = field(default_factory=list[Ask])
    sent: Iterator[ActionResult] = field(default_factory=lambda: iter(()))

    def perform(self, ask: Ask) -> ActionResult:
        if ask.method == "POST":
            self.renewals.append(ask.headers["authorization"])
            return answered(200, {"token": f"new{len(self.renewals)}"})
        self.asked.append(ask)
        scripted = next(self.answers, None)
        if scripted is not None:
            return scripted
        if len(self.asked) > 1 and self.versions:
            self.content = self.versions.pop(0)
        content, etag = self.content, etag_of(self.content)
        start = 0
        if not self.whole and ask.headers.get("if-range") == etag:
            start = int(ask.headers["range"].removeprefix("bytes=").removesuffix("-"))
        stop = min(len(content), self.cuts.pop(0) if self.cuts else len(content))
        self.sent = self._pieces(content[start:stop], ended=self.orderly or stop == len(content))
        headers = {
            "etag": etag,
            "repr-digest": digest_of(content),
            "content-length": str(len(content) - start),
        }
        if start:
            headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        kept = {name: value for name, value in headers.items() if name not in self.dropped}
        status = self.status or (206 if start else 200)
        return Opened(kept if self.other is None else self.other, status)

    def _pieces(self, data: bytes, *, ended: bool) -> Iterator[ActionResult]:
        for place in range(0, len(data), self.piece):
            yield Arrived(data[place : place + self.piece])
        yield Broken("the stream ended", ended=True) if ended else CUT


def no_credential() -> Credential:
    return Credential(None, 0.0)


def download(
    server: FileServer,
    size: int | None = None,
    *,
    restarts: int = 0,
    credential: Credential | None = None,
    **options: Any,
) -> bytes:
    """Drive a download to its end, and write its bytes as the clients do."""
    rule = Download(
        URL,
        size,
        Following(**options),
        Random(1),  # noqa: S311  # only for pauses
        credential or no_credential(),
        restarts=restarts,
    )
    kept, now = bytearray(), 0.0
    step = rule.start(now)
    for _ in range(3_000):
        for piece in step.updates:
            kept[rule.offset : rule.offset + len(piece)] = piece
        match step.then:
            case End(None):
                return bytes(kept[: rule.received])
            case End(ClientError() as error):
                raise error
            case Wait(seconds):
                now += seconds
                result: ActionResult = Woke()
            case Read():
                now += 1
                result = next(server.sent, CUT)
            case Ask() as ask:
                now += 0.1
                result = server.perform(ask)
            case _:
                raise AssertionError(step.then)
        step = rule.receive(result, now)
    raise AssertionError("no end after 3000 steps")


def answered(status: int, document: Any, **headers: str) -> Answered:
    return Answered(URL, URL, status, headers, json.dumps(document).encode())


def refused(status: int, code: str = "no") -> FileServer:
    problem = answered(status, {"error": "No.", "code": code})
    return FileServer(TEXT, answers=repeat(problem))


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=120),
    cuts=st.lists(st.integers(0, 120), max_size=6),
    piece=st.integers(1, 50),
    whole=st.booleans(),
    dropped=st.sampled_from([(), ("content-length",), ("repr-digest",)]),
)
def test_wherever_connections_are_cut_the_bytes_are_those_of_the_file(
    content: bytes, cuts: list[int], piece: int, whole: bool, dropped: tuple[str, ...]
) -> None:
    server = FileServer(content, cuts, whole=whole, dropped=dropped, piece=piece)
    assert download(server) == content


def test_a_lost_connection_continues_behind_the_last_byte() -> None:
    server = FileServer(TEXT, [35, 70])
    assert download(server, len(TEXT)) == TEXT
    wanted = [(None, None), ("bytes=35-", etag_of(TEXT)), ("bytes=70-", etag_of(TEXT))]
    found = [(ask.headers.get("range"), ask.headers.get("if-range")) for ask in server.asked]
    assert found == wanted
    assert {ask.headers["accept-encoding"] for ask in server.asked} == {"identity"}


@pytest.mark.parametrize("other", [TEXT[::-1], b"", b"x" * 500], ids=["same", "empty", "longer"])
def test_a_file_that_is_replaced_between_two_parts_is_never_mixed(other: bytes) -> None:
    with pytest.raises(RemoteFileChanged, match="replaced"):
        download(FileServer(TEXT, [35], [other]))
    assert download(FileServer(TEXT, [35], [other]), restarts=1) == other


def test_a_file_that_is_replaced_again_and_again_is_given_up() -> None:
    versions = [b"%d" % number * 100 for number in range(9)]
    server = FileServer(TEXT, [10] * 9, versions)
    with pytest.raises(RemoteFileChanged):
        download(server, restarts=MAX_RESTARTS)
    assert len(server.asked) == MAX_RESTARTS + 2


def test_an_answer_that_ends_too_early_is_continued() -> None:
    assert download(FileServer(TEXT, [35], orderly=True)) == TEXT
    unsized = FileServer(TEXT, [35], orderly=True, dropped=("content-length",))
    assert download(unsized, len(TEXT)) == TEXT


def test_the_patience_begins_anew_with_each_byte() -> None:
    assert download(FileServer(TEXT, list(range(7, len(TEXT), 7))), patience=5) == TEXT


def test_without_an_etag_a_lost_download_is_not_continued() -> None:
    assert download(FileServer(TEXT, dropped=("etag",))) == TEXT
    with pytest.raises(ServerUnreachable, match="without an ETag"):
        download(FileServer(TEXT, [35], dropped=("etag",)))


@pytest.mark.parametrize(
    ("headers", "size", "reason"),
    [
        ({"repr-digest": digest_of(b"")}, None, "digest"),
        ({"etag": etag_of(TEXT), "content-length": "5"}, None, "more than 5 bytes"),
        ({"content-length": str(len(TEXT))}, 7, "but the file has 7"),
        ({"content-encoding": "gzip", "content-length": "3"}, 7, "more than 7 bytes"),
    ],
    ids=["digest", "length", "page", "encoded"],
)
def test_bytes_of_another_digest_or_size_are_no_download(
    headers: dict[str, str], size: int | None, reason: str
) -> None:
    with pytest.raises(DownloadFailed, match=reason):
        download(FileServer(TEXT, other=headers), size, restarts=MAX_RESTARTS)


@pytest.mark.parametrize(
    "place", ["", "bytes 1-9/10", "bytes */10", "bytes 0-9/*", "items 0-9/10", "9" * 5_000]
)
def test_a_part_of_the_wrong_place_is_refused(place: str) -> None:
    with pytest.raises(DownloadFailed, match=r"Content-Range|other bytes"):
        download(
            FileServer(TEXT, other={"content-range": place}, status=206), restarts=MAX_RESTARTS
        )


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (404, "job_not_found", JobNotFound),
        (404, "file_not_found", RemoteFileNotFound),
        (410, "gone", RemoteFileNotFound),
        (500, "file_missing", RemoteFileNotFound),
        (401, "unauthorized", AccessRefused),
        (403, "forbidden", AccessRefused),
        (400, "no", RequestRefused),
        (204, "no", DownloadFailed),
    ],
)
def test_a_refusal_is_an_error_of_its_own(status: int, code: str, error: type[ClientError]) -> None:
    with pytest.raises(error) as caught:
        download(refused(status, code))
    assert type(caught.value) is error


def test_a_server_in_trouble_is_asked_again_for_as_long_as_the_patience_lasts() -> None:
    busy = answered(503, {}, **{"retry-after": "9"})
    assert download(FileServer(TEXT, [35], answers=iter([busy, CUT]))) == TEXT
    with pytest.raises(ServerUnreachable):
        download(refused(503), patience=20)
    with pytest.raises(DownloadTimeout, match=r"after 20 s \(the response was 503\)"):
        download(refused(503), timeout=20)


def test_a_download_ends_with_its_timeout_although_bytes_arrive() -> None:
    with pytest.raises(DownloadTimeout, match="after 5 s"):
        download(FileServer(TEXT, piece=1), timeout=5)


def test_a_token_is_renewed_while_a_long_download_goes_on() -> None:
    server = FileServer(TEXT, piece=1)
    kept = Credential(JobToken("old", f"{STATUS}/token", 60.0), 0.0)
    assert download(server, credential=kept) == TEXT
    assert server.renewals == ["Bearer old"]
    assert [ask.headers["authorization"] for ask in server.asked] == ["Bearer old", "Bearer new1"]


def test_no_token_is_renewed_for_a_download_that_is_complete() -> None:
    server = FileServer(TEXT, piece=1)
    # It is due with the last byte: each takes a second.
    kept = Credential(JobToken("old", f"{STATUS}/token", 2.0 * len(TEXT)), 0.0)
    assert download(server, credential=kept) == TEXT
    assert len(server.asked) == 1


headers = st.fixed_dictionaries(
    {},
    optional={
        "etag": st.sampled_from(['"a"', '"b"', 'W/"a"', "é", ""]),
        "content-length": st.sampled_from(["0", "3", "9", "-1", "x", "9" * 5_000]),
        "content-range": st.sampled_from(["bytes 0-2/9", "bytes 3-8/9", "bytes 9-3/2", "x"]),
        "repr-digest": st.sampled_from([digest_of(b""), "sha-256=:x:", "md5=:aa:"]),
        "content-encoding": st.sampled_from(["gzip", "identity"]),
        "retry-after": st.sampled_from(["0", "x", "1" * 400]),
    },
)
results = st.one_of(
    st.builds(Opened, headers, st.sampled_from([200, 206])),
    st.builds(Arrived, st.binary(max_size=9)),
    st.just(CUT),
    st.just(Broken("the stream ended", ended=True)),
    st.builds(
        Answered,
        st.just(URL),
        st.just(URL),
        st.sampled_from([204, 304, 401, 404, 412, 416, 500, 503]),
        headers,
        st.sampled_from([b"", b"{}", b'{"code": "file_missing"}', b"\xff"]),
    ),
)


@dataclass
class Scripted(FileServer):
    """Gives these results in turn, those of a request and those of a read."""

    left: list[ActionResult] = field(default_factory=list[ActionResult])

    def perform(self, ask: Ask) -> ActionResult:
        self.asked.append(ask)
        self.sent = iter(lambda: self._next(Arrived, Broken), None)
        return self._next(Opened, Answered, Broken)

    def _next(self, *kinds: type[ActionResult]) -> ActionResult:
        while self.left:
            found = self.left.pop(0)
            if isinstance(found, kinds):
                return found
        return CUT


@settings(max_examples=150, deadline=None)
@given(st.lists(results, min_size=1, max_size=8), st.sampled_from([None, 0, 3, 9]))
def test_any_answers_end_a_download_with_bytes_or_a_client_error(
    given_results: list[ActionResult], size: int | None
) -> None:
    with suppress(ClientError):
        download(Scripted(b"", left=list(given_results)), size, restarts=1, timeout=200)


def test_the_url_of_a_file_keeps_the_token_of_a_status_url() -> None:
    listed = RemoteFile("ä b.csv", 1, "/api/jobs/job_1/files/%C3%A4%20b.csv")
    kept = f"{STATUS}/files/%C3%A4%20b.csv?token=t"
    assert file_url(f"{STATUS}?token=t", "ä b.csv") == kept
    assert file_url(f"{STATUS}?token=t", listed) == kept
    other = RemoteFile("a", 1, "https://files.example/a")
    assert file_url(f"{STATUS}?token=t", other) == other.url


def test_an_update_has_the_files_of_a_document_that_can_be_downloaded() -> None:
    whole = {"name": "a.csv", "size": 3, "mediaType": "text/csv", "url": "/files/a"}
    wrong = [
        *(7, None, {}, {**whole, "size": "3"}, {**whole, "size": -1}, {**whole, "size": True}),
        *({**whole, "name": ""}, {**whole, "url": None}, {**whole, "url": "http://["}),
    ]
    document = {"jobId": "job_1", "status": "completed", "files": [*wrong, whole]}
    update = read_job(document)
    assert update is not None
    assert update.files == (RemoteFile("a.csv", 3, "/files/a", "text/csv"),)
    for files in ("x", None, {"a": 1}):
        update = read_job({**document, "files": files})
        assert update is not None
        assert update.files == ()
