"""Times as the API writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(time_s: int) -> str:
    """Seconds since 1970 as RFC 3339 in UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
