"""The Redis store, for Valkey too."""

from asyncjobs.stores.redis.store import RedisStore, from_url

__all__ = ["RedisStore", "from_url"]
