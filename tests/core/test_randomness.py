"""Random tokens: long enough, distinct, and different after a fork."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

from asyncjobs.core.randomness import random_hex


def test_a_token_is_128_bits_in_hexadecimal_digits() -> None:
    texts = [random_hex() for _ in range(1000)]
    assert all(re.fullmatch(r"[0-9a-f]{32}", text) for text in texts)
    assert len(set(texts)) == 1000


def test_threads_get_different_tokens() -> None:
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(random_hex) for _ in range(5000)]
        texts = [call.result() for call in calls]
    assert len(set(texts)) == 5000


def test_a_forked_process_gets_other_tokens_than_its_parent() -> None:
    random_hex()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, "".join(random_hex() for _ in range(10)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 320).decode()
    os.close(read)
    os.close(write)
    mine = {random_hex() for _ in range(10)}
    assert len(theirs) == 320
    assert not mine & {theirs[start : start + 32] for start in range(0, 320, 32)}
