"""Appends are sent in portions, and a refused stream is not sent again."""

from __future__ import annotations

import pytest

from asyncjobs.core.output import Append, Appended, Refusal
from asyncjobs.stores.appends import append_in_portions
from asyncjobs.testing import sample_job
from asyncjobs.testing.output_conformance import text

JOB = sample_job()


@pytest.mark.anyio
async def test_answers_are_in_the_order_of_the_call_and_refused_streams_stay_refused() -> None:
    sent: list[list[bytes]] = []

    async def send(some: list[Append]) -> list[Appended]:
        sent.append([one.data for one in some])
        return [
            Appended(refusal=Refusal.FULL) if one.data == b"b" else Appended(ord(one.data))
            for one in some
        ]

    streams = {b"a": "one", b"b": "two", b"c": "two", b"d": "one", b"e": "two"}
    appends = [text(JOB, data, stream=name) for data, name in streams.items()]
    done = await append_in_portions(appends, [[1, 0], [2], [4, 3]], send)
    assert sent == [[b"b", b"a"], [b"d"]]
    refused = Appended(refusal=Refusal.FULL)
    assert done == [Appended(97), refused, refused, Appended(100), refused]
