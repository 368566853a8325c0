"""The tables of `stores.postgres`: how they are laid out, made and brought up to date."""

from __future__ import annotations

from psycopg import errors

from asyncjobs.errors import ConfigurationError, SchemaError
from asyncjobs.stores.postgres.session import Session

#: The first that knows all of what the statements say, as `server_version_num` tells it.
LEAST = 120_000

# One script per schema version, applied in order; never edited once released.
#
# The hot row stays narrow: a change of state makes a new version of it and of some index entries,
# while submission, payload and result lie elsewhere. Rows of all tables share `seq`, which grows,
# so that the jobs of one moment are due in the order they came. Moments are microseconds since
# 1970.
#
# An idempotency key is part of the hot row, so that one unique index on one table decides between
# racing submissions. No owner is one owner, and none that has a name.
MIGRATIONS = (
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
CREATE TABLE {s}.results (seq bigint PRIMARY KEY, result bytea NOT NULL);
""",
)

# Not CREATE SCHEMA IF NOT EXISTS: that asks for the right to make one even where there is one.
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
_RECORD = "INSERT INTO {s}.asyncjobs_versions (version) VALUES (%d);\n"

# Big tables take their time; others that open meanwhile wait for the lock.
_LONGEST_SECONDS = 600.0

_FOREIGN = (
    errors.DuplicateTable,
    errors.DuplicateObject,
    errors.UndefinedColumn,
    errors.WrongObjectType,
)


def migration_sql(schema: str = "asyncjobs", *, since: int = 0) -> str:
    """Return the script that brings a schema of version `since` up to date; 0 is none at all.

    For those whose application may not change tables: opening the store does the same by itself.
    """
    if since > len(MIGRATIONS):
        raise ConfigurationError(f"There is no version {since} yet; the last is {len(MIGRATIONS)}.")
    script = f"BEGIN;{_BEGIN}{_steps(since)}COMMIT;\n"
    return script.replace("{s}", f'"{schema}"')


async def prepare(session: Session) -> None:
    """Make the tables or bring them up to date; raise `SchemaError` where they cannot be used.

    Where they are as they must be, nothing is written and no right to do so is needed.
    """
    server = session.server
    [(encoding, name, number)] = await session.rows(_SERVER)
    if int(number) < LEAST:
        reason = f"it is PostgreSQL {name}; version {LEAST // 10_000} is the first that can be used"
        raise SchemaError(server.name, reason)
    if encoding != "UTF8":
        raise SchemaError(server.name, f"its encoding is {encoding}, it must be UTF8")
    try:
        version = await _version(session)
        if version < len(MIGRATIONS):
            await _migrate(session)
    except _FOREIGN as error:
        reason = f"its schema {server.schema!r} holds tables of another program"
        raise SchemaError(server.name, reason) from error


async def _migrate(session: Session) -> None:
    try:
        async with session.transaction():
            await session.rows(f"SET LOCAL statement_timeout = '{_LONGEST_SECONDS:.0f}s'")
            await session.rows(_BEGIN, within=_LONGEST_SECONDS)
            since = await _version(session)
            if since < len(MIGRATIONS):
                await session.rows(_steps(since), within=_LONGEST_SECONDS)
    except errors.InsufficientPrivilege as error:
        reason = (
            f"its schema {session.server.schema!r} is not of version {len(MIGRATIONS)}, and this "
            "role may not change it; let its owner run what `migration_sql` returns"
        )
        raise SchemaError(session.server.name, reason) from error


def _steps(since: int) -> str:
    numbered = enumerate(MIGRATIONS[since:], since + 1)
    return "".join(script + _RECORD % number for number, script in numbered)


async def _version(session: Session) -> int:
    """Return the version of the schema, 0 where there is none."""
    [(exists,)] = await session.rows("SELECT to_regclass('{s}.asyncjobs_versions') IS NOT NULL")
    if not exists:
        return 0
    [(version,)] = await session.rows(
        "SELECT coalesce(max(version), 0) FROM {s}.asyncjobs_versions"
    )
    if version > len(MIGRATIONS):
        name = session.server.name
        reason = f"it has schema version {version}, this asyncjobs knows {len(MIGRATIONS)}"
        raise SchemaError(name, reason)
    return int(version)
