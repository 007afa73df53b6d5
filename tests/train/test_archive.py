"""A folder of the functions' archive is a log like another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from functions.core.archived import Archived, DataKey
from functions.core.sealed import NONCE_BYTES, seal
from train.archive import KEY_FILE, is_archive, read_archive
from train.log import read_log

ANN, EVE = DataKey(b"ann.....", bytes(32)), DataKey(b"eve.....", bytes(range(32)))
KINDS = ("view", "cart", "purchase")


def act(number: int, kind: str) -> dict[str, Any]:
    context = {"device": "mobile", "slot": "home"}
    return {
        "event_id": f"e{number}",
        "type": kind,
        "item_id": f"sku-{number}",
        "time": f"2026-11-24T12:00:0{number}Z",
        "value": number + 0.5,
        "context": context,
    }


def test_type_time_value_device_and_slot_come_through_and_what_was_erased_does_not(tmp_path: Path) -> None:
    lines = [
        seal(Archived("shard-0", n, 1.8e9, name, act(n, kind)), key, bytes(NONCE_BYTES))
        for name, key in (("ann", ANN), ("eve", EVE))
        for n, kind in enumerate(KINDS)
    ]
    (tmp_path / "2026-11-24").mkdir()
    (tmp_path / "2026-11-24" / "a.jsonl").write_bytes(b"".join(lines[::-1]))  # Firehose keeps no order
    (tmp_path / "b.jsonl").write_bytes(lines[0])  # and may deliver twice
    assert not is_archive(tmp_path)
    (tmp_path / KEY_FILE).write_text(json.dumps({"key": ANN.name.hex(), "secret": ANN.secret.hex()}))
    assert is_archive(tmp_path)
    rows = read_log(tmp_path).events.to_pylist()
    assert {row["user_id"] for row in rows} == {"ann"}
    assert [(r["item_id"], r["type"], r["value"], r["device"], r["slot"]) for r in rows] == [
        (f"sku-{n}", kind, n + 0.5, "mobile", "home") for n, kind in enumerate(KINDS)
    ]
    assert [row["time"].isoformat() + "Z" for row in rows] == [
        act(n, kind)["time"] for n, kind in enumerate(KINDS)
    ]
    assert read_archive(tmp_path)[1].shredded == 3
