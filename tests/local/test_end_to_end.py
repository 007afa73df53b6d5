"""`python -m local` as a user runs it, with the real handlers, the real template and a small real bundle."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from local.account import STREAM, TABLE, client, read_pointer
from local.cloud import Cloud, CloudSettings
from local.visit import Api, Visit
from tests.local.test_cloud import gone, until

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "tests" / "data" / "tiny_bundle"
BUNDLE = read_pointer(BUNDLES)["champion"]


class Command:
    """A running `python -m local …`: its lines as they come, and its children."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "local", *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def finish(self, timeout_s: float = 40.0) -> int:
        status = self.process.wait(timeout_s)
        self._reader.join(5)
        return status


@contextmanager
def command(*arguments: str) -> Iterator[Command]:
    running = Command(*arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(10)


def url_in(running: Command) -> Callable[[], Any]:
    return lambda: re.search(r"http://127\.0\.0\.1:\d+(?=   )", running.text)


def test_once_plays_the_visit_reports_it_and_leaves(tmp_path: Path) -> None:
    report = tmp_path / "out" / "report.json"
    arguments = ("--bundle", str(BUNDLES), "--port", "0", "--logs", str(tmp_path / "logs"))
    with command(*arguments, "--once", "--report", str(report)) as running:
        assert running.finish() == 0, running.text
    steps = json.loads(report.read_text())["visit"]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1)) and len(steps) >= 4
    assert steps[0]["tier"] == "popular" and steps[-1]["tier"] == "personal"
    assert steps[0]["banners"] != steps[-1]["banners"]
    assert all(step["handler_ms"] > 0 for step in steps)
    assert all(0 < step["freshness_ms"] < 10_000 for step in steps[1:])
    assert all({"item_id", "title"} == set(banner) for step in steps for banner in step["banners"])


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_a_signal_ends_every_process(tmp_path: Path, number: int, status: int) -> None:
    arguments = ("--bundle", str(BUNDLES), "--port", "0", "--logs", str(tmp_path / "logs"))
    with command(*arguments) as running:
        found = until(url_in(running), "the URL is printed")
        with urllib.request.urlopen(f"{found[0]}/v1/health", timeout=10) as health:
            assert json.load(health)["bundle"] == BUNDLE
        children = running.children()
        assert len(children) >= 3
        running.process.send_signal(number)
        assert running.finish(15) == status
        until(lambda: all(gone(child) for child in children), "all children end")
        assert "Traceback" not in running.text


def test_a_taken_port_and_a_missing_pointer_are_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with command("--bundle", str(BUNDLES), "--port", port, "--logs", str(tmp_path)) as running:
            assert running.finish() == 1
    assert f"port {port}" in running.text and "--port" in running.text and "Traceback" not in running.text
    with command("--bundle", str(tmp_path), "--logs", str(tmp_path)) as running:
        assert running.finish() == 1
    assert "pointer.json" in running.text and "Traceback" not in running.text


def test_a_corrupt_bundle_is_not_served_and_is_named(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    shutil.copytree(BUNDLES, bundles)
    codes = bundles / BUNDLE / "codes.u8"
    stored = bytearray(codes.read_bytes())
    stored[5] ^= 1
    codes.write_bytes(stored)
    logs = tmp_path / "logs"
    with command("--bundle", str(bundles), "--port", "0", "--logs", str(logs)) as running:
        found = until(url_in(running), "the URL is printed")
        api = Api(found[0])
        api.token = api.call("POST", "/v1/visitors")[0]["token"]
        answer, _ = api.banners("home")
        api.close()
        assert answer["tier"] == "house" and answer["banners"]
        running.process.send_signal(signal.SIGTERM)
        assert running.finish(15) == 0
    hashes = re.findall(r"[0-9a-f]{64}", running.text)
    assert "codes.u8" in running.text and len(set(hashes)) == 2
    log = (logs / "front.log").read_text()
    assert not list((logs / "tmp").glob("*"))  # what the functions kept on disk goes with them
    assert "codes.u8" in log and set(hashes) <= set(re.findall(r"[0-9a-f]{64}", log))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(CloudSettings(BUNDLES, tmp_path_factory.mktemp("logs"), port=0)) as running:
        yield running


def rows(cloud: Cloud) -> dict[str, dict[str, Any]]:
    found = client("dynamodb", cloud.endpoint).scan(TableName=TABLE)["Items"]
    return {row["pk"]["S"]: row for row in found}


def test_everything_delivered_again_changes_no_row(cloud: Cloud, tmp_path: Path) -> None:
    Visit(cloud.url).play()
    before = rows(cloud)
    assert len(before) == 1
    kinesis = client("kinesis", cloud.endpoint)
    sent = sum(len(kinesis.get_records(ShardIterator=iterator)["Records"]) for iterator in iterators(kinesis))
    assert sent >= 5
    again = cloud.run_poller(
        tmp_path / "again.json", "again"
    )  # without checkpoints: from the oldest record on
    until(lambda: delivered(tmp_path / "again.json") == sent, "everything was delivered again")
    again.stop()
    after = rows(cloud)
    assert after.keys() == before.keys()
    for key in before:
        assert {n: v for n, v in after[key].items() if n != "ttl"} == {
            n: v for n, v in before[key].items() if n != "ttl"
        }


def iterators(kinesis: Any) -> list[str]:
    shards = kinesis.list_shards(StreamName=STREAM)["Shards"]
    return [
        kinesis.get_shard_iterator(
            StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        for shard in shards
    ]


def delivered(checkpoints: Path) -> int:
    """How many records are settled: moto numbers them 1, 2, 3 in each shard."""
    if not checkpoints.exists():
        return 0
    return sum(int(sequence) for sequence in json.loads(checkpoints.read_text())["after"].values())


def test_the_page_and_its_products_come_over_http(cloud: Cloud) -> None:
    with urllib.request.urlopen(f"{cloud.url}/", timeout=10) as page:
        assert b"<html" in page.read().lower()
    with urllib.request.urlopen(f"{cloud.url}/banner.js", timeout=10) as script:
        assert script.headers["Content-Type"].startswith("text/javascript")
    with urllib.request.urlopen(f"{cloud.url}/demo/products?limit=5", timeout=10) as products:
        assert len(json.load(products)["products"]) == 5


def test_two_visitors_at_once_do_not_disturb_each_other(cloud: Cloud) -> None:
    failures: list[BaseException] = []

    def visit() -> None:
        try:
            Visit(cloud.url).play()
        except BaseException as error:
            failures.append(error)

    visitors = [threading.Thread(target=visit) for _ in range(2)]
    started = time.monotonic()
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(60)
    assert failures == [] and time.monotonic() - started < 60
