"""`DELETE /v1/me`: a user is forgotten.

First the erasure goes into the log, in the user's own order: from then on it is certain. Every reader and
every replay does it too, and the archive when it comes to it. Then the row is replaced by a tombstone, so
that nobody waits for the log to come to it, and the key is shredded that the archive's lines of the user are
sealed with.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from functions.aws.background import Background
from functions.aws.gateway import Answer, Request, Routes, reply
from functions.aws.keys import KeyTable, keys_client
from functions.aws.log import Log, Position, log_client
from functions.aws.memory import settled
from functions.aws.rows import Rows, patient_client
from functions.aws.secret import REFRESH_S, Secret, secret_client
from functions.aws.settings import Settings
from functions.aws.telemetry import emit
from functions.core.erasure import receipt_claims, tombstone
from functions.core.errors import CorruptRow, InvalidSettings, Unavailable, VersionConflict
from functions.core.events import user_key
from functions.core.records import encode_erasure
from functions.core.requests import require_empty, require_no_query, subject
from functions.core.times import rfc3339
from functions.core.tokens import Keys, sign
from functions.core.user_row import RECEIPT_BYTES, WID_BYTES

TRIES = 5  # when the stream's reader writes the row meanwhile
route = Routes()


@dataclass(frozen=True)
class Erased:
    """What the user is told: when, and a signed token that says so."""

    time_s: int
    receipt: str

    def body(self) -> dict[str, str]:
        """The answer of `DELETE /v1/me`."""
        return {"status": "erased", "erased_at": rfc3339(self.time_s), "receipt": self.receipt}


class Eraser:
    """What a warm environment keeps."""

    def __init__(self, settings: Settings) -> None:
        self.log = Log(log_client(), settings.stream)
        self.rows = Rows(patient_client(), settings.table)
        if not settings.keys:
            raise InvalidSettings("VITRINE_KEYS is not set; expected the name of a table")
        self.archive = KeyTable(keys_client(), settings.keys, os.urandom)
        self.secret = Secret(secret_client(), settings.secret)
        self.rotation = Background(self.secret.refresh, REFRESH_S)

    def erase(self, key: str, keys: Keys, now_s: int) -> Erased:
        """Forget the user of a key; raises Unavailable where it must be asked for again."""
        receipt, position = self._record_and_bury(key, now_s)
        self.archive.shred(key, position, receipt, now_s)
        emit({"Erasures": 1})
        return Erased(now_s, sign(receipt_claims(key, receipt, now_s), keys))

    def _record_and_bury(self, key: str, now_s: int) -> tuple[bytes, Position]:
        """Put the erasure into the log and a tombstone into the row; returns its receipt and its place.

        Where another request's tombstone stands, its record may be later than ours, and our tombstone would
        end before it: we begin again, with a record that is later than both.
        """
        older = b""
        for _ in range(TRIES):
            receipt = secrets.token_bytes(RECEIPT_BYTES)
            position = self.log.put(key, encode_erasure(key, receipt))
            standing = self._bury(key, receipt, position, now_s, older)
            if not standing:
                return receipt, position
            older = standing
        raise Unavailable(f"another request was faster {TRIES} times; ask again")

    def _bury(self, key: str, receipt: bytes, position: Position, now_s: int, older: bytes) -> bytes:
        """Replace the row by a tombstone, unless the log has brought the erasure to it already.

        Returns the receipt of a tombstone that stands there and is not `older`; b"" if all is done.
        """
        for _ in range(TRIES):
            try:
                row = self.rows.get(key)
                if row and (row.erased == receipt or row.mark(position.shard) >= int(position.sequence)):
                    return b""
                if row and row.erasing_since_s and row.erased != older:
                    return row.erased
                new = replace(tombstone(row, receipt, now_s), wid=os.urandom(WID_BYTES))
                expected = row.version if row else 0
                self.rows.put(key, replace(new, version=expected + 1), expected, now_s)
                return b""
            except VersionConflict:
                continue
            except CorruptRow:  # nobody writes such a row; a version that no writer can have read
                new = replace(tombstone(None, receipt, now_s), version=now_s, wid=os.urandom(WID_BYTES))
                self.rows.put(key, new, None, now_s)
                return b""
        raise Unavailable(f"another writer was faster {TRIES} times; ask again")


@cache
def eraser() -> Eraser:
    """The one Eraser of this environment."""
    return settled(Eraser(Settings.from_environment()))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer one API Gateway event (payload 2.0)."""
    return route.serve(event)


@route("DELETE", "/v1/me")
def erase(request: Request) -> Answer:
    """Forget the visitor whom the credential names."""
    own = eraser()
    secret, now_s = own.secret.get(), time.time()
    own.rotation.tick()
    key = user_key(secret.pseudonym, subject(request.credential, secret.keys, now_s))
    require_no_query(request.query)
    require_empty(*request.body)
    return reply(own.erase(key, secret.keys, int(now_s)).body())
