"""The keys of a store on its server, as docs/howto/redis.md lists them."""

from __future__ import annotations

from asyncjobs.stores.redis import RedisStore


def key_of(store: RedisStore, name: str) -> str:
    return f"{{{store.namespace}}}:{name}"
