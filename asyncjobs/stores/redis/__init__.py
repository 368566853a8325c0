"""The Redis store; it works with Valkey, too."""

from asyncjobs.stores.redis.store import RedisStore, from_url

__all__ = ["RedisStore", "from_url"]
