"""The output of jobs in the PostgreSQL store: functions of the schema, and their callers.

An append is a function of the schema, so that a call is one statement. The function first locks the
job's row, as `UPDATE` does: an append and the end of its job come one after the other. The rows of
a call are locked in the order of the ids, like those of `replace`. After that, each statement of
the function sees all that was committed before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from asyncjobs.core.job import JobId
from asyncjobs.core.output import (
    MAX_STREAMS,
    Append,
    Appended,
    Chunk,
    OutputPart,
    ReadFrom,
    Refusal,
    StreamInfo,
    StreamKind,
)
from asyncjobs.stores.appends import append_in_portions
from asyncjobs.stores.postgres.connections import Session
from asyncjobs.stores.postgres.values import escaped, portions, unescaped

_APPEND = """
CREATE FUNCTION {s}.append_output(
    job_ids text[], names text[], kinds text[], epochs bigint[], numbers bigint[], units bigint[],
    positions bigint[], most_items bigint[], most_bytes bigint[], chunks bytea[]
) RETURNS TABLE (stored_end bigint, refusal text) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    amount integer := coalesce(cardinality(job_ids), 0);
    size bigint;
    job_seq bigint;
    job_status text;
    job_epoch bigint;
    job_items bigint;
    job_bytes bigint;
    stored boolean;
    refusals jsonb;
    known boolean;
    known_kind text;
    known_items bigint;
    known_bytes bigint;
BEGIN
    FOR place IN 1 .. amount LOOP
        IF place = 1 OR job_ids[place] <> job_ids[place - 1] THEN
            refusals := '{}';
            stored := false;
            SELECT seq, status INTO job_seq, job_status
            FROM {s}.jobs WHERE id = job_ids[place] FOR NO KEY UPDATE;
            SELECT epoch, items, bytes INTO job_epoch, job_items, job_bytes
            FROM {s}.outputs WHERE seq = job_seq;
            IF NOT FOUND THEN
                job_epoch := 0;
                job_items := 0;
                job_bytes := 0;
            END IF;
        END IF;
        size := length(chunks[place]);
        stored_end := 0;
        refusal := refusals ->> names[place];
        IF refusal IS NULL THEN
            SELECT kind, items, bytes INTO known_kind, known_items, known_bytes
            FROM {s}.output_streams WHERE seq = job_seq AND name = names[place];
            known := FOUND;
            IF known THEN
                stored_end := CASE known_kind WHEN 'json' THEN known_items ELSE known_bytes END;
            END IF;
            refusal := CASE
                WHEN job_seq IS NULL THEN 'gone'
                WHEN job_status <> 'processing' THEN 'ended'
                WHEN epochs[place] < job_epoch THEN 'stale'
                WHEN known AND known_kind <> kinds[place] THEN 'kind'
            END;
            IF refusal IS NULL AND units[place] > 0 AND positions[place] <> stored_end THEN
                stored_end := positions[place] + units[place];
                PERFORM FROM {s}.output_chunks
                WHERE seq = job_seq AND name = names[place] AND position = positions[place]
                    AND units = append_output.units[place] AND epoch = epochs[place]
                    AND data = chunks[place];
                IF NOT FOUND THEN
                    refusal := 'moved';
                END IF;
            ELSIF refusal IS NULL AND (
                job_items + numbers[place] > most_items[place]
                OR job_bytes + size > most_bytes[place]
                OR (
                    NOT known
                    AND (SELECT count(*) FROM {s}.output_streams WHERE seq = job_seq) >= {streams}
                )
            ) THEN
                refusal := 'full';
            ELSIF refusal IS NULL THEN
                IF units[place] > 0 THEN
                    INSERT INTO {s}.output_chunks (seq, name, position, units, epoch, data)
                    VALUES (
                        job_seq, names[place], stored_end, append_output.units[place],
                        epochs[place], chunks[place]
                    );
                END IF;
                IF known THEN
                    UPDATE {s}.output_streams SET items = items + numbers[place],
                        bytes = bytes + size, epoch = epochs[place]
                    WHERE seq = job_seq AND name = names[place];
                ELSE
                    INSERT INTO {s}.output_streams (seq, name, kind, items, bytes, epoch)
                    VALUES (
                        job_seq, names[place], kinds[place], numbers[place], size, epochs[place]
                    );
                END IF;
                job_epoch := epochs[place];
                job_items := job_items + numbers[place];
                job_bytes := job_bytes + size;
                stored_end := stored_end + units[place];
                stored := true;
            END IF;
            IF refusal IS NOT NULL THEN
                refusals := refusals || jsonb_build_object(names[place], refusal);
            END IF;
        END IF;
        RETURN NEXT;
        IF stored AND (place = amount OR job_ids[place] <> job_ids[place + 1]) THEN
            INSERT INTO {s}.outputs (seq, epoch, items, bytes)
            VALUES (job_seq, job_epoch, job_items, job_bytes)
            ON CONFLICT (seq) DO UPDATE SET epoch = excluded.epoch, items = excluded.items,
                bytes = excluded.bytes;
        END IF;
    END LOOP;
END $$;
""".replace("{streams}", str(MAX_STREAMS))

# Stops at the first chunk that does not fit: a window function would read the stream to its end.
_READ = """
CREATE FUNCTION {s}.read_output(
    job_ids text[], names text[], positions bigint[], sizes bigint[]
) RETURNS TABLE (
    place integer, kind text, end_items bigint, end_bytes bigint, end_epoch bigint,
    "position" bigint, units bigint, epoch bigint, data bytea
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    job_seq bigint;
    room bigint;
BEGIN
    FOR number IN 1 .. coalesce(cardinality(job_ids), 0) LOOP
        SELECT seq, kind, items, bytes, output_streams.epoch
        INTO job_seq, kind, end_items, end_bytes, end_epoch
        FROM {s}.jobs JOIN {s}.output_streams USING (seq)
        WHERE id = job_ids[number] AND name = names[number];
        CONTINUE WHEN NOT FOUND;
        place := number;
        units := NULL;
        room := sizes[number];
        IF positions[number] < (CASE kind WHEN 'json' THEN end_items ELSE end_bytes END) THEN
            FOR position, units, epoch, data IN
                SELECT position, units, epoch, data FROM {s}.output_chunks AS chunk
                WHERE seq = job_seq AND name = names[number] AND position >= (
                    SELECT max(position) FROM {s}.output_chunks
                    WHERE seq = job_seq AND name = names[number] AND position <= positions[number]
                ) ORDER BY position
            LOOP
                EXIT WHEN length(data) > room AND room < sizes[number];
                room := room - length(data);
                RETURN NEXT;
            END LOOP;
        ELSE
            RETURN NEXT;
        END IF;
    END LOOP;
END $$;
"""

_FORGET = """
CREATE FUNCTION {s}.forget_output(seqs bigint[]) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM {s}.outputs WHERE seq = ANY (seqs);
    IF FOUND THEN
        DELETE FROM {s}.output_chunks WHERE seq = ANY (seqs);
        DELETE FROM {s}.output_streams WHERE seq = ANY (seqs);
        DELETE FROM {s}.outputs WHERE seq = ANY (seqs);
    END IF;
    RETURN NULL;
END $$;
"""

#: The script that makes the functions.
FUNCTIONS = _APPEND + _READ + _FORGET

APPEND = """
SELECT stored_end, refusal FROM {s}.append_output(
    %b::text[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::bigint[],
    %b::bigint[], %b::bigint[], %b::bigint[], %b::bytea[]
)
"""

BEGIN_EPOCH = """
INSERT INTO {s}.outputs AS old (seq, epoch, items, bytes)
SELECT seq, %b::bigint, 0, 0
FROM (SELECT seq FROM {s}.jobs WHERE id = %b::text FOR NO KEY UPDATE) AS job
ON CONFLICT (seq) DO UPDATE SET epoch = greatest(old.epoch, excluded.epoch)
"""

READ = """
SELECT place, kind, end_items, end_bytes, end_epoch, position, units, epoch, data
FROM {s}.read_output(%b::text[], %b::text[], %b::bigint[], %b::bigint[])
"""

OUTPUTS = """
SELECT id, name, kind, items, bytes, epoch
FROM {s}.jobs JOIN {s}.output_streams USING (seq) WHERE id = ANY (%b::text[])
"""


async def append(db: Session, appends: Sequence[Append]) -> list[Appended]:
    """Add items to streams; return for each append the new end, or why it was refused."""

    async def send(some: list[Append]) -> list[Appended]:
        rows = await db.rows(APPEND, *_columns(some))
        return [
            Appended(end) if refusal is None else Appended(refusal=Refusal(refusal))
            for end, refusal in rows
        ]

    order = sorted(range(len(appends)), key=lambda place: appends[place].job_id)
    sizes = [len(one.data) for one in appends]
    return await append_in_portions(appends, portions(order, sizes), send)


async def begin_epoch(db: Session, job_id: JobId, epoch: int) -> None:
    """Refuse appends of lower epochs from now on."""
    await db.rows(BEGIN_EPOCH, epoch, escaped(job_id))


async def read_output(db: Session, reads: Sequence[ReadFrom]) -> list[OutputPart | None]:
    """Read the chunks after each position; None for a stream that does not exist."""
    found: dict[int, tuple[Any, ...]] = {}
    chunks: defaultdict[int, list[Chunk]] = defaultdict(list)
    for places in portions(range(len(reads)), [one.max_bytes for one in reads]):
        some = [reads[place] for place in places]
        rows = await db.rows(
            READ,
            [escaped(one.job_id) for one in some],
            [escaped(one.stream) for one in some],
            [one.position for one in some],
            [one.max_bytes for one in some],
        )
        for number, *ends, position, units, epoch, data in rows:
            place = places[int(number) - 1]
            found[place] = tuple(ends)
            if units is not None:
                chunks[place].append(Chunk(position, units, epoch, bytes(data)))
    return [
        _part(found[place], chunks[place]) if place in found else None
        for place in range(len(reads))
    ]


async def outputs(db: Session, ids: Sequence[JobId]) -> list[list[StreamInfo]]:
    """Read the streams of each job."""
    names = [escaped(job_id) for job_id in ids]
    found: defaultdict[str, list[StreamInfo]] = defaultdict(list)
    for job_id, name, kind, *rest in await db.rows(OUTPUTS, names):
        found[job_id].append(StreamInfo(unescaped(name), StreamKind(kind), *rest))
    return [sorted(found[name], key=attrgetter("name")) for name in names]


def _columns(appends: list[Append]) -> list[list[Any]]:
    return [
        [escaped(one.job_id) for one in appends],
        [escaped(one.stream) for one in appends],
        [one.kind.value for one in appends],
        [one.epoch for one in appends],
        [one.items for one in appends],
        [one.units for one in appends],
        [one.position for one in appends],
        [one.max_items for one in appends],
        [one.max_bytes for one in appends],
        [one.data for one in appends],
    ]


def _part(ends: tuple[Any, ...], chunks: list[Chunk]) -> OutputPart:
    kind, items, size, epoch = ends
    end = items if kind == StreamKind.JSON else size
    return OutputPart(StreamKind(kind), tuple(chunks), end, epoch)
