"""The checks of the Redis store before it stores jobs on a server."""

from __future__ import annotations

from typing import Any

from asyncjobs.errors import SchemaError, StoreUnavailable
from asyncjobs.protocols import Finding
from asyncjobs.records.logging import log
from asyncjobs.stores.opening import require_version
from asyncjobs.stores.redis.scripts import Keys
from asyncjobs.stores.redis.server import RedisServer

# The version of the layout in `scripts`. Keys of another version are left alone.
_SCHEMA_VERSION = 1

# The first versions with script flags, which ensure that a script is not aborted halfway.
_MIN_VERSIONS = {"redis": 7, "valkey": 8}


async def check(server: RedisServer, keys: Keys) -> None:
    """Raise `SchemaError` for an unusable server or keys, and warn if the server can lose jobs."""
    await _check_version(server)
    await _check_kinds(server, keys)
    await _check_schema(server, keys.schema)
    await _warn_of_losses(server)


async def inspect(server: RedisServer, schema_key: str) -> list[Finding]:
    """Return the settings of the server, as far as it permits reading them."""
    about = await _allowed(server, "INFO", "server") or {}
    config = await _allowed(server, "CONFIG GET", "maxmemory-policy", "append*") or {}
    schema = (await server.command("GET", schema_key) or b"none").decode(errors="replace")
    kinds = {"Valkey": "valkey_version", "Redis": "redis_version"}
    found = [Finding(kind, about[name]) for kind, name in kinds.items() if name in about][:1]
    found.append(Finding("schema version", f"{schema} of {_SCHEMA_VERSION}"))
    if not config:
        return [*found, Finding("settings", "unknown", "check them yourself: docs/howto/redis")]
    policy, log_, sync = (config[n] for n in ("maxmemory-policy", "appendonly", "appendfsync"))
    what = _evicted_by(policy)
    evicts = f"{what} are evicted when memory is full; set it to noeviction" if what else ""
    forgets = "a restart loses jobs; set it to yes"
    unsynced = "a crash of the machine may lose half a minute of jobs; set it to everysec or always"
    found.append(Finding("maxmemory-policy", policy, evicts))
    found.append(Finding("appendonly", log_, forgets if log_ == "no" else ""))
    return [*found, Finding("appendfsync", sync, unsynced if sync == "no" else "")]


async def _check_version(server: RedisServer) -> None:
    about = await _allowed(server, "INFO", "server")
    if about is None:
        return
    product = "valkey" if "valkey_version" in about else "redis"
    least = _MIN_VERSIONS[product]
    version = str(about[f"{product}_version"])
    if int(version.partition(".")[0]) < least:
        raise SchemaError(
            server.name,
            f"it is {product.title()} {version}; version {least} or later is required",
        )


async def _check_kinds(server: RedisServer, keys: Keys) -> None:
    kinds = {keys.schema: "string", keys.sequence: "string", keys.held: "hash", keys.all: "zset"}
    found = await server.read([("TYPE", key) for key in kinds])
    for (key, wanted), kind in zip(kinds.items(), found, strict=True):
        if kind.decode() not in (wanted, "none"):
            raise _foreign(server, key)


async def _check_schema(server: RedisServer, key: str) -> None:
    # Read before writing: a full server or a replica can still serve the jobs it has.
    found = await server.command("GET", key)
    if found is None:
        # NX with GET: if several processes start at once, all see the same version.
        found = await server.command("SET", key, _SCHEMA_VERSION, "NX", "GET")
    version = (found or b"%d" % _SCHEMA_VERSION).decode(errors="replace")
    if not version.isdecimal():
        raise _foreign(server, key)
    require_version(server.name, int(version), _SCHEMA_VERSION)


def _foreign(server: RedisServer, key: str) -> SchemaError:
    return SchemaError(server.name, f"the key {key} belongs to another program")


async def _warn_of_losses(server: RedisServer) -> None:
    config = await _allowed(server, "CONFIG GET", "maxmemory-policy", "appendonly")
    if config is None:
        return
    policy = str(config.get("maxmemory-policy", ""))
    if evicted := _evicted_by(policy):
        log.warning(
            "The store %s evicts %s when its memory is full (maxmemory-policy %s); "
            "set it to noeviction",
            server.name,
            evicted,
            policy,
        )
    if config.get("appendonly") == "no":
        log.warning(
            "The store %s loses jobs when it is restarted, because it keeps no log of its writes "
            "(appendonly no); set it to yes",
            server.name,
        )


def _evicted_by(policy: str) -> str:
    """Return what is evicted when memory is full; only finished jobs have an expiry."""
    evicted = {"allkeys": "jobs", "volatile": "finished jobs"}
    return evicted.get(policy.partition("-")[0], "")


async def _allowed(server: RedisServer, *words: str) -> dict[str, Any] | None:
    """Send a command that many hosting providers forbid; return None if it is forbidden."""
    try:
        answer: dict[str, Any] = await server.command(*words)
    except StoreUnavailable as error:
        if not _is_forbidden(error):
            raise
        log.debug("The store %s does not allow %s: %s", server.name, words[0], error.reason)
        return None
    return answer


def _is_forbidden(error: StoreUnavailable) -> bool:
    return type(error.__cause__).__name__ == "NoPermissionError" or "unknown" in error.reason
