"""An archive of the functions as a log: a folder of sealed lines, their keys in `keys.jsonl` beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from functions.core.archived import Archived
from functions.core.sealed import Reading, read_lines

KEY_FILE = "keys.jsonl"


def is_archive(source: str | Path) -> bool:
    """Whether a folder is an archive."""
    return (Path(source) / KEY_FILE).is_file()


def read_archive(folder: Path) -> tuple[list[Archived], Reading]:
    """All records that can still be read, each user's in log order; raises OSError, ValueError."""
    keys = [json.loads(line) for line in (folder / KEY_FILE).read_bytes().splitlines() if line.strip()]
    secrets = {key["key"]: bytes.fromhex(key["secret"]) for key in keys}
    seen = Reading()
    return sorted(read_lines(archive_lines(folder), secrets, seen), key=lambda record: record.order), seen


def write_archived(records: Iterable[Archived], path: Path) -> None:
    """The records as the lines of a behaviour log; what an event's context says are columns."""
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(_row(record.user_key, record.event), ensure_ascii=False) + "\n")


def _row(user_key: str, event: Mapping[str, Any]) -> dict[str, Any]:
    context = event.get("context") or {}
    said = {name: event.get(name) for name in ("item_id", "type", "time", "value")}
    named = {name: value for name in ("device", "slot") if isinstance(value := context.get(name), str)}
    return {"user_id": user_key, **said, "device": named.get("device"), "slot": named.get("slot")}


def archive_lines(folder: Path) -> Iterator[bytes]:
    """The lines of an archive's files, as they are."""
    for path in sorted(folder.rglob("*.jsonl")):
        if path.name != KEY_FILE:
            with path.open("rb") as lines:
                yield from lines
