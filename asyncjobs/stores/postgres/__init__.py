"""The PostgreSQL store: jobs in a schema of a database."""

from asyncjobs.stores.postgres.schema import migration_sql
from asyncjobs.stores.postgres.store import PostgresStore, from_url

__all__ = ["PostgresStore", "from_url", "migration_sql"]
