"""Credentials as Lambda gives them: the environment's, or an address's after a snapshot; renewed in time."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from functions.aws.credentials import (
    ADDRESS,
    AGAIN_S,
    KEY,
    PASS,
    PASS_FILE,
    RENEWED_S,
    REQUIRED_S,
    SECRET,
    TOKEN,
    Source,
    trusted,
)
from functions.aws.errors import Failure, NoCredentials
from tests.functions.scripted import HANG_UP, Said, Scripted, answer

NOW_S = 1_795_000_000.0


class Clock:
    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def said(number: int, ends_s: float, **more: Any) -> bytes:
    ends = datetime.fromtimestamp(ends_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    own = {"AccessKeyId": f"AKID{number}", "SecretAccessKey": f"hidden{number}", "Token": f"token{number}"}
    return answer(200, json.dumps(own | {"Expiration": ends} | more).encode())


def source(server: Scripted, clock: Clock, **environment: str) -> Source:
    return Source({ADDRESS: f"{server.url}/role?a=b"} | environment, clock, lambda seconds: None)


def test_those_of_the_environment_are_taken_as_they_are_now() -> None:
    environment = {KEY: "AKID", SECRET: "hidden", TOKEN: "token"}
    own = Source(environment)
    first = own.get()
    assert (first.access_key, first.secret_key, first.token) == ("AKID", "hidden", "token")
    environment |= {KEY: "AKID2"}
    assert own.get().access_key == "AKID2"
    del environment[TOKEN]
    assert own.get().token == ""


def test_what_is_missing_is_named() -> None:
    with pytest.raises(NoCredentials, match=f"neither {KEY} nor {ADDRESS} is set"):
        Source({}).get()
    with pytest.raises(NoCredentials, match=f"{SECRET} is not set"):
        Source({KEY: "AKID"}).get()


def test_those_of_an_address_are_asked_for_once_and_renewed_in_time() -> None:
    clock = Clock()
    with Scripted(said(1, NOW_S + 3600), said(2, NOW_S + 7200)) as server:
        own = source(server, clock, **{PASS: "Basic abc"})
        assert [own.get().access_key for _ in range(3)] == ["AKID1"] * 3
        assert own.get().secret_key == "hidden1" and own.get().token == "token1"
        clock.now_s = NOW_S + 3600 - RENEWED_S - 1
        assert own.get().access_key == "AKID1" and len(server.requests) == 1
        clock.now_s += 2
        assert own.get().access_key == "AKID2" and len(server.requests) == 2
        assert server.requests[0].line == "GET /role?a=b HTTP/1.1"
        assert server.requests[0].headers["authorization"] == "Basic abc"


def test_the_pass_is_read_anew_from_its_file(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "pass"
    with Scripted(said(1, NOW_S + 3600), said(2, NOW_S + 7200)) as server:
        own = source(server, clock, **{PASS_FILE: str(file), PASS: "not this"})
        for text in ("first", "second"):
            file.write_text(text)
            own.get()
            clock.now_s += 3000
        assert [request.headers["authorization"] for request in server.requests] == ["first", "second"]
    file.write_text("one\r\nx: two")
    with pytest.raises(NoCredentials, match="control character"):
        source(server, clock, **{PASS_FILE: str(file)}).get()
    with pytest.raises(NoCredentials, match="No such file"):
        source(server, clock, **{PASS_FILE: str(tmp_path / "none")}).get()


def test_a_renewal_that_fails_is_not_felt_while_the_old_ones_hold() -> None:
    clock = Clock()
    with Scripted(said(1, NOW_S + 3600), *[HANG_UP] * 3, said(2, NOW_S + 7200)) as server:
        own = source(server, clock)
        own.get()
        clock.now_s = NOW_S + 3600 - RENEWED_S + 1
        assert [own.get().access_key for _ in range(3)] == ["AKID1"] * 3
        assert len(server.requests) == 4  # three attempts, once
        clock.now_s += AGAIN_S
        assert own.get().access_key == "AKID2"


def test_where_nobody_answers_the_old_ones_are_used_for_as_long_as_they_hold() -> None:
    clock = Clock()
    with Scripted(said(1, NOW_S + 3600), *[answer(500)] * 6, said(2, NOW_S + 7200)) as server:
        own = source(server, clock)
        own.get()
        clock.now_s = NOW_S + 3600 - REQUIRED_S + 1
        assert own.get().access_key == "AKID1"
        clock.now_s = NOW_S + 3600
        with pytest.raises(NoCredentials, match="500"):
            own.get()
        assert own.get().access_key == "AKID2" and len(server.requests) == 8


def test_what_has_ended_before_its_time_is_forgotten() -> None:
    with Scripted(said(1, NOW_S + 3600), said(2, NOW_S + 7200)) as server:
        own = source(server, Clock())
        ended = own.get()
        assert own.forget(ended) and own.get().access_key == "AKID2"
        assert own.forget(ended) and own.get().access_key == "AKID2"  # who hears of it later
    given = Source({KEY: "AKID", SECRET: "hidden"})
    assert not given.forget(given.get())


def test_an_attempt_that_fails_is_made_again() -> None:
    with Scripted(HANG_UP, answer(503), said(1, NOW_S + 3600)) as server:
        assert source(server, Clock()).get().access_key == "AKID1"


def test_threads_ask_once_and_only_wait_where_they_must() -> None:
    clock, asking, go_on = Clock(), threading.Event(), threading.Event()
    with Scripted(said(1, NOW_S + 3600), said(2, NOW_S + 7200), said(3, NOW_S + 9999)) as server:
        own = source(server, clock)
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: own.get().access_key, range(8)))
            assert found == ["AKID1"] * 8 and len(server.requests) == 1
            clock.now_s = NOW_S + 3600 - RENEWED_S + 1
            ask = own._ask
            own._ask = lambda: (asking.set(), go_on.wait(10), ask())[2]  # type: ignore[method-assign]
            first = threads.submit(own.get)
            assert asking.wait(10)
            assert own.get().access_key == "AKID1"  # does not wait
            go_on.set()
            assert first.result().access_key == "AKID2" and len(server.requests) == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"hidden", b"{}", json.dumps({"AccessKeyId": "a", "SecretAccessKey": "hidden"}).encode()]
    + [said(1, NOW_S, Expiration=when).split(b"\r\n\r\n")[1] for when in ("hidden", 7, None)],
)
def test_an_answer_that_is_none_is_told_without_its_text(body: bytes) -> None:
    with Scripted(answer(200, body)) as server, pytest.raises(NoCredentials) as told:
        source(server, Clock()).get()
    assert "AccessKeyId" in str(told.value) and "hidden" not in str(told.value)
    assert told.value.__cause__ is None


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:1/x",
        "http://127.0.0.1/x",
        "http://127.8.8.8:1338/x",
        "http://[::1]/x",
        "http://169.254.170.2/v2",
        "http://169.254.170.23/v1/credentials",
        "http://[fd00:ec2::23]/v1/credentials",
        "https://credentials.example/x",
    ],
)
def test_these_may_see_the_pass(address: str) -> None:
    target, path = trusted(address)
    assert target.host in address and path.startswith("/")


@pytest.mark.parametrize(
    "address",
    [
        "http://credentials.example/x",
        "http://127.0.0.1.example/x",
        "http://169.254.169.254/x",
        "http://localhost.example",
        "http://10.0.0.1/",
        "http://[fd00:ec2::24]/",
    ],
)
def test_nobody_else_may(address: str) -> None:
    with pytest.raises(NoCredentials, match="expected https"):
        trusted(address)
    with pytest.raises(Failure):
        Source({ADDRESS: address}).get()


def test_too_long_an_answer_is_none() -> None:
    with Scripted(Said(answer(200, b" " * 2**16 + b"{}"), True)) as server, pytest.raises(NoCredentials):
        source(server, Clock()).get()
