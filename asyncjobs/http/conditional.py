"""Conditional reads: RFC 9110 section 13."""

from __future__ import annotations

import re

# RFC 9110 section 8.8.3: an opaque tag holds anything but quotes, blanks and controls.
_OPAQUE_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


def etag_of(version: int) -> str:
    """Make the strong ETag of a version."""
    return f'"{version}"'


def matches(if_none_match: str | None, etag: str) -> bool:
    """Tell whether the client has this representation already.

    Compares weakly, as section 13.1.2 asks of If-None-Match: caches on the way may have weakened
    the tag. What is not a tag is ignored.
    """
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in _OPAQUE_TAG.findall(if_none_match)
