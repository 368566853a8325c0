"""Sends appends of output in portions, for stores that limit the size of a statement or script."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from asyncjobs.core.job import JobId
from asyncjobs.core.output import Append, Appended


async def append_in_portions(
    appends: Sequence[Append],
    portions: Iterable[Sequence[int]],
    send: Callable[[list[Append]], Awaitable[list[Appended]]],
) -> list[Appended]:
    """Send the appends at the places of each portion; return all answers in the order of the call.

    After a refused append, later ones to the same stream are refused without being sent.
    """
    done: dict[int, Appended] = {}
    refused: dict[tuple[JobId, str], Appended] = {}
    for places in portions:
        for place in places if refused else ():
            if answer := refused.get((appends[place].job_id, appends[place].stream)):
                done[place] = answer
        rest = [place for place in places if place not in done]
        answers = await send([appends[place] for place in rest]) if rest else []
        for place, answer in zip(rest, answers, strict=True):
            done[place] = answer
            if answer.refusal is not None:
                refused[appends[place].job_id, appends[place].stream] = answer
    return [done[place] for place in range(len(appends))]
