"""The query strings of the routes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from asyncjobs.errors import InvalidQuery
from asyncjobs.model import JobStatus

_MOST = 100

_USUAL = 20

# More than any honest client sends.
_MOST_PARAMETERS = 50


@dataclass(frozen=True)
class PageQuery:
    """Which part of a list is asked for."""

    type: str | None = None
    status: JobStatus | None = None
    limit: int = _USUAL
    cursor: str | None = None

    def following(self, cursor: str) -> str:
        """Write the query string of the page that follows."""
        given = {
            "type": self.type,
            "status": self.status,
            "limit": None if self.limit == _USUAL else self.limit,
            "cursor": cursor,
        }
        return urlencode({name: value for name, value in given.items() if value is not None})


def parameters_of(query: str) -> dict[str, str]:
    """Read a query string; of a repeated parameter the first counts."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        return {}
    return dict(reversed(pairs))


def page_query_of(query: str) -> PageQuery:
    """Read what a list is asked for; raise `InvalidQuery`. Unknown parameters are ignored."""
    given = parameters_of(query)
    status, limit = given.get("status"), given.get("limit", str(_USUAL))
    if status is not None and status not in set(JobStatus):
        raise InvalidQuery("status", f"it is one of {', '.join(JobStatus)}")
    if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= _MOST:
        raise InvalidQuery("limit", f"it is a number from 1 to {_MOST}")
    return PageQuery(
        type=given.get("type"),
        status=None if status is None else JobStatus(status),
        limit=int(limit),
        cursor=given.get("cursor"),
    )
