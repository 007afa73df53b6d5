"""`python -m local held`: what a user is told is what the user sent, all of it, and nobody else's."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from functions import collect, update
from functions.core.user_row import event_hash
from local.operate import held
from tests.contracts.test_forgotten import Shop, deliver, erase
from tests.functions.account import BUCKET, STORED, Account, Context, behaviour, credential, http, key_of
from tests.functions.test_me import batch

Json = dict[str, Any]
KINDS = ("view", "click", "cart", "purchase", "impression")


def send(user: str, events: list[Json]) -> None:
    answer = collect.handler(http("POST", "/v1/events", {"events": events}, credential(user)), Context())
    assert answer["statusCode"] == 202


def told(capsys: pytest.CaptureFixture[str], *arguments: str, user: str = "ann") -> Json:
    capsys.readouterr()
    assert held(["--aws", "--user", user, *arguments]) == 0
    answer: Json = json.loads(capsys.readouterr().out)
    return answer


def told_events(answer: Json) -> list[Json]:
    return [record["event"] for record in answer["archive"]["events"]]


def to_bucket(account: Account, folder: Path, rng: random.Random) -> None:
    """The archive's lines as Firehose leaves them: some objects, no order, some lines twice."""
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    lines += rng.sample(lines, len(lines) // 4)
    rng.shuffle(lines)
    cuts = sorted(rng.sample(range(len(lines)), 3))
    for nth, (first, last) in enumerate(zip([0, *cuts], [*cuts, len(lines)], strict=True)):
        key = f"archive/2026-11-{24 + nth % 2}/{nth}.jsonl"
        account.s3.put_object(Bucket=BUCKET, Key=key, Body=b"".join(lines[first:last]))


@pytest.mark.parametrize("seed", range(3))
def test_the_export_is_what_was_sent(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """From the folder and from the bucket: each event whole and once, in the order of the log."""
    rng = random.Random(seed)
    shop = Shop(account, tmp_path / "archive")
    sent: dict[str, list[Json]] = {"ann": [], "bob": [], "eve": []}
    for number in range(90):
        user = rng.choice(list(sent))
        event = behaviour(
            number,
            f"sku-{number % 60:03d}",
            rng.choice(KINDS),
            value=number / 4,
            context={"page": "é" * number},
        )
        send(user, [event])
        sent[user].append(event)
    shop.read()
    to_bucket(account, shop.folder, rng)
    for user, events in sent.items():
        from_bucket, from_folder = (
            told(capsys, user=user),
            told(capsys, "--archive", str(shop.folder), user=user),
        )
        assert told_events(from_bucket) == told_events(from_folder) == events
        assert from_bucket["user_key"] == key_of(user)
        assert from_bucket["archive"]["broken_lines"] == from_bucket["archive"]["not_archived_yet"] == 0
        assert not [other for other in sent if other != user and key_of(other) in json.dumps(from_bucket)]


def test_the_row_is_told_with_it_by_its_names(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(account, tmp_path / "archive")
    send("ann", [behaviour(1, "sku-007", "cart")])
    shop.read()
    arguments = ("--archive", str(shop.folder), "--bundle", str(STORED))
    answer = told(capsys, *arguments)
    assert answer["row"]["events"] == [{"type": "cart", "item_id": "sku-007"}]
    assert [other["where"] for other in answer["elsewhere"]] == ["stream"]
    out = tmp_path / "ann.json"
    assert held(["--aws", "--user", "ann", *arguments, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["archive"] == answer["archive"]
    assert out.stat().st_mode & 0o077 == 0


def test_what_is_not_in_the_archive_yet_is_counted(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(account, tmp_path / "archive")
    send("ann", [behaviour(1)])
    shop.read()
    send("ann", [behaviour(2), behaviour(3)])
    deliver(batch(account))  # update was faster than the archive
    answer = told(capsys, "--archive", str(shop.folder))
    assert (len(told_events(answer)), answer["archive"]["not_archived_yet"]) == (1, 2)


def test_who_was_erased_is_told_nothing_and_a_new_life_is_told_alone(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(account, tmp_path / "archive")
    send("ann", [behaviour(1), behaviour(2)])
    send("bob", [behaviour(3)])
    shop.read()
    erase("ann")
    shop.read()
    answer = told(capsys, "--archive", str(shop.folder))
    assert (told_events(answer), answer["row"]["events"], answer["archive"]["not_archived_yet"]) == (
        [],
        [],
        0,
    )
    assert told_events(told(capsys, "--archive", str(shop.folder), user="bob")) == [behaviour(3)]
    send("ann", [behaviour(4)])
    shop.read()
    assert told_events(told(capsys, "--archive", str(shop.folder))) == [behaviour(4)]


def test_what_lies_in_quarantine_is_told(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that could not be folded is the user's too; another's is not shown."""
    shop = Shop(account, tmp_path / "archive")
    for user in ("ann", "bob"):
        send(user, [behaviour(1)])

    def cannot(*arguments: Any) -> Any:
        raise ValueError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(update, "fold", cannot)
        deliver(batch(account))
    shop.read()
    kept = told(capsys, "--archive", str(shop.folder))["quarantine"]
    assert [entry["record"]["kinesis"]["partitionKey"] for entry in kept] == [key_of("ann")]


def test_nobody_is_told_of_a_user_who_never_was_and_a_folder_that_is_missing_is_an_error(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Shop(account, tmp_path / "archive").read()
    answer = told(capsys, "--archive", str(tmp_path / "archive"), user="nobody")
    assert (answer["row"], told_events(answer), answer["quarantine"]) == (None, [], [])
    assert held(["--aws", "--user", "ann", "--archive", str(tmp_path / "none")]) == 1
    assert "none: no such folder" in capsys.readouterr().err


def test_an_event_that_the_archive_lost_is_seen(
    account: Account, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted: a line is gone, another cut off in the middle. The row knows both events."""
    shop = Shop(account, tmp_path / "archive")
    send("ann", [behaviour(n) for n in range(1, 5)])
    shop.read()
    path = shop.folder / "events.jsonl"
    lost, torn, *whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(torn[:-20] + b"\n" + b"".join(whole))
    answer = told(capsys, "--archive", str(shop.folder))["archive"]
    assert (answer["broken_lines"], answer["not_archived_yet"], len(answer["events"])) == (1, 2, 2)
    assert lost and event_hash("e1") not in {event_hash(r["event"]["event_id"]) for r in answer["events"]}
