"""What is held of a user, for the user to read: the row, its items by their names in the catalogue."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from functions.core.events import EVENT_TYPES
from functions.core.favourites import KIND, WEIGHTS, item_prefix
from functions.core.served import ServedBundle
from functions.core.times import rfc3339
from functions.core.user_row import UserRow, encode

TYPES = ("other", *EVENT_TYPES)
# What this answer does not have, for the user to know what to ask the shop for (`python -m local held`).
ELSEWHERE = (
    {
        "where": "archive",
        "what": "every accepted event as it was sent, from the first or from the last erasure on",
    },
    {"where": "stream", "what": "accepted events that are neither in the row nor in the archive yet"},
    {"where": "quarantine", "what": "accepted records that could not be processed, for 90 days"},
)


def held(user_key: str, row: UserRow | None, bundle: ServedBundle | None) -> dict[str, Any]:
    """The answer of `GET /v1/me`. An item that the catalogue does not have (or no bundle) is null.

    Raises whatever reading the bundle's files does.
    """
    if row is None:
        return {"user_key": user_key, "row": None, "elsewhere": ELSEWHERE}
    names = _names(row, bundle)
    return {
        "user_key": user_key,
        "row": {
            "version": row.version,
            "last_event_time": rfc3339(row.last_s) if row.ring else None,
            "events": [{"type": TYPES[e.kind], "item_id": names.get(e.item)} for e in row.ring],
            "favourites": [
                {
                    "type": TYPES[kept[-1] & KIND],
                    "item_id": names.get(item_prefix(kept)),
                    "weight": round(WEIGHTS[code], 3),
                }
                for kept, code in row.favourites.codes
            ],
            "impressions": [{"item_id": names.get(key), "time": rfc3339(at)} for key, at in row.seen],
            "stored": {
                name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
                for name, value in encode(row).items()
            },
        },
        "elsewhere": ELSEWHERE,
    }


def _names(row: UserRow, bundle: ServedBundle | None) -> Mapping[bytes, str]:
    if bundle is None:
        return {}
    keys = [entry.item for entry in row.ring] + [key for key, _ in row.seen]
    keys += [item_prefix(kept) for kept, _ in row.favourites.codes]
    found = [(key, item) for key, item in zip(keys, bundle.items.rows(keys), strict=True) if item is not None]
    products = bundle.catalogue.products([item for _, item in found])
    return {key: product.item_id for (key, _), product in zip(found, products, strict=True)}
