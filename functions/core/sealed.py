"""The archive's form: a line holds one record, sealed with a key that its user alone has.

Without the key a line is noise: to forget a user is to forget the key, in every copy and backup of the
archive at once. AES-256-GCM (NIST SP 800-38D) of the package `cryptography`; random nonces of 96 bits are
good for 2**32 lines under one key. The associated data says what is sealed and under which key's name, so
that nothing sealed elsewhere, or for another name, is taken for a line.

The only file of the core that needs the cipher, as `runtime.py` is the only one that needs ONNX Runtime:
functions that touch no line do not import it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from functions.core.archived import Archived, DataKey

NONCE_BYTES, TAG_BYTES = 12, 16
PURPOSE = b"vitrine archive line 1"


def seal(record: Archived, key: DataKey, nonce: bytes) -> bytes:
    """One line of the archive, its newline included; a nonce is used once under a key."""
    plain = json.dumps(
        {
            "shard": record.shard,
            "sequence": str(record.sequence),
            "arrived": record.arrived_s,
            "user_key": record.user_key,
            "event": record.event,
        },
        separators=(",", ":"),
    ).encode()
    body = nonce + AESGCM(key.secret).encrypt(nonce, plain, PURPOSE + key.name)
    sealed = base64.b64encode(body).decode()
    return json.dumps({"key": key.name.hex(), "sealed": sealed}, separators=(",", ":")).encode() + b"\n"


def unseal(line: bytes, secrets: Mapping[str, bytes]) -> Archived | None:
    """What a line holds, by secrets by name in hex; None where the key is gone.

    Raises ValueError for what is no line of an archive, was changed or cut off, or was sealed with another
    secret than that of its key's name.
    """
    outer = json.loads(line)
    if not isinstance(outer, dict) or set(outer) != {"key", "sealed"}:
        raise ValueError(f"{line[:60]!r}; expected an object with key and sealed")
    secret = secrets.get(outer["key"])
    if secret is None:
        return None
    plain = json.loads(_opened(outer["key"], base64.b64decode(outer["sealed"], validate=True), secret))
    return Archived(
        plain["shard"], int(plain["sequence"]), plain["arrived"], plain["user_key"], plain["event"]
    )


def _opened(name: str, body: bytes, secret: bytes) -> bytes:
    if len(body) < NONCE_BYTES + TAG_BYTES:
        raise ValueError(f"a line under key {name} has {len(body)} bytes: it was cut off")
    nonce, sealed = body[:NONCE_BYTES], body[NONCE_BYTES:]
    try:
        return AESGCM(secret).decrypt(nonce, sealed, PURPOSE + bytes.fromhex(name))
    except InvalidTag as error:
        raise ValueError(
            f"a line under key {name} was changed or cut off, or that is not its key's secret"
        ) from error


@dataclass
class Reading:
    """What reading an archive came upon: lines whose key is gone, lines that are none (cut off, changed)."""

    shredded: int = 0
    broken: int = 0


def read_lines(lines: Iterable[bytes], secrets: Mapping[str, bytes], seen: Reading) -> Iterator[Archived]:
    """The records of an archive's lines, each of the log once, in the order of the lines."""
    known: set[tuple[str, int]] = set()
    for line in lines:
        if not line.strip():
            continue
        try:
            record = unseal(line, secrets)
        except (ValueError, KeyError, TypeError):
            seen.broken += 1
            continue
        if record is None:
            seen.shredded += 1
        elif record.order not in known:
            known.add(record.order)
            yield record
