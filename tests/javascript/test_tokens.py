"""The tokens as another library sees them: jose, of npm."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from asyncjobs import Tokens
from asyncjobs.core.job import new_job_id
from asyncjobs.testing import ManualClock

Node = Callable[..., str]

FIRST, SECOND = "the first of two secrets, in 32 bytes", "the second of two secrets, in 32 bytes"


def test_jose_verifies_a_token_with_the_secret_until_it_ends(node: Node) -> None:
    now, job_id = ManualClock().now(), new_job_id()
    tokens = Tokens({"2026-02": SECOND, "2026-01": FIRST}, lifetime=60)
    issued = tokens.issue(job_id, now)

    def verified(secret: str, after: timedelta) -> dict[str, Any]:
        moment = str(int((now + after).timestamp()))
        found: dict[str, Any] = json.loads(node("verify.mjs", issued.text, secret, moment))
        return found

    right = verified(SECOND, timedelta(seconds=59))
    assert right["header"] == {"alg": "HS256", "kid": "2026-02", "typ": "JWT"}
    assert right["payload"]["sub"] == job_id
    assert right["payload"]["scope"] == "read output cancel"
    assert right["payload"]["exp"] == int(issued.expires_at.timestamp())
    assert verified(SECOND, timedelta(seconds=60)) == {"error": "ERR_JWT_EXPIRED"}
    assert verified(FIRST, timedelta()) == {"error": "ERR_JWS_SIGNATURE_VERIFICATION_FAILED"}
