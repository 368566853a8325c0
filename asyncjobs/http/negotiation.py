"""Whether a person or a program asks: the `Accept` header (RFC 9110 section 12.5.1)."""

from __future__ import annotations

import re

_RANGE = re.compile(r"\s*([^\s;,/]+/[^\s;,/]+)\s*((?:;[^,]*)?)")
_QUALITY = re.compile(r";\s*q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)


def prefers_html(accept: str | None) -> bool:
    """Tell whether HTML is wanted more than JSON: browsers name it, programs hardly ever do."""
    if not accept or accept == "*/*":
        return False
    return _quality(accept, "text", "html") > _quality(accept, "application", "json")


def _quality(accept: str, kind: str, subtype: str) -> float:
    """Return the weight of a media type: that of the most specific range it falls into."""
    wanted = {f"{kind}/{subtype}": 2, f"{kind}/*": 1, "*/*": 0}
    found = (-1, 0.0)
    for part in accept.split(","):
        match = _RANGE.fullmatch(part)
        if match is None or (precision := wanted.get(match[1].lower())) is None:
            continue
        weight = _QUALITY.search(match[2])
        found = max(found, (precision, float(weight[1]) if weight else 1.0))
    return found[1]
