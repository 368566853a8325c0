"""The conformance suite of file storages."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from asyncjobs.core.job import new_job_id
from asyncjobs.files.storage import FileStorage

_MIB = 1024 * 1024
_TEXT = bytes(range(256)) * 40


class FilesConformance:
    """The contract of `asyncjobs.files.FileStorage`; override the fixture `storage`.

    The rules write up to 24 MiB. `shares_processes = False` is for a storage that cannot be
    pickled, and so does not serve handlers with `run_in="process"`.
    """

    shares_processes = True

    @pytest.fixture
    def storage(self) -> FileStorage:
        """Return an empty storage."""
        raise NotImplementedError

    def test_a_content_is_read_as_it_was_written(self, storage: FileStorage) -> None:
        key = _key()
        storage.write(key, iter([b"one", b"", b"two", _TEXT]))
        assert _read(storage, key, 0, 6 + len(_TEXT)) == b"onetwo" + _TEXT

    def test_an_empty_content_can_be_written(self, storage: FileStorage) -> None:
        key = _key()
        storage.write(key, iter(()))
        assert [*storage.jobs()] == [_job_of(key)]

    def test_a_large_content_is_written_and_read_in_chunks(self, storage: FileStorage) -> None:
        key = _key()
        storage.write(key, (bytes([n]) * _MIB for n in range(24)))
        sizes = [len(chunk) for chunk in storage.read(key, 0, 24 * _MIB)]
        assert sum(sizes) == 24 * _MIB
        assert max(sizes) <= 8 * _MIB
        assert _read(storage, key, 20 * _MIB - 1, 20 * _MIB + 1) == bytes([19, 20])

    @pytest.mark.parametrize("bounds", [(0, 1), (0, 10_240), (255, 257), (10_239, 10_240)])
    def test_a_range_is_read(self, storage: FileStorage, bounds: tuple[int, int]) -> None:
        key, (start, stop) = _key(), bounds
        storage.write(key, iter([_TEXT[:5000], _TEXT[5000:]]))
        assert _read(storage, key, start, stop) == _TEXT[start:stop]

    def test_a_reader_may_stop_early(self, storage: FileStorage) -> None:
        key = _key()
        storage.write(key, (b"x" * _MIB for _ in range(12)))
        chunks = storage.read(key, 0, 12 * _MIB)
        assert next(chunks)
        getattr(chunks, "close", lambda: None)()
        storage.delete(key)
        assert _is_missing(storage, key)

    def test_an_unknown_content_is_not_found(self, storage: FileStorage) -> None:
        key = _key()
        assert _is_missing(storage, key)
        storage.write(key, iter([b"one"]))
        assert _is_missing(storage, f"{key}x")
        assert _is_missing(storage, f"{new_job_id()}/1-0f")

    @pytest.mark.parametrize("size", [3, 10 * _MIB])
    def test_a_content_whose_source_raises_is_not_stored(
        self, storage: FileStorage, size: int
    ) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"x" * size
            raise LookupError("the source has ended early")

        key = _key()
        with pytest.raises(LookupError, match="ended early"):
            storage.write(key, chunks())
        assert _is_missing(storage, key)

    def test_one_content_is_deleted_by_its_key(self, storage: FileStorage) -> None:
        key = _key()
        other = f"{key}x"
        for one in (key, other):
            storage.write(one, iter([b"one"]))
        storage.delete(key)
        assert _is_missing(storage, key)
        assert _read(storage, other, 0, 3) == b"one"

    def test_all_contents_of_a_job_are_deleted_and_no_others(self, storage: FileStorage) -> None:
        mine, other = new_job_id(), new_job_id()
        # The id of another job, or of a version of this one, may begin with this id.
        keys = [f"{mine}/1-{number}" for number in range(30)]
        kept = [f"{mine}0/1-a", f"{other}/1-a"]
        for one in (*keys, *kept):
            storage.write(one, iter([b"one"]))
        storage.delete(f"{mine}/")
        assert [_is_missing(storage, one) for one in keys] == [True] * len(keys)
        assert [_read(storage, one, 0, 3) for one in kept] == [b"one"] * len(kept)
        assert set(storage.jobs()) & {mine, other} == {other}

    def test_what_does_not_exist_can_be_deleted(self, storage: FileStorage) -> None:
        key = _key()
        storage.delete(key)
        storage.delete(f"{_job_of(key)}/")
        storage.write(key, iter([b"one"]))
        storage.delete(f"{key}x")
        assert _read(storage, key, 0, 3) == b"one"

    def test_a_deleted_content_is_not_listed(self, storage: FileStorage) -> None:
        keys = [_key() for _ in range(3)]
        for key in keys:
            storage.write(key, iter([b"one"]))
        storage.write(f"{keys[0]}x", iter([b"one"]))
        assert sorted(storage.jobs()) == sorted(map(_job_of, keys))
        storage.delete(f"{_job_of(keys[1])}/")
        assert sorted(storage.jobs()) == sorted(map(_job_of, (keys[0], keys[2])))

    def test_an_empty_storage_has_no_jobs(self, storage: FileStorage) -> None:
        assert [*storage.jobs()] == []

    @pytest.mark.parametrize("key", ["", "/", "a", "a/", "/a", "../a", "a/..", "a/b/c", "a/b\n"])
    def test_a_text_that_is_not_a_key_is_refused(self, storage: FileStorage, key: str) -> None:
        with pytest.raises(ValueError, match="key"):
            storage.write(key, iter([b"one"]))
        with pytest.raises(ValueError, match="key"):
            next(iter(storage.read(key, 0, 1)))
        if key != "a/":  # a job and a slash are a prefix
            with pytest.raises(ValueError, match="key"):
                storage.delete(key)

    def test_several_threads_use_it_at_once(self, storage: FileStorage) -> None:
        keys = [_key() for _ in range(8)]

        def use(key: str) -> bytes:
            storage.write(key, iter([key.encode(), b"x" * _MIB]))
            found = _read(storage, key, 0, len(key))
            storage.delete(f"{_job_of(key)}/")
            return found

        with ThreadPoolExecutor(len(keys)) as threads:
            assert [*threads.map(use, keys)] == [key.encode() for key in keys]
        assert [*storage.jobs()] == []

    def test_a_pickled_copy_has_the_same_contents(self, storage: FileStorage) -> None:
        if not self.shares_processes:
            pytest.skip("this storage does not serve other processes")
        key = _key()
        copy: FileStorage = pickle.loads(pickle.dumps(storage))  # noqa: S301  # our own
        copy.write(key, iter([b"one"]))
        assert _read(storage, key, 0, 3) == b"one"


def _key() -> str:
    return f"{new_job_id()}/1-0f"


def _job_of(key: str) -> str:
    return key.partition("/")[0]


def _read(storage: FileStorage, key: str, start: int, stop: int) -> bytes:
    return b"".join(storage.read(key, start, stop))


def _is_missing(storage: FileStorage, key: str) -> bool:
    try:
        next(iter(storage.read(key, 0, 1)), None)
    except FileNotFoundError:
        return True
    return False
