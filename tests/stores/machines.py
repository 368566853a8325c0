"""Where the state machines that compare stores get a store on a server or in a file."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from asyncjobs.stores.postgres import PostgresStore
from asyncjobs.stores.redis import RedisStore

if TYPE_CHECKING:
    from tests.conftest import PostgresServer


class OnRedis:
    """In a new namespace each time; needs the fixture `redis_for_machines`."""

    url: ClassVar[str]
    namespace: ClassVar[str]

    def make_store(self) -> RedisStore:
        return RedisStore(self.url, namespace=f"{self.namespace}-{uuid.uuid4().hex}")


class OnPostgres:
    """In a new schema each time; needs the fixture `postgres_for_machines`."""

    server: ClassVar[PostgresServer]
    stack: ExitStack

    def make_store(self) -> PostgresStore:
        schema = f"agree_{uuid.uuid4().hex[:12]}"
        self.stack.callback(self.server.execute, f"DROP SCHEMA {schema} CASCADE")
        return PostgresStore(self.server.url, schema=schema)


def folder_until(stack: ExitStack) -> Path:
    """Return a new folder that is deleted when the stack closes."""
    folder = tempfile.mkdtemp()
    stack.callback(shutil.rmtree, folder)
    return Path(folder)
