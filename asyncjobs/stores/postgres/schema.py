"""The tables of `stores.postgres`: their definition, creation, checks and inspection."""

from __future__ import annotations

from psycopg import errors

from asyncjobs.errors import SchemaError
from asyncjobs.protocols import Finding
from asyncjobs.stores.opening import require_version
from asyncjobs.stores.postgres.connections import Session
from asyncjobs.stores.postgres.output import FUNCTIONS
from asyncjobs.stores.sql import script_since

#: The first version that supports all statements; a `server_version_num`.
MIN_SERVER_VERSION = 120_000

_SCHEMA_VERSION = 1

# The hot row stays narrow: a change of state writes a new version of it and some index entries,
# while submission, payload, result and errors are in other tables. Rows of all tables share `seq`,
# which grows, so jobs with the same due time run in the order in which they came. Times are
# microseconds since 1970.
#
# Only jobs with tags or in a batch have rows in `labels`. `tallies` has a row for each batch, which
# most changes of its jobs write. `stored` is the number of its jobs that are stored now.
#
# Only jobs with output have rows in the last three tables: the epoch and the sizes of the job, the
# sizes of each stream, and a chunk for each append.
#
# The idempotency key is part of the hot row, so a single unique index decides between racing
# submissions. Jobs without an owner count as having one common owner, distinct from every name.
_TABLES = (
    """
CREATE SEQUENCE {s}.jobs_seq;
CREATE SEQUENCE {s}.changes;
CREATE TABLE {s}.jobs (
    seq bigint NOT NULL PRIMARY KEY,
    due_at bigint,
    revision bigint NOT NULL,
    id text COLLATE "C" NOT NULL CONSTRAINT jobs_id UNIQUE,
    lane text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    owner text COLLATE "C",
    key text COLLATE "C",
    state bytea NOT NULL
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05
);
CREATE INDEX jobs_due ON {s}.jobs (lane, due_at, seq) WHERE due_at IS NOT NULL;
CREATE UNIQUE INDEX jobs_key ON {s}.jobs (key, type, coalesce(owner, ''), (owner IS NULL))
    WHERE key IS NOT NULL;
CREATE INDEX jobs_owned ON {s}.jobs (owner, seq) WHERE owner IS NOT NULL;
CREATE INDEX jobs_completed ON {s}.jobs (type, seq) WHERE status = 'completed';
CREATE TABLE {s}.submissions (
    seq bigint PRIMARY KEY, submission bytea NOT NULL, payload bytea NOT NULL
);
CREATE TABLE {s}.results (seq bigint PRIMARY KEY, result bytea, errors bytea);
CREATE TABLE {s}.labels (
    label text COLLATE "C" NOT NULL, seq bigint NOT NULL, PRIMARY KEY (label, seq)
);
CREATE INDEX labels_of_job ON {s}.labels (seq);
CREATE TABLE {s}.tallies (
    label text COLLATE "C" PRIMARY KEY, stored bigint NOT NULL, counters jsonb NOT NULL
) WITH (fillfactor = 20);
CREATE TABLE {s}.outputs (
    seq bigint PRIMARY KEY, epoch bigint NOT NULL, items bigint NOT NULL, bytes bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE {s}.output_streams (
    seq bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    items bigint NOT NULL,
    bytes bigint NOT NULL,
    epoch bigint NOT NULL,
    PRIMARY KEY (seq, name)
) WITH (fillfactor = 50);
CREATE TABLE {s}.output_chunks (
    seq bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    units bigint NOT NULL,
    epoch bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (seq, name, position)
);
"""
    + FUNCTIONS
)

# Not CREATE SCHEMA IF NOT EXISTS: that needs the right to create one even if it exists.
_BEGIN = """
SELECT pg_advisory_xact_lock(hashtext('asyncjobs'), hashtext('{s}'));
DO $$ BEGIN
    IF to_regnamespace('{s}') IS NULL THEN CREATE SCHEMA {s}; END IF;
END $$;
CREATE TABLE IF NOT EXISTS {s}.asyncjobs_versions (
    version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now()
);
"""
_SERVER = (
    "SELECT current_setting('server_encoding'), current_setting('server_version'),"
    " current_setting('server_version_num')"
)
_RECORD = f"INSERT INTO {{s}}.asyncjobs_versions (version) VALUES ({_SCHEMA_VERSION});\n"  # noqa: S608  # a constant

# Other processes that open the store at the same time wait for the lock.
_MAX_SECONDS = 600.0

# Settings that must be on, and the advice if they are off.
_DURABILITY = {
    "synchronous_commit": "a crash loses the most recent jobs; set it to on",
    "fsync": "a power failure may destroy the database; set it to on",
    "full_page_writes": "a power failure may destroy the database; set it to on",
}
_SETTINGS = (
    "SELECT current_setting(name) FROM unnest(%b::text[]) WITH ORDINALITY AS _(name, place)"
    " ORDER BY place"
)
_SETUP = (
    "SELECT current_setting('server_version'), pg_is_in_recovery(), pg_backend_pid(),"
    " (SELECT max(version) FROM {s}.asyncjobs_versions)"
)

_FOREIGN = (
    errors.DuplicateTable,
    errors.DuplicateObject,
    errors.UndefinedColumn,
    errors.WrongObjectType,
)


def migration_sql(schema: str = "asyncjobs", *, since: int = 0) -> str:
    """Return the script that makes the tables of a schema from `since`; 0 means no tables.

    It is for applications whose role may not create tables; otherwise opening the store does this.
    """
    script = f"BEGIN;{_BEGIN}{_TABLES}{_RECORD}COMMIT;\n".replace("{s}", f'"{schema}"')
    return script_since(since, version=_SCHEMA_VERSION, script=script)


async def prepare(session: Session) -> None:
    """Make the tables if there are none; raise `SchemaError` if the existing ones are unusable.

    If the tables are up to date, nothing is written and no right to do so is needed.
    """
    server = session.server
    [(encoding, name, number)] = await session.rows(_SERVER)
    if int(number) < MIN_SERVER_VERSION:
        least = MIN_SERVER_VERSION // 10_000
        reason = f"it is PostgreSQL {name}; version {least} or later is required"
        raise SchemaError(server.name, reason)
    if encoding != "UTF8":
        raise SchemaError(server.name, f"its encoding is {encoding}, but must be UTF8")
    try:
        if not await _has_tables(session):
            await _make_tables(session)
    except _FOREIGN as error:
        reason = f"its schema {server.schema!r} has tables of another program"
        raise SchemaError(server.name, reason) from error


async def _make_tables(session: Session) -> None:
    try:
        async with session.transaction():
            await session.rows(f"SET LOCAL statement_timeout = '{_MAX_SECONDS:.0f}s'")
            await session.rows(_BEGIN, within=_MAX_SECONDS)
            if not await _has_tables(session):
                await session.rows(_TABLES + _RECORD, within=_MAX_SECONDS)
    except errors.InsufficientPrivilege as error:
        reason = (
            f"its schema {session.server.schema!r} is not of version {_SCHEMA_VERSION}, and this "
            "role may not change it; run the script of `migration_sql` as its owner"
        )
        raise SchemaError(session.server.name, reason) from error


async def _has_tables(session: Session) -> bool:
    """Return whether the schema has a version; raise `SchemaError` if it is not ours."""
    [(exists,)] = await session.rows("SELECT to_regclass('{s}.asyncjobs_versions') IS NOT NULL")
    if not exists:
        return False
    [(version,)] = await session.rows("SELECT max(version) FROM {s}.asyncjobs_versions")
    if version is None:
        return False
    require_version(session.server.name, version, _SCHEMA_VERSION)
    return True


async def inspect(session: Session) -> list[Finding]:
    """Return the server's settings as a session of the store sees them."""
    [(name, standby, process, schema)] = await session.rows(_SETUP)
    values = await session.rows(_SETTINGS, list(_DURABILITY))
    return [
        Finding("PostgreSQL", str(name)),
        Finding("role", *_role(standby=bool(standby))),
        Finding("connections", *_way(session, int(process))),
        Finding("schema version", f"{schema} of {_SCHEMA_VERSION}"),
        *(
            Finding(setting, str(value), advice if value == "off" else "")
            for (setting, advice), (value,) in zip(_DURABILITY.items(), values, strict=True)
        ),
    ]


def _role(*, standby: bool) -> tuple[str, str]:
    return ("standby", "name the primary in the URL") if standby else ("primary", "")


def _way(session: Session, process: int) -> tuple[str, str]:
    """Detect a pooler: another server process answers than the one connected to."""
    if process == session.connection.info.backend_pid:
        return "direct", ""
    known = session.server.pgbouncer
    advice = "" if known else "if it is in transaction mode, add pgbouncer=true to the URL"
    return "through a pooler", advice
