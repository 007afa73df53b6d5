"""All that is held of one user: the row, every event in the archive, what lies in quarantine.

`GET /v1/me` answers with the row alone: the archive's lines are in no order that knows users, so whoever asks
for one user's reads them all, which is an operator's work and not a request's. Only lines under the user's
own key are opened, and nobody else's key is read.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from functions.aws.keys import Entry, KeyTable
from functions.aws.rows import Rows
from functions.core.archived import Archived
from functions.core.held import ELSEWHERE, held
from functions.core.sealed import Reading, read_lines
from functions.core.served import ServedBundle
from functions.core.times import rfc3339
from functions.core.user_row import UserRow, event_hash
from train.archive import archive_lines

ARCHIVE, QUARANTINE = "archive/", "quarantine/"


@dataclass(frozen=True)
class Sources:
    """Where to look. `lines`: of the whole archive; `quarantined`: objects of the bucket's quarantine."""

    rows: Rows
    keys: KeyTable
    lines: Iterable[bytes]
    quarantined: Iterable[Mapping[str, Any]] = ()


def everything(key: str, sources: Sources, bundle: ServedBundle | None, now_s: int) -> dict[str, Any]:
    """The user's data as JSON; raises Unavailable, CorruptRow, OSError.

    `not_archived_yet` counts events that the row knows and the archive does not have: they are on their way.
    """
    row = sources.rows.get(key)
    entry = sources.keys.get_many([key]).get(key, Entry())
    seen = Reading()
    events = sorted(_events(key, entry, sources.lines, seen), key=lambda record: record.order)
    return {
        **held(key, row, bundle),
        "exported_at": rfc3339(now_s),
        "elsewhere": [other for other in ELSEWHERE if other["where"] == "stream"],
        "archive": {
            "events": [_told(record) for record in events],
            "broken_lines": seen.broken,
            "not_archived_yet": _missing(row, events),
        },
        "quarantine": [kept for kept in sources.quarantined if _is_of(kept, key)],
    }


def folder_lines(folder: Path) -> Iterable[bytes]:
    """The lines of an archive's folder; raises OSError where there is none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected that of an archive")
    return archive_lines(folder)


def bucket_lines(s3: Any, bucket: str) -> Iterator[bytes]:
    """The lines that Firehose put into the bucket, object by object."""
    for name in _objects(s3, bucket, ARCHIVE):
        yield from s3.get_object(Bucket=bucket, Key=name)["Body"].iter_lines()


def bucket_quarantine(s3: Any, bucket: str) -> Iterator[Mapping[str, Any]]:
    """What lies in quarantine: each a whole record, and the reason."""
    for name in _objects(s3, bucket, QUARANTINE):
        yield json.loads(s3.get_object(Bucket=bucket, Key=name)["Body"].read())


def _objects(s3: Any, bucket: str, prefix: str) -> Iterator[str]:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from (entry["Key"] for entry in page.get("Contents", ()))


def _events(key: str, entry: Entry, lines: Iterable[bytes], seen: Reading) -> Iterator[Archived]:
    """The user's records among an archive's lines; nothing where the key is gone."""
    if entry.key is None:
        return
    name = entry.key.name.hex()
    own = (line for line in lines if name.encode() in line)
    for record in read_lines(own, {name: entry.key.secret}, seen):
        if record.user_key == key:
            yield record


def _told(record: Archived) -> dict[str, Any]:
    return {
        "shard": record.shard,
        "sequence": str(record.sequence),
        "arrived": rfc3339(int(record.arrived_s)),
        "event": record.event,
    }


def _missing(row: UserRow | None, events: Iterable[Archived]) -> int:
    known = set(row.ring.hashes()) if row else set()
    return len(known - {event_hash(record.event["event_id"]) for record in events})


def _is_of(kept: Mapping[str, Any], key: str) -> bool:
    """Whether a quarantined record is the user's, by its partition key or by what it says."""
    kinesis = kept["record"]["kinesis"]
    return kinesis["partitionKey"] == key or key.encode() in base64.b64decode(kinesis["data"])
