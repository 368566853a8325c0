"""Reads a file of a job, and continues where a connection was lost.

It does no I/O and has no clock: a shell drives the download (see `exchange`). The bytes of the file
are returned in order and once each. The end is reached only if the size is right, and the digest,
if the server sends one.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from urllib.parse import quote, urljoin, urlsplit

from asyncjobs.client.answers import Trouble, problem_of, trouble_of
from asyncjobs.client.credential import Credential
from asyncjobs.client.documents import RemoteFile, code_of, name_of
from asyncjobs.client.errors import (
    AccessRefused,
    ClientError,
    DownloadFailed,
    DownloadTimeout,
    JobNotFound,
    RemoteFileChanged,
    RemoteFileNotFound,
    RequestRefused,
    ServerUnreachable,
    sentence_of,
)
from asyncjobs.client.exchange import (
    ActionResult,
    Answered,
    Arrived,
    Ask,
    Broken,
    End,
    Hopeless,
    Opened,
    Read,
    Step,
    Woke,
)
from asyncjobs.client.follower import FailureStreak, Following, Persistent

#: The longest silence of a server.
_SILENCE = 30.0
#: How often a download to a path begins again because the file was replaced.
MAX_RESTARTS = 3

# RFC 9110, sections 8.6, 8.8.3 and 14.4. Longer numbers are not those of a file.
_LENGTH = re.compile(r"[0-9]{1,18}")
_STRONG = re.compile(r'"[\x21\x23-\x7e]*"')
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", re.IGNORECASE)
# RFC 9530.
_DIGEST = re.compile(r"(?:^|,)[ \t]*sha-256=:([A-Za-z0-9+/]{43}=):")

#: The problem codes of asyncjobs for a job that is gone, and for content that is lost for good.
_NO_JOB = "job_not_found"
_LOST = "file_missing"


@dataclass(frozen=True)
class _Content:
    """Which bytes an answer has, and how to recognize the file: by a strong ETag.

    `size` and `digest` are those of the whole file; None if the server does not send them.
    """

    start: int = 0
    size: int | None = None
    etag: str | None = None
    digest: str | None = None

    def continues(self, before: _Content) -> bool:
        """Return whether the bytes are of the same file."""
        return self.etag is not None and self.etag == before.etag


class Download(Persistent[bytes]):
    """Reads one file from its beginning to its end.

    `size` is the size in the job's document, if it is known. A file that is replaced meanwhile is
    read from the beginning again, up to `restarts` times; without them, `RemoteFileChanged` is
    raised.
    """

    def __init__(
        self,
        url: str,
        size: int | None,
        options: Following,
        random: Random,
        credential: Credential,
        *,
        restarts: int = 0,
    ) -> None:
        super().__init__(options, random, credential)
        self._url = url
        self._size = size
        self._restarts = restarts
        self._content = _Content()
        self._digest = sha256()
        #: The place in the file of the last returned bytes, and that after them.
        self.offset = self.received = 0
        self._reading = False
        # The bytes that are known already, of those that come next.
        self._skip = 0

    def _first(self, now: float) -> Step[bytes]:
        return Step(self._ask(now))

    def _on(self, result: ActionResult, now: float) -> Step[bytes]:
        match result:
            case Woke():
                return Step(self._ask(now))
            case Hopeless(error):
                raise error
            case Opened():
                return self._opened(result, now)
            case Arrived(data):
                return self._arrived(data, now)
            case Broken(reason):
                if self._reading:
                    return self._broken(result, now)
                return self._again(Trouble(reason, None), now)
            case Answered():
                return self._answered(result, now)

    def _too_late(self, timeout: float, reason: str) -> ClientError:
        return DownloadTimeout(self._url, timeout, reason)

    def _unreachable(self, reason: str) -> ServerUnreachable:
        return ServerUnreachable(self._url, reason)

    def _ask(self, now: float) -> Ask:
        self._reading = False
        renewal = self._renewal(now)
        if renewal is not None:
            return renewal
        left = self._ends - now
        # Parts of compressed content could not be put together.
        headers = {"accept": "*/*", "accept-encoding": "identity"}
        headers |= self._credential.headers_for(self._url)
        if self.received and self._content.etag is not None:
            headers |= {"range": f"bytes={self.received}-", "if-range": self._content.etag}
        silence = min(_SILENCE, left)
        return Ask(
            "GET",
            self._url,
            headers,
            timeout=silence,
            total=left,
            content=True,
            origins=self._options.origins,
        )

    # Content

    def _opened(self, opened: Opened, now: float) -> Step[bytes]:
        found = self._content_of(opened)
        if self.received and not found.continues(self._content):
            self._begin_again()
            if found.start:
                return Step(self._ask(now))
        if found.start not in {0, self.received}:
            raise DownloadFailed(self._url, "other bytes were sent than requested")
        self._skip = self.received - found.start
        if not self.received:
            self._content = found
        self._reading = True
        return Step(Read())

    def _content_of(self, opened: Opened) -> _Content:
        """Return what an answer has; raise `DownloadFailed` if it is not of the listed file."""
        found = _described(opened.status, opened.headers)
        if found is None:
            raise DownloadFailed(self._url, "the Content-Range is missing or malformed")
        if found.size is None:
            return _Content(found.start, self._size, found.etag, found.digest)
        if found.etag is None and self._size not in {None, found.size}:
            # For example a page to sign in. A file with an ETag was replaced since it was listed.
            reason = f"{found.size} bytes were sent, but the file has {self._size}"
            raise DownloadFailed(self._url, reason)
        return found

    def _arrived(self, data: bytes, now: float) -> Step[bytes]:
        new = data[self._skip :]
        self._skip = max(0, self._skip - len(data))
        if not new:
            return Step(Read())
        self.offset = self.received
        self.received += len(new)
        if self._content.size is not None and self.received > self._content.size:
            raise DownloadFailed(self._url, f"more than {self._content.size} bytes were sent")
        self._digest.update(new)
        self._failures = FailureStreak()
        resumable = self._content.etag is not None and self.received != self._content.size
        if self._credential.is_due(now) and resumable:
            # A token that has ended cannot be renewed, should this connection be lost later.
            return Step(self._ask(now), (new,))
        return Step(Read(), (new,))

    def _broken(self, broken: Broken, now: float) -> Step[bytes]:
        size = self._content.size
        if (broken.ended and size is None) or self.received == size:
            digest = b64encode(self._digest.digest()).decode()
            if self._content.digest not in {None, digest}:
                raise DownloadFailed(self._url, "its bytes do not have the digest that was sent")
            return Step(End())
        self._reading = False
        if self.received and self._content.etag is None:
            reason = f"{broken.reason}, and without an ETag the download cannot continue"
            raise ServerUnreachable(self._url, reason)
        return self._again(Trouble(broken.reason, None), now)

    def _begin_again(self) -> None:
        if not self._restarts:
            raise RemoteFileChanged(self._url)
        self._restarts -= 1
        self.offset = self.received = 0
        self._digest = sha256()

    # Other answers

    def _answered(self, answer: Answered, now: float) -> Step[bytes]:
        if self._credential.refuse(answer.status, now):
            return Step(self._ask(now))
        trouble = trouble_of(answer)
        if trouble is not None and code_of(problem_of(answer)) != _LOST:
            return self._again(trouble, now)
        if answer.status == 416 and self.received:
            self._begin_again()
            return Step(self._ask(now))
        raise _refusal_of(answer)


def file_url(status_url: str, file: RemoteFile | str) -> str:
    """Return the URL of a file; if only its name is known, that below the job's status URL."""
    parts = urlsplit(status_url)
    path = f"{parts.path}/files/{quote(name_of(file), safe='')}"
    derived = parts._replace(path=path, fragment="")
    if isinstance(file, str):
        return derived.geturl()
    url = urljoin(status_url, file.url)
    # The query of a status URL may be a token, which no document repeats.
    return derived.geturl() if url == derived._replace(query="").geturl() else url


def _described(status: int, headers: Mapping[str, str]) -> _Content | None:
    etag = headers.get("etag", "").strip()
    encoded = headers.get("content-encoding", "identity").strip().lower() != "identity"
    found = _DIGEST.search(headers.get("repr-digest", ""))
    digest = found[1] if found else None
    known = etag if _STRONG.fullmatch(etag) else None
    if status == 206:
        place = _RANGE.fullmatch(headers.get("content-range", "").strip())
        if place is None or encoded:
            return None
        return _Content(int(place[1]), int(place[2]), known, digest)
    if encoded:
        # These headers describe the encoded bytes, and those that arrive are decoded.
        return _Content()
    length = headers.get("content-length", "").strip()
    size = int(length) if _LENGTH.fullmatch(length) else None
    return _Content(0, size, known, digest)


def _refusal_of(answer: Answered) -> ClientError:
    problem = problem_of(answer)
    code, reason = code_of(problem), f"{answer.status}: {sentence_of(problem).rstrip('.')}"
    if answer.status in {401, 403}:
        return AccessRefused(answer.url, answer.status)
    if answer.status in {404, 410} and code == _NO_JOB:
        return JobNotFound(answer.url, reason)
    if answer.status in {404, 410} or code == _LOST:
        return RemoteFileNotFound(answer.url, reason)
    if answer.status >= 400:
        return RequestRefused(answer.url, answer.status, problem)
    return DownloadFailed(answer.url, f"the response was {answer.status}, not a file")
