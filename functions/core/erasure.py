"""Erasure: what is left of a row, and which records of the log come after it.

An erasure is a record in the log, put with the user's own partition key: log order says, for every reader and
for every replay, which events are before it. So that nothing waits for the log, the row is also replaced by a
tombstone at once. The tombstone lets nothing of the user through until the log brings the record itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from functions.core.batches import StreamRecord
from functions.core.events import Event
from functions.core.records import Erasure
from functions.core.user_row import UserRow

ERASURE = "erasure"
RECEIPT_LIFETIME_S = 10 * 365 * 86_400
LOST_S = (
    2 * 86_400
)  # who came so long after the request comes after it in the log too, though a clock be wrong
NOBODY = UserRow(np.zeros(0, np.float16), np.zeros(0, np.float16), space="")


def forgotten(row: UserRow) -> UserRow:
    """The row without anything that the user did: how far it is in the log, and its version, stay."""
    return replace(
        NOBODY,
        marks=row.marks,
        version=row.version,
        wid=row.wid,
        erased=row.erased,
        erasing_since_s=row.erasing_since_s,
    )


def tombstone(row: UserRow | None, receipt: bytes, now_s: int) -> UserRow:
    """What takes the row's place when its user asks to be forgotten."""
    return replace(forgotten(row or NOBODY), erased=receipt, erasing_since_s=now_s)


def is_tombstone(row: UserRow) -> bool:
    """Whether the row knows nothing of anybody; it must outlive what is still in the log, no more."""
    return bool(row.erased) and not row.ring and not row.seen


def surviving(row: UserRow, records: Sequence[StreamRecord]) -> tuple[UserRow, list[Event]]:
    """The row to fold into and the events to fold, of one user's records in log order.

    An erasure whose record is in the log twice counts once. Where the log lost the record (a batch that was
    given up), events that came LOST_S after the request begin the new life all the same.
    """
    events: list[Event] = []
    for record in records:
        if record.erasure is not None and not _known(row, record.erasure):
            row, events = _erased(forgotten(row), record.erasure), []
        elif row.erasing_since_s and record.arrived_s >= row.erasing_since_s + LOST_S:
            row = replace(row, erasing_since_s=0, erased=b"")  # should the record come yet, it erases
        if record.event is not None and not row.erasing_since_s:
            events.append(record.event)
    return row, events


def _known(row: UserRow, erasure: Erasure) -> bool:
    return row.erased == erasure.receipt and not row.erasing_since_s


def _erased(row: UserRow, erasure: Erasure) -> UserRow:
    if row.erasing_since_s and row.erased != erasure.receipt:
        return row  # the tombstone is a later request's
    return replace(row, erased=erasure.receipt, erasing_since_s=0)


def receipt_claims(user_key: str, receipt: bytes, now_s: int) -> Mapping[str, Any]:
    """Claims of the token that proves an erasure; without a `sub`, so that it is nobody's credential."""
    return {
        "kind": ERASURE,
        "receipt": receipt.hex(),
        "user_key": user_key,
        "iat": now_s,
        "exp": now_s + RECEIPT_LIFETIME_S,
    }
