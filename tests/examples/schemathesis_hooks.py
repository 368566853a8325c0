"""What schemathesis must know of the examples that OpenAPI has no words for."""

from __future__ import annotations

import hashlib
from typing import Any

import schemathesis


@schemathesis.hook  # pyright: ignore[reportUnknownMemberType]  # it is typed in part only
def before_call(_: schemathesis.HookContext, case: Any, __: dict[str, Any]) -> None:
    """Use an idempotency key for one payload only.

    Draft-ietf-httpapi-idempotency-key-header, section 2.2: a key must not be reused with another
    payload. Section 2.7 has 422 for who does, however valid both are.
    """
    headers: Any = case.headers
    valid = case.meta is not None and case.meta.generation.mode.is_positive
    if headers is not None and valid and (key := headers.get("Idempotency-Key")) is not None:
        digest = hashlib.sha256(repr(case.body).encode()).hexdigest()[:8]
        quote = '"' if key.startswith('"') else ""
        # In front, since a cut at the end might part what is escaped.
        headers["Idempotency-Key"] = f"{quote}{digest}{key.removeprefix(quote)}"
