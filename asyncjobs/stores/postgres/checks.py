"""What a PostgreSQL server and its settings are found to be."""

from __future__ import annotations

from asyncjobs.protocols import Finding
from asyncjobs.stores.postgres.schema import MIGRATIONS
from asyncjobs.stores.postgres.session import Session

# What must not be, and what to do about it.
_LOSES = {
    "synchronous_commit": "a crash loses the jobs of the last moments; set it to on",
    "fsync": "a power failure may destroy the database; set it to on",
    "full_page_writes": "a power failure may destroy the database; set it to on",
}

_ASKED = (
    "SELECT current_setting(name) FROM unnest(%b::text[]) WITH ORDINALITY AS _(name, place)"
    " ORDER BY place"
)
_VERSION = (
    "SELECT current_setting('server_version'), pg_is_in_recovery(), pg_backend_pid(),"
    " (SELECT max(version) FROM {s}.asyncjobs_versions)"
)


async def inspect(session: Session) -> list[Finding]:
    """Look at the server as a session of the store sees it."""
    [(name, standby, process, schema)] = await session.rows(_VERSION)
    values = await session.rows(_ASKED, list(_LOSES))
    return [
        Finding("PostgreSQL", str(name)),
        Finding("role", *_role(standby=bool(standby))),
        Finding("connections", *_way(session, int(process))),
        Finding("schema version", f"{schema} of {len(MIGRATIONS)}"),
        *(
            Finding(setting, str(value), advice if value == "off" else "")
            for (setting, advice), (value,) in zip(_LOSES.items(), values, strict=True)
        ),
    ]


def _role(*, standby: bool) -> tuple[str, str]:
    return ("standby", "name the primary in the URL") if standby else ("primary", "")


def _way(session: Session, process: int) -> tuple[str, str]:
    """Tell a pooler by the process that answers, which is not the one that was connected to."""
    if process == session.connection.info.backend_pid:
        return "direct", ""
    told = session.server.pgbouncer
    advice = "" if told else "say pgbouncer=true in the URL where it is in transaction mode"
    return "through a pooler", advice
