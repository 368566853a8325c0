"""Rules of the examples that OpenAPI cannot express, for schemathesis."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import schemathesis


@schemathesis.hook  # pyright: ignore[reportUnknownMemberType]  # partially typed
def before_call(_: schemathesis.HookContext, case: Any, __: dict[str, Any]) -> None:
    """Export little, and use an idempotency key for one payload only.

    Exports of all characters take seconds each. Dozens of them would run at once, and held requests
    and streams last as long as they do.

    draft-ietf-httpapi-idempotency-key-header, section 2.2: a key must not be reused with another
    payload. Section 2.7 answers that with 422, even if both payloads are valid.
    """
    headers: Any = case.headers
    valid = case.meta is not None and case.meta.generation.mode.is_positive
    body: Any = case.body
    if valid and isinstance(body, dict):
        order = cast("dict[str, Any]", body)
        order["category"] = order.get("category") or "Zs"
    if headers is not None and valid and (key := headers.get("Idempotency-Key")) is not None:
        digest = hashlib.sha256(repr(case.body).encode()).hexdigest()[:8]
        quote = '"' if key.startswith('"') else ""
        # In front: cutting at the end could split an escape sequence.
        headers["Idempotency-Key"] = f"{quote}{digest}{key.removeprefix(quote)}"
