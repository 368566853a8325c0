"""Object stores as the file storage: S3, Google Cloud Storage, Azure and what speaks like them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from types import ModuleType
from typing import TYPE_CHECKING, Any

from asyncjobs.core.job import parse_job_id
from asyncjobs.errors import ConfigurationError
from asyncjobs.files.storage import split_key, split_prefix

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# The size of a part. S3 allows 10,000 parts, and so 80 GB; two parts are sent at once.
_PART_BYTES = 8 * 1024 * 1024
_PARTS_AT_ONCE = 2

# Each read is a request of its own: a slow client would let a longer one run into its time limit.
_READ_BYTES = 2 * 1024 * 1024


class ObjectStorage:
    """Stores files in an object store of the library obstore, or at a URL such as `s3://bucket/a`.

    Give a store that you have configured, or a URL: then obstore takes credentials and region from
    the environment, as the tools of that cloud do. No other program may use that prefix. Raises
    `ConfigurationError` if obstore is not installed, or refuses the URL.
    """

    def __init__(self, store: str | ObjectStore) -> None:
        _obstore()
        if isinstance(store, str):
            from obstore.exceptions import BaseError  # noqa: PLC0415  # of an extra
            from obstore.store import from_url  # noqa: PLC0415

            try:
                self._store: Any = from_url(store)
            except (BaseError, ValueError) as error:
                # Not the message, which may quote a URL with a password.
                raise ConfigurationError(
                    "obstore refuses the URL of the file storage; see the cause of this error."
                ) from error
        else:
            self._store = store

    def __repr__(self) -> str:
        return f"ObjectStorage({self._store!r})"

    def write(self, key: str, chunks: Iterator[bytes], /) -> None:
        """Send a small content by one request, a larger one in parts; an abort leaves no parts."""
        split_key(key)
        first, more = bytearray(), False
        for chunk in chunks:
            first += chunk
            if more := len(first) >= _PART_BYTES:
                break
        if more:
            _obstore().put(
                self._store,
                key,
                chain((bytes(first),), chunks),
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )
        else:
            _obstore().put(self._store, key, bytes(first))

    def read(self, key: str, start: int, stop: int, /) -> Iterator[bytes]:
        """Yield a range, by one request for each chunk."""
        split_key(key)
        while start < stop:
            end = min(stop, start + _READ_BYTES)
            chunk = bytes(_obstore().get_range(self._store, key, start=start, end=end))
            if not chunk:
                return
            start += len(chunk)
            yield chunk

    def delete(self, prefix: str, /) -> None:
        """Delete one object, or all of a job."""
        job, name = split_prefix(prefix)
        if name:
            self._delete([prefix])
            return
        for page in _obstore().list(self._store, prefix=job):
            self._delete([one["path"] for one in page])

    def _delete(self, keys: list[str]) -> None:
        try:
            _obstore().delete(self._store, keys)
        except FileNotFoundError:
            # Some stores stop at the first object that another process has deleted.
            for key in keys:
                with suppress(FileNotFoundError):
                    _obstore().delete(self._store, key)

    def jobs(self) -> Iterator[str]:
        """Yield the first parts of the keys."""
        for path in _obstore().list_with_delimiter(self._store)["common_prefixes"]:
            job = path.rstrip("/")
            if parse_job_id(job) is not None:
                yield job


def _obstore() -> ModuleType:
    try:
        import obstore  # noqa: PLC0415  # of an extra
    except ImportError as error:
        raise ConfigurationError(
            "Object stores need an extra: pip install 'asyncjobs-http[objects]'"
        ) from error
    return obstore
