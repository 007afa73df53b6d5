"""All processes together, over real HTTP, with small handlers; and that nothing outlives its parent."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local.account import DISCARDED, STREAM, TABLE, MissingPointer, client, read_pointer
from local.cloud import Cloud, CloudSettings
from local.front import PortTaken
from local.process import LocalProcess, PartFailed
from tests.local.small_template import write_template

TOO_LONG_S = 15.0


def until(holds: Callable[[], Any], what: str) -> Any:
    """What `holds` returns once it is true; a failure when it never is."""
    ends = time.monotonic() + TOO_LONG_S
    while time.monotonic() < ends:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


def gone(pid: int) -> bool:
    """Whether a process ended (a zombie that nobody has waited for yet has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    bundles = folder / "bundles"
    (bundles / "abc").mkdir(parents=True)
    (bundles / "abc" / "manifest.json").write_text("{}")
    (bundles / "pointer.json").write_text('{"champion": "abc"}')
    web = folder / "web"
    web.mkdir()
    (web / "index.html").write_text("home")
    chosen = CloudSettings(bundles, folder / "logs", port=0, template=write_template(folder), web=web)
    with Cloud(chosen) as running:
        yield running
    assert all(gone(process.pid) for process in running.processes)


def kept(cloud: Cloud) -> list[dict[str, Any]]:
    path = Path(str(cloud.settings.template)).parent / "kept.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_requests_reach_the_functions_over_one_connection(cloud: Cloud) -> None:
    host = cloud.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    for body in ("first", "raise", "last"):
        connection.request("POST", "/echo?a=1&a=2", body, {"Content-Type": "text/plain"})
        answer = connection.getresponse()
        data = json.loads(answer.read())
        assert answer.status == (500 if body == "raise" else 201)
        if body != "raise":
            assert data["event"]["queryStringParameters"] == {"a": "1,2"} and data["event"]["body"] == body
            assert answer.headers.get_all("set-cookie") == ["a=1; Path=/", "b=2"]
    connection.close()
    with urllib.request.urlopen(f"{cloud.url}/v1/health", timeout=10) as health:
        assert json.load(health) == {"function": "Bare", "table": TABLE}
    with urllib.request.urlopen(f"{cloud.url}/", timeout=10) as page:
        assert page.read() == b"home"
    assert "asked for" in cloud.front.log.read_text()


def test_paths_do_not_lead_out_of_the_page(cloud: Cloud) -> None:
    connection = http.client.HTTPConnection(cloud.url.removeprefix("http://"), timeout=10)
    for path in ("/../template.yaml", "/%2e%2e/template.yaml", "/..%2ftemplate.yaml", "//etc/hosts"):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (404, b'{"message":"Not Found"}')
    connection.close()


def test_a_body_too_large_is_refused_over_http(cloud: Cloud) -> None:
    request = urllib.request.Request(f"{cloud.url}/echo", b"x" * (10 * 2**20 + 1), method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 413
    assert json.load(refused.value) == {"message": "Request Entity Too Large"}


def test_the_account_has_what_the_template_states(cloud: Cloud) -> None:
    dynamodb, s3 = client("dynamodb", cloud.endpoint), client("s3", cloud.endpoint)
    ttl = dynamodb.describe_time_to_live(TableName=TABLE)["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "ttl")
    keys = [
        entry["Key"] for entry in s3.list_objects_v2(Bucket=cloud.environment["VITRINE_BUCKET"])["Contents"]
    ]
    assert sorted(keys) == ["abc/manifest.json", "pointer.json"]
    secret = client("secretsmanager", cloud.endpoint).get_secret_value(SecretId="vitrine-secret")
    parsed = json.loads(secret["SecretString"])
    assert len(bytes.fromhex(parsed["keys"][parsed["current"]])) >= 32
    assert len(bytes.fromhex(parsed["pseudonym"])) >= 32


def test_the_stream_reaches_its_function_in_order_and_failures_come_again(cloud: Cloud) -> None:
    kinesis = client("kinesis", cloud.endpoint)
    sent = [f"{user}-{n}" for n in range(10) for user in ("anna", "ben", "carl")]
    sent.insert(7, "fail")
    for data in sent:
        user = data.partition("-")[0]
        kinesis.put_record(StreamName=STREAM, PartitionKey=user, Data=data.encode())
    until(lambda: len(kept(cloud)) >= len(sent), f"{len(sent)} records kept")
    for user in ("anna", "ben", "carl"):
        order = [entry["data"] for entry in kept(cloud) if entry["data"].startswith(user)]
        assert order == [data for data in sent if data.startswith(user)]  # each once, in order
    assert [entry["data"] for entry in kept(cloud)].count("fail") == 1
    assert len({entry["id"].split(":")[0] for entry in kept(cloud)}) == 2  # both shards were in use


def test_a_process_that_ends_by_itself_is_named(tmp_path: Path) -> None:
    with pytest.raises(PartFailed, match=r"tailor: no cloth"):
        LocalProcess("tailor", refuse, log=tmp_path / "log")
    with pytest.raises(PartFailed, match=r"ended while starting(.|\n)*ZeroDivisionError"):
        LocalProcess("tailor", divide, log=tmp_path / "log")


def refuse(ready: Callable[[object], None]) -> None:
    raise PartFailed("no cloth")


def divide(ready: Callable[[object], None]) -> None:
    ready(1 // 0)


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "pointer.json").write_text('{"champion": "abc"}')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        chosen = CloudSettings(tmp_path, tmp_path / "logs", port, write_template(tmp_path))
        with pytest.raises(PortTaken, match=f"port {port} .*in use.*--port"):
            Cloud(chosen)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("text", [None, "no json", "[]", '{"champion": null}'])
def test_a_folder_without_a_pointer_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "pointer.json").write_text(text)
    with pytest.raises(MissingPointer, match=r"pointer\.json"):
        read_pointer(tmp_path)


PARENT = """
import sys, time
from pathlib import Path
from local.emulator import Emulator
if __name__ == "__main__":
    emulator = Emulator(Path(sys.argv[1]) / "emulator.log")
    print(emulator.process.pid, flush=True)
    time.sleep(60)
"""


def test_the_emulator_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(script), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: gone(child), "the emulator ends")


def test_discarded_batches_have_their_queue(cloud: Cloud) -> None:
    queues = client("sqs", cloud.endpoint).list_queues(QueueNamePrefix=DISCARDED)["QueueUrls"]
    assert len(queues) == 1
