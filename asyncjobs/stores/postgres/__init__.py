"""The PostgreSQL store."""

from asyncjobs.stores.postgres.store import PostgresStore, from_url

__all__ = ["PostgresStore", "from_url"]
