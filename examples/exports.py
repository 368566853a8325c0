"""A long operation with real input: export the Unicode database as CSV or JSON Lines.

The applications beside this file serve it over HTTP.
"""

import csv
import io
import json
import os
import unicodedata
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Annotated, Literal, TextIO

import anyio.to_thread
from pydantic import BaseModel, Field

from asyncjobs import AsyncJobs, JobContext, JobFailed

STORE = os.environ.get("EXPORTS_STORE", "sqlite:///exports.db")
FOLDER = os.environ.get("EXPORTS_FOLDER", "exports")

# Unassigned, surrogate and private-use code points are not characters.
NO_CHARACTERS = frozenset({"Cn", "Cs", "Co"})

jobs = AsyncJobs(STORE, files=FOLDER)


class ExportRequest(BaseModel):
    """What to export: a format, and one general category (such as "Lu") or all of them."""

    format: Literal["csv", "jsonl"] = "csv"
    category: Annotated[str, Field(pattern="^[A-Z][a-z]$")] | None = None


class ExportResult(BaseModel):
    """The URL of the file, its number of rows and its size in bytes."""

    download_url: str
    rows: int
    size: int


class Character(BaseModel):
    """One row of the export."""

    code_point: str
    character: str
    name: str
    category: str
    bidirectional: str
    combining: int
    mirrored: bool
    width: str
    numeric: float | None
    decomposition: str
    uppercase: str
    lowercase: str
    titlecase: str
    canonical: str
    compatible: str
    utf8: str


@jobs.handler("export", timeout=300, estimate=5)
async def export(cmd: ExportRequest, job: JobContext) -> ExportResult:
    """Write the characters to a file, one row at a time."""
    characters = await anyio.to_thread.run_sync(assigned, cmd.category)
    if not characters:
        raise JobFailed(f"No character has the category {cmd.category}.", "empty_export")
    rows = job.track(characters, unit="rows", message="writing")
    saved = await job.save_file(f"characters.{cmd.format}", lines(rows, cmd.format))
    # The applications serve the jobs and their files below this prefix.
    url = f"/api/jobs/{saved.path}"
    return ExportResult(download_url=url, rows=len(characters), size=saved.size or 0)


async def lines(
    characters: AsyncIterable[str], format: Literal["csv", "jsonl"]
) -> AsyncIterator[bytes]:
    """Yield the rows as bytes, so that no more than one of them is in memory."""
    text = io.StringIO(newline="")
    write = writer(text, format)
    async for character in characters:
        write(described(character))
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()


def assigned(category: str | None) -> list[str]:
    """Return all characters, or those of one category."""
    every = map(chr, range(0x110000))
    if category is not None:
        return [one for one in every if unicodedata.category(one) == category]
    return [one for one in every if unicodedata.category(one) not in NO_CHARACTERS]


def described(character: str) -> Character:
    """Return the database entry of a character."""
    return Character(
        code_point=f"U+{ord(character):04X}",
        character=character,
        name=unicodedata.name(character, ""),
        category=unicodedata.category(character),
        bidirectional=unicodedata.bidirectional(character),
        combining=unicodedata.combining(character),
        mirrored=bool(unicodedata.mirrored(character)),
        width=unicodedata.east_asian_width(character),
        numeric=unicodedata.numeric(character, None),
        decomposition=unicodedata.decomposition(character),
        uppercase=character.upper(),
        lowercase=character.lower(),
        titlecase=character.title(),
        canonical=unicodedata.normalize("NFD", character),
        compatible=unicodedata.normalize("NFKD", character),
        utf8=character.encode().hex(" "),
    )


def writer(file: TextIO, format: Literal["csv", "jsonl"]) -> Callable[[Character], object]:
    """Return a function that writes one row to the file."""
    if format == "jsonl":
        return lambda row: file.write(json.dumps(row.model_dump(), ensure_ascii=False) + "\n")
    columns = csv.DictWriter(file, fieldnames=list(Character.model_fields))
    columns.writeheader()
    return lambda row: columns.writerow(row.model_dump())
