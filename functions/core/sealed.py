"""The archive's form: a line holds one record, sealed with a key that its user alone has.

Without the key a line is noise: to forget a user is to forget the key, in every copy and backup of the
archive at once. Encrypt-then-MAC from the standard library: the key stream is SHAKE-256 of key and nonce
(FIPS 202; a keyed sponge, Bertoni et al. 2011, "On the security of the keyed sponge construction"), the tag
HMAC-SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from functions.core.errors import InvalidEvent
from functions.core.records import Erasure, decode_record

KEY_BYTES, NAME_BYTES, NONCE_BYTES, TAG_BYTES = 32, 8, 16, 16


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key and the name that lines know it by; the name says nothing of the user."""

    name: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Archived:
    """One record of the log, as a reader of the archive has it again."""

    shard: str
    sequence: int
    arrived_s: float
    user_key: str
    event: Mapping[str, Any]

    @property
    def order(self) -> tuple[str, int]:
        """Log order of one user: shards are numbered as they come to be, so parents sort before children."""
        return self.shard, self.sequence


def seal(record: Archived, key: DataKey, nonce: bytes) -> bytes:
    """One line of the archive, its newline included."""
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
    body = nonce + _mixed(plain, key, nonce)
    sealed = base64.b64encode(body + _tag(body, key)).decode()
    return json.dumps({"key": key.name.hex(), "sealed": sealed}, separators=(",", ":")).encode() + b"\n"


def unseal(line: bytes, secrets: Mapping[str, bytes]) -> Archived | None:
    """What a line holds, by secrets by name in hex; None where the key is gone.

    Raises ValueError for what is no line of an archive, or was changed.
    """
    outer = json.loads(line)
    if not isinstance(outer, dict) or set(outer) != {"key", "sealed"}:
        raise ValueError(f"{line[:60]!r}; expected an object with key and sealed")
    secret = secrets.get(outer["key"])
    if secret is None:
        return None
    key = DataKey(bytes.fromhex(outer["key"]), secret)
    data = base64.b64decode(outer["sealed"], validate=True)
    body, tag = data[:-TAG_BYTES], data[-TAG_BYTES:]
    if len(body) < NONCE_BYTES or not hmac.compare_digest(tag, _tag(body, key)):
        raise ValueError(f"a line under key {outer['key']} was changed")
    plain = json.loads(_mixed(body[NONCE_BYTES:], key, body[:NONCE_BYTES]))
    return Archived(
        plain["shard"], int(plain["sequence"]), plain["arrived"], plain["user_key"], plain["event"]
    )


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


def archived(data: bytes, metadata: Mapping[str, Any]) -> Archived | None:
    """A record of the log with what Firehose says of its place; None for an erasure; raises InvalidEvent."""
    arrived_s = int(metadata["approximateArrivalTimestamp"]) / 1000
    key, said = decode_record(data, int(arrived_s))
    if metadata["partitionKey"] != key:
        raise InvalidEvent("partition key", "another", "the record's user key")
    if isinstance(said, Erasure):
        return None
    event = json.loads(data)["event"]
    return Archived(str(metadata["shardId"]), int(metadata["sequenceNumber"]), arrived_s, key, event)


def _mixed(data: bytes, key: DataKey, nonce: bytes) -> bytes:
    stream = hashlib.shake_256(b"stream" + key.secret + nonce).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


def _tag(data: bytes, key: DataKey) -> bytes:
    derived = hashlib.blake2b(key.secret, person=b"archive tag").digest()
    return hmac.new(derived, key.name + data, hashlib.sha256).digest()[:TAG_BYTES]
