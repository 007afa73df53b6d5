"""The local cloud over HTTP while its processes are killed: rows as if nothing had been.

`python -m tests.local.test_killed SECONDS` goes on for so long; `make killed` runs it.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from functions.aws.rows import from_item
from functions.core.events import parse_event, user_key
from functions.core.fold import fold
from functions.core.served import open_bundle
from functions.core.tokens import Keys, sign
from functions.core.user_row import encode
from local.account import BUCKET, SECRET, STREAM, TABLE, client, read_pointer
from local.cloud import Cloud, CloudSettings

BUNDLES = Path(__file__).parents[2] / "tests" / "data" / "tiny_bundle"
KILLED = ("poller", "front", "archive")
POISON = (b"no JSON", b"{}", b"\x1f\x8b\x08 packed", b'{"user_key": "x", "event": {}}')
WAIT_S = 90.0
Json = dict[str, Any]


@dataclass
class Shopper:
    """One user, who sends every event until it is accepted, and some of them again."""

    name: str
    token: str
    rng: random.Random
    sent: list[Json] = field(default_factory=list)

    def shop(self, url: str, ended: threading.Event, least: int) -> None:
        while len(self.sent) < least or not ended.is_set():
            batch = [self._event(len(self.sent) + n) for n in range(self.rng.randint(1, 4))]
            self.sent += batch
            again = self.rng.sample(self.sent[-8:], 1) if self.rng.random() < 0.3 else []
            self._until_accepted(url, [*batch, *again])

    def _event(self, number: int) -> Json:
        moment = self.rng.randrange(3600)  # of the client's clock: in no order
        return {
            "event_id": f"{self.name}-{number}",
            "type": self.rng.choice(("view", "click", "cart", "purchase", "dismiss", "impression")),
            "item_id": f"sku-{self.rng.randrange(64):03d}",
            "time": f"2026-11-24T12:{moment // 60:02d}:{moment % 60:02d}Z",
        }

    def _until_accepted(self, url: str, events: list[Json]) -> None:
        ends_s = time.monotonic() + WAIT_S
        while events:
            assert time.monotonic() < ends_s, f"{len(events)} events of {self.name} are not accepted"
            try:
                results = self._post(url, events)
            except (OSError, http.client.HTTPException, ValueError):
                threading.Event().wait(0.1)
                continue
            events = [e for e, r in zip(events, results, strict=True) if r["status"] != "accepted"]

    def _post(self, url: str, events: list[Json]) -> list[Json]:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
            connection.request("POST", "/v1/events", json.dumps({"events": events}), headers)
            results: list[Json] = json.loads(connection.getresponse().read()).get("results") or []
        finally:
            connection.close()
        if not results:
            raise ValueError("no results")
        return results


def shoppers(secret: Json, count: int, seed: int) -> list[Shopper]:
    keys = Keys({kid: bytes.fromhex(key) for kid, key in secret["keys"].items()}, secret["current"])
    expires_s = int(time.time()) + 7200
    names = [f"shopper-{n}" for n in range(count)]
    return [Shopper(n, sign({"sub": n, "exp": expires_s}, keys), random.Random(f"{seed} {n}")) for n in names]


def kill(cloud: Cloud, name: str) -> None:
    process = next(p for p in cloud.processes if p.name == name)
    os.kill(process.pid, signal.SIGKILL)
    cloud.restart(name)


def play(folder: Path, users: int, least: int, kills: int, seconds: float = 0.0, seed: int = 0) -> str:
    """Shop while processes are killed; raises AssertionError where a row is not what its events make."""
    rng = random.Random(seed)
    with Cloud(CloudSettings(BUNDLES, folder, port=0)) as cloud:
        secrets = client("secretsmanager", cloud.endpoint)
        secret = json.loads(secrets.get_secret_value(SecretId=SECRET)["SecretString"])
        kinesis = client("kinesis", cloud.endpoint)
        people, ended = shoppers(secret, users, seed), threading.Event()
        threads = [threading.Thread(target=p.shop, args=(cloud.url, ended, least)) for p in people]
        for thread in threads:
            thread.start()
        done, poisoned, ends_s = 0, 0, time.monotonic() + seconds
        while done < kills or time.monotonic() < ends_s:
            kinesis.put_record(StreamName=STREAM, Data=rng.choice(POISON), PartitionKey=f"{rng.random()}")
            kill(cloud, KILLED[done % len(KILLED)])
            done, poisoned = done + 1, poisoned + 1
        ended.set()
        for thread in threads:
            thread.join()
        wait_for_rows(cloud, people, bytes.fromhex(secret["pseudonym"]))
        arguments = ("replay", "--bundle", str(BUNDLES), "--logs", str(folder), "--wait", str(WAIT_S))
        replayed = subprocess.run([sys.executable, "-m", "local", *arguments], capture_output=True, text=True)
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
        kept = client("s3", cloud.endpoint).list_objects_v2(Bucket=BUCKET, Prefix="quarantine/")
        assert kept["KeyCount"] == poisoned
    events = sum(len(person.sent) for person in people)
    return f"users={users} events={events} killed={done} poison={poisoned} wrong_rows=0"


def wait_for_rows(cloud: Cloud, people: list[Shopper], pseudonym: bytes) -> None:
    """The rows are those of the events, folded once each in the order in which they were sent."""
    bundle = open_bundle(BUNDLES / read_pointer(BUNDLES)["champion"])
    events = [[parse_event(event, int(time.time())) for event in person.sent] for person in people]
    expected, _ = fold([bundle.encoder.empty()] * len(people), events, bundle.encoder)
    dynamodb, ends_s = client("dynamodb", cloud.endpoint), time.monotonic() + WAIT_S
    wrong = list(zip(people, expected, strict=True))
    while wrong:
        assert time.monotonic() < ends_s, f"wrong rows: {[person.name for person, _ in wrong]}"
        items = {item["pk"]["S"]: item for item in dynamodb.scan(TableName=TABLE)["Items"]}
        wrong = [
            (person, row)
            for person, row in wrong
            if not same(items.get(user_key(pseudonym, person.name)), encode(row))
        ]
        threading.Event().wait(0.2 if wrong else 0.0)
    bundle.close()


def same(item: Json | None, expected: dict[str, object]) -> bool:
    if item is None:
        return False
    found = encode(from_item(item))
    return all(found[name] == expected[name] for name in ("state", "vector", "ring", "last", "fav"))


def test_killed_processes_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    assert "wrong_rows=0" in play(tmp_path, users=6, least=30, kills=5)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(play(Path(scratch), users=20, least=100, kills=9, seconds=float(sys.argv[1])))
