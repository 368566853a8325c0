"""All sides by name, and the subset that this machine can measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from benchmarks.places import Place
from benchmarks.sides.side import Side

STORES = ("memory", "sqlite", "postgres", "redis")


@dataclass(frozen=True)
class Entry:
    """The location of a side: its class, its arguments, and the package that it needs."""

    store: str
    module: str
    kind: str
    needs: str = "asyncjobs"
    arguments: Sequence[str] = ()

    @property
    def installed(self) -> bool:
        return find_spec(self.needs) is not None

    def side(self, place: Place) -> Side:
        kind = getattr(import_module(f"benchmarks.sides.{self.module}"), self.kind)
        side = kind(place, *self.arguments)
        assert isinstance(side, Side)
        return side


def _ours(store: str, dispatcher: str) -> Entry:
    return Entry(store, "ours", "Ours", arguments=(store, dispatcher))


#: asyncjobs first, then the floor, then others, for each store.
SIDES = {
    "asyncjobs local/memory": _ours("memory", "local"),
    "floor/memory": Entry("memory", "floor_memory", "MemoryFloor"),
    "asyncjobs/sqlite": _ours("sqlite", "worker"),
    "asyncjobs local/sqlite": _ours("sqlite", "local"),
    "floor/sqlite": Entry("sqlite", "floor_sqlite", "SQLiteFloor"),
    "litequeue": Entry("sqlite", "peers", "Litequeue", "litequeue"),
    "Huey": Entry("sqlite", "peers", "Huey", "huey"),
    "asyncjobs/postgres": _ours("postgres", "worker"),
    "floor/postgres": Entry("postgres", "floor_postgres", "PostgresFloor", "asyncpg"),
    "Procrastinate": Entry("postgres", "on_procrastinate", "ProcrastinateTasks", "procrastinate"),
    "PgQueuer": Entry("postgres", "peers", "PgQueuer", "pgqueuer"),
    "asyncjobs/redis": _ours("redis", "worker"),
    "floor/redis": Entry("redis", "floor_redis", "RedisFloor", "hiredis"),
    "Celery": Entry("redis", "on_celery", "CeleryTasks", "celery"),
    "dramatiq": Entry("redis", "on_dramatiq", "DramatiqTasks", "dramatiq"),
    "RQ": Entry("redis", "on_rq", "RQTasks", "rq"),
    "SAQ": Entry("redis", "on_saq", "SAQTasks", "saq"),
    "taskiq": Entry("redis", "on_taskiq", "TaskiqTasks", "taskiq_redis"),
}

#: asyncjobs queues on an engine, by the name of the engine.
ON_ENGINES = {
    "Celery": Entry("redis", "on_celery", "OnCelery", "celery"),
    "dramatiq": Entry("redis", "on_dramatiq", "OnDramatiq", "dramatiq"),
    "RQ": Entry("redis", "on_rq", "OnRQ", "rq"),
    "SAQ": Entry("redis", "on_saq", "OnSAQ", "saq"),
    "taskiq": Entry("redis", "on_taskiq", "OnTaskiq", "taskiq_redis"),
    "Procrastinate": Entry("postgres", "on_procrastinate", "OnProcrastinate", "procrastinate"),
}
