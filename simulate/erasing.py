"""The real eraser over simulated services, and what must hold when it says that a user is forgotten."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import cast

from functions import me
from functions.aws.keys import KeyTable
from functions.aws.log import Log
from functions.aws.rows import Rows
from simulate.reference import event_hash
from simulate.shoppers import Shopper
from simulate.stream import SimulatedLog
from simulate.table import Table
from simulate.world import World


def eraser(world: World, log: Log, rows: Rows, keys: KeyTable | None) -> me.Eraser:
    """The real eraser over simulated services, its chance the seed's; `keys`: None without an archive."""
    own = me.Eraser.__new__(me.Eraser)
    own.log, own.rows = log, rows
    own.archive = keys or cast(KeyTable, SimpleNamespace(shred=lambda *_: None))
    vars(me)["secrets"] = SimpleNamespace(token_bytes=world.rng.randbytes)
    vars(me)["os"] = SimpleNamespace(urandom=world.rng.randbytes)
    return own


def receipt_of(token: str) -> bytes:
    """The 8 bytes that name an erasure, out of the signed receipt."""
    claims = token.split(".")[1]
    return bytes.fromhex(json.loads(base64.urlsafe_b64decode(claims + "=="))["receipt"])


def require_gone(world: World, log: SimulatedLog, table: Table, shopper: Shopper, receipt: bytes) -> None:
    """What was before the erasure is not in the row, and never may be again."""
    logged = [entry for entry in log.all if entry.user == shopper.key]
    at = next(nth for nth, entry in enumerate(logged) if entry.receipt == receipt)
    gone = {event_hash(entry.event["event_id"]) for entry in logged[:at] if entry.event}
    gone |= {act.event for act in shopper.start.ring} if shopper.start else set()
    gone -= {event_hash(entry.event["event_id"]) for entry in logged[at:] if entry.event}
    log.forgotten.setdefault(shopper.key, set()).update(gone)
    ring = table.items[shopper.key]["ring"]["B"]
    if {ring[at : at + 5] for at in range(0, len(ring), 12)} & gone:
        world.wrong(f"{shopper.key}: told that all is erased, and it is not")
