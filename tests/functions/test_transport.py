"""A call of a service through every fault of a wire: how often it is tried, and what it comes to."""

from __future__ import annotations

import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from functions.aws import transport
from functions.aws.clients import S3, DynamoDB, Session, error_code, unavailable
from functions.aws.connection import Connection
from functions.aws.errors import Closed, Failure, NoAnswer, NoCredentials, Refused, TimedOut
from functions.aws.transport import LONGEST_S, MOST, Clock, Limits, Transport, endpoint
from functions.core.errors import Throttled, Unavailable
from tests.functions.scripted import HANG_UP, SILENCE, Said, Scripted, answer

KEY = {"pk": {"S": "ann"}}
FOUND = json.dumps({"Item": {"pk": {"S": "ann"}, "state": {"B": "AAEC"}}}).encode()
ITEM = {"Item": {"pk": {"S": "ann"}, "state": {"B": b"\0\1\2"}}}
OK = answer(200, FOUND)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Credentials, a region, and waits that take no time: those that were asked for."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    yield []


def made(
    server: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    service: str = "dynamodb",
    attempts: int = 3,
    waits: list[float] | None = None,
    read_s: float = 5.0,
) -> Any:
    """A client of the server; `waits`: where its pauses are noted."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    session = Session()
    noted = [] if waits is None else waits
    limits = Limits(1.0, read_s, attempts, 2)
    own = Transport(service, limits, session.source, session.clock, noted.append)
    return {"dynamodb": DynamoDB, "s3": S3}[service](own)


def get(client: Any) -> Any:
    return client.get_item(TableName="rows", Key=KEY, ConsistentRead=True)


def refused(code: str, status: int = 400, **headers: str) -> bytes:
    body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no"}).encode()
    return answer(status, body, **headers)


THROTTLE = refused("ProvisionedThroughputExceededException")
PASSING: dict[str, bytes | Said] = {
    "500": answer(500),
    "502": answer(502, b"<html>"),
    "503": refused("ServiceUnavailable", 503),
    "504": answer(504),
    "429": answer(429),
    "throttle": THROTTLE,
    "a request that came too slowly": refused("RequestTimeout"),
    "closed before an answer": HANG_UP,
    "closed in the head": Said(OK[:20], True),
    "closed in the body": Said(OK[:-5], True),
    "a wrong checksum": answer(200, FOUND, x_amz_crc32="7"),
    "no JSON": answer(200, b"<html>it works</html>"),
    "JSON of another kind": answer(200, b"[1]"),
    "no HTTP": Said(b"220 smtp.example ready\r\n", True),
}


# botocore does not try these again, and takes an answer in the end whose checksum is wrong
STRICTER = {"closed in the head", "closed in the body", "a wrong checksum", "no JSON", "JSON of another kind"}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(PASSING[fault], PASSING[fault], OK) as server:
        assert get(made(server, monkeypatch)) == ITEM
        assert len(server.requests) == 3


@pytest.mark.parametrize("fault", PASSING)
def test_what_does_not_pass_is_given_up(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(*[PASSING[fault]] * 3, OK) as server:
        with pytest.raises(Failure) as told:
            get(made(server, monkeypatch))
        assert len(server.requests) == 3
        assert isinstance(told.value, Refused | NoAnswer) and "secret" not in str(told.value)


@pytest.mark.parametrize("fault", [name for name in PASSING if name not in STRICTER])
def test_botocore_makes_as_many_attempts(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with Scripted(*[PASSING[fault]] * 3, OK) as server:
        config = Config(retries={"total_max_attempts": 3, "mode": "standard"}, read_timeout=5)
        theirs = botocore.session.Session().create_client("dynamodb", endpoint_url=server.url, config=config)
        try:
            get(theirs)
        except (BotoCoreError, ClientError) as error:
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else ""
        made_by_them = len(server.requests)
    with Scripted(*[PASSING[fault]] * 3, OK) as server:
        with pytest.raises(Failure) as told:
            get(made(server, monkeypatch))
        assert len(server.requests) == made_by_them == 3
    assert error_code(told.value) == code


@pytest.mark.parametrize("status", [301, 307, 400, 403, 404])
def test_what_is_refused_for_good_is_asked_once(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect is not followed: it would take the signature to somebody else."""
    with Scripted(answer(status, location="http://127.0.0.1:9/"), OK) as server:
        with pytest.raises(Refused) as told:
            get(made(server, monkeypatch))
        assert (told.value.status, told.value.code, len(server.requests)) == (status, str(status), 1)


@pytest.mark.parametrize(
    "said",
    [
        refused("ConditionalCheckFailedException"),
        answer(400, b'{"__type":"ConditionalCheckFailedException"}'),
        answer(400, b"{}", x_amzn_ErrorType="ConditionalCheckFailedException:http://internal.amazon.com/"),
        answer(400, x_amzn_errortype="com.amazonaws.dynamodb#ConditionalCheckFailedException"),
        answer(400, b'{"__type":"a#ConditionalCheckFailedException","Message":"The conditional"}'),
    ],
)
def test_a_failed_condition_is_told_apart(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(said, OK) as server:
        with pytest.raises(Refused) as told:
            made(server, monkeypatch).put_item(TableName="rows", Item=KEY)
        assert error_code(told.value) == "ConditionalCheckFailedException"
        assert len(server.requests) == 1
        assert type(unavailable(told.value, "row")) is Unavailable


def test_throttles_are_told_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(THROTTLE, answer(500)) as server:
        client = made(server, monkeypatch, attempts=1)
        kinds = []
        for _ in range(2):
            with pytest.raises(Refused) as told:
                get(client)
            kinds.append(type(unavailable(told.value, "row")))
        assert kinds == [Throttled, Unavailable]
    assert error_code(TimedOut("x")) == "" and type(unavailable(TimedOut("x"), "row")) is Unavailable


def test_the_waits_grow_are_drawn_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for fault, most in ((THROTTLE, [1, 2, 4, 8, 16, 20, 20]), (answer(500), [0.05 * 2**n for n in range(7)])):
        for share in (0.25, 1.0):
            monkeypatch.setattr(transport.random, "random", lambda share=share: share)
            waits: list[float] = []
            with Scripted(*[fault] * 7, OK) as server:
                get(made(server, monkeypatch, attempts=8, waits=waits))
            assert waits == pytest.approx([share * wait for wait in most])
            assert max(waits) <= LONGEST_S


def test_a_silent_service_is_a_timeout_and_costs_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(SILENCE, Said(OK[:-5]), OK) as server:
        client = made(server, monkeypatch, attempts=1, read_s=0.05)
        for _ in range(2):  # nothing, and not all
            started_s = time.monotonic()
            with pytest.raises(TimedOut):
                get(client)
            assert 0.04 < time.monotonic() - started_s < 2
        assert get(client) == ITEM  # by a connection of its own
        assert server.connections == 3


def test_a_service_that_drips_is_a_timeout_and_costs_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time; all of them would take 20 seconds."""
    drips = Said(OK, apart_s=20 / len(OK))
    with Scripted(drips, drips, answer(500), OK) as server:
        client = made(server, monkeypatch, attempts=2, read_s=0.5)
        started_s = time.monotonic()
        with pytest.raises(TimedOut):
            get(client)
        assert 0.99 < time.monotonic() - started_s < 5  # two attempts
        assert get(client) == ITEM


def test_an_address_that_does_not_answer_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        held = []
        for _ in range(3):  # more than its queue takes
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
            held.append(waiting)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        session = Session()
        own = Transport("dynamodb", Limits(0.05, 5.0, 2), session.source, session.clock, lambda s: None)
        started_s = time.monotonic()
        with pytest.raises(TimedOut, match="connecting"):
            get(DynamoDB(own))
        assert 0.09 < time.monotonic() - started_s < 3  # two attempts
        for waiting in held:
            waiting.close()


def test_nobody_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted() as server:
        pass
    waits: list[float] = []
    with pytest.raises(NoAnswer) as told:
        get(made(server, monkeypatch, waits=waits))
    assert not isinstance(told.value, TimedOut) and len(waits) == 2


def test_connections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(OK, answer(400), THROTTLE, answer(200, b"{}"), OK) as server:
        client = made(server, monkeypatch)
        get(client)
        with pytest.raises(Refused):
            get(client)
        assert get(client) == {} and get(client) == ITEM
        assert (len(server.requests), server.connections) == (5, 1)


def test_one_that_died_meanwhile_is_replaced_and_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(OK, OK, OK) as server:
        client = made(server, monkeypatch, attempts=1)
        for connections in (1, 2, 3):
            assert get(client) == ITEM
            assert server.connections == connections
            server.drop()
    assert [request.connection for request in server.requests] == [1, 2, 3]


def test_one_that_dies_when_it_is_asked_is_replaced_by_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a freeze: nothing says that it is dead before something is sent. The others are too."""
    with Scripted(OK, HANG_UP, OK, OK) as server:
        client = made(server, monkeypatch, attempts=1)
        pool = client._transport._pool
        get(client)
        pool.give_back(Connection(pool.target, 1, 5))
        assert len(pool._idle) == 2
        assert get(client) == ITEM
        assert [request.connection for request in server.requests] == [1, 2, 3]
        assert len(pool._idle) == 1 and get(client) == ITEM
        assert server.connections == 3


def test_a_new_one_that_dies_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(OK, HANG_UP, HANG_UP, OK) as server:
        client = made(server, monkeypatch, attempts=1)
        get(client)
        with pytest.raises(Closed):
            get(client)
        assert len(server.requests) == 3  # the kept one, and one in its place


def test_threads_share_a_bounded_number_of_kept_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(6)
    with Scripted(*[OK] * 120) as server:
        client = made(server, monkeypatch)
        kept = client._transport._pool.give_back
        monkeypatch.setattr(client._transport._pool, "give_back", lambda c: (together.wait(5), kept(c)))
        with ThreadPoolExecutor(6) as threads:
            assert list(threads.map(lambda _: get(client), range(120))) == [ITEM] * 120
        assert len(client._transport._pool._idle) == 2
    together.abort()


@pytest.mark.parametrize("ahead_s", [-3600, -300, 300, 86_400])
@pytest.mark.parametrize(
    "code", ["InvalidSignatureException", "RequestTimeTooSkewed", "SignatureDoesNotMatch"]
)
def test_a_clock_that_is_wrong_is_set_once(code: str, ahead_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    date = formatdate(time.time() + ahead_s, usegmt=True)
    with Scripted(refused(code, 403, date=date), OK, OK) as server:
        client = made(server, monkeypatch, attempts=1)
        assert get(client) == get(client) == ITEM
        moments = [request.headers["x-amz-date"] for request in server.requests]
    asked = [time.mktime(time.strptime(moment, "%Y%m%dT%H%M%SZ")) for moment in moments]
    assert abs(asked[1] - asked[0] - ahead_s) < 30 and abs(asked[2] - asked[1]) < 30
    assert len(server.requests) == 3


@pytest.mark.parametrize("date", ["", "yesterday", "now"])
def test_a_clock_that_is_right_is_left_alone(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"date": formatdate(usegmt=True) if date == "now" else date} if date else {}
    with Scripted(refused("InvalidSignatureException", 403, **said), OK) as server:
        with pytest.raises(Refused, match="InvalidSignatureException"):
            get(made(server, monkeypatch))
        assert len(server.requests) == 1


def test_a_clock_that_is_never_right_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    dates = [formatdate(time.time() + 3600 * turn, usegmt=True) for turn in (1, 2, 3, 4)]
    with Scripted(*(refused("RequestExpired", 400, date=date) for date in dates)) as server:
        with pytest.raises(Refused, match="RequestExpired"):
            get(made(server, monkeypatch))
        assert len(server.requests) == 2


def test_a_clock_is_set_for_all_who_signed_by_the_old_one() -> None:
    clock = Clock()
    signed_s = clock.now_s()
    refusal = Refused("RequestExpired", 400, date=formatdate(signed_s + 3600, usegmt=True))
    assert clock.corrected(refusal, signed_s) and clock.corrected(refusal, signed_s)
    assert not clock.corrected(refusal, clock.now_s())


def test_credentials_that_have_ended_are_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    ends = "2099-01-01T00:00:00Z"
    given = [
        answer(
            200,
            json.dumps(
                {"AccessKeyId": f"AKID{n}", "SecretAccessKey": "s", "Token": "t", "Expiration": ends}
            ).encode(),
        )
        for n in (1, 2)
    ]
    ended = refused("ExpiredTokenException", 400)
    with Scripted(*given) as vending, Scripted(ended, OK, ended, ended) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{vending.url}/role")
        client = made(server, monkeypatch, attempts=1)
        assert get(client) == ITEM
        signers = [request.headers["authorization"].split("/")[0][-5:] for request in server.requests]
        assert signers == ["AKID1", "AKID2"] and len(vending.requests) == 2


def test_a_silent_connection_ends_those_that_were_kept_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(OK, OK, SILENCE, OK) as server:
        client = made(server, monkeypatch, attempts=1, read_s=0.3)
        pool = client._transport._pool
        (one, first), (other, second) = (
            pool._ask(Connection(pool.target, 1.0, 0.3), "GET", "/", {"host": "a"}, b"") for _ in range(2)
        )
        for read, connection in ((one, first), (other, second)):
            read.read()
            pool.give_back(connection)
        with pytest.raises(TimedOut):
            get(client)
        assert not pool._idle


UNREADABLE = {
    "an item without a type": b'{"Item": {"pk": "ann"}}',
    "an item that is a list": b'{"Item": [1]}',
    "base64 that is none": b'{"Item": {"pk": {"B": "a"}}}',
    "objects in objects": b'{"a":' * 100_000,
    "text": b"hush, a secret",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_an_answer_that_is_none_is_tried_again_and_not_quoted(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scripted(answer(200, body), OK) as server:
        assert get(made(server, monkeypatch)) == ITEM
    with Scripted(answer(200, body)) as server, pytest.raises(NoAnswer) as raised:
        get(made(server, monkeypatch, attempts=1))
    assert "hush" not in str(raised.value) and "ann" not in str(raised.value)


@pytest.mark.parametrize("body", [b"<Error><Code>\xff\xfe</Code></Error>", b'{"a":' * 10_000, b"{]"])
def test_a_refusal_that_cannot_be_read_is_one(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(answer(403, body)) as server, pytest.raises(Refused):
        get(made(server, monkeypatch))


def test_dynamodbs_checksum_is_of_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(answer(200, FOUND, x_amz_crc32=str(zlib.crc32(FOUND)))) as server:
        assert get(made(server, monkeypatch, attempts=1)) == ITEM


def test_an_answer_is_not_read_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MOST", 1000)
    with (
        Scripted(answer(200, b'{"a":"' + b"b" * 1000 + b'"}')) as server,
        pytest.raises(NoAnswer, match="1000 bytes at most"),
    ):
        get(made(server, monkeypatch, attempts=1))
    assert MOST > 16 * 2**20 * 4 / 3


def test_every_attempt_is_signed_with_the_credentials_of_its_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(THROTTLE, OK) as server:
        client = made(server, monkeypatch)
        client._transport._sleep = lambda seconds: monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ANOTHER")
        get(client)
        first, second = (request.headers["authorization"] for request in server.requests)
    assert "Credential=AKID/" in first and "Credential=ANOTHER/" in second


def test_without_credentials_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(OK) as server:
        client = made(server, monkeypatch)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(NoCredentials, match="AWS_SECRET_ACCESS_KEY is not set"):
            get(client)
        assert server.requests == [] and type(unavailable(NoCredentials("x"), "row")) is Unavailable


def test_without_a_region_there_is_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(NoCredentials, match="AWS_REGION is not set"):
        Session().create_client("s3", Limits(1, 1, 1))


@pytest.mark.parametrize(
    "service, environment, expected",
    [
        ("dynamodb", {}, "https://dynamodb.eu-west-3.amazonaws.com"),
        ("s3", {}, "https://s3.eu-west-3.amazonaws.com"),
        ("secretsmanager", {"AWS_ENDPOINT_URL": "http://a"}, "http://a"),
        ("kinesis", {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_KINESIS": "http://b"}, "http://b"),
        ("secretsmanager", {"AWS_ENDPOINT_URL_SECRETS_MANAGER": "http://c"}, "http://c"),
        ("s3", {"AWS_ENDPOINT_URL_DYNAMODB": "http://d"}, "https://s3.eu-west-3.amazonaws.com"),
    ],
)
def test_where_a_service_is(
    service: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, url in environment.items():
        monkeypatch.setenv(name, url)
    assert endpoint(service, "eu-west-3") == expected


@pytest.mark.parametrize("service", ["dynamodb", "kinesis", "s3", "secretsmanager"])
@pytest.mark.parametrize(
    "region", ["eu-central-1", "us-east-1", "ap-southeast-4", "us-gov-west-1", "cn-north-1"]
)
def test_botocore_asks_there_too(service: str, region: str) -> None:
    client = botocore.session.Session().create_client(
        service, region_name=region, config=Config(s3={"us_east_1_regional_endpoint": "regional"})
    )
    assert endpoint(service, region) == client.meta.endpoint_url


def test_an_object_comes_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 40
    with Scripted(answer(200, data), answer(206, data[9:]), answer(200, data), answer(200, b"")) as server:
        client = made(server, monkeypatch, "s3")
        got = client.get_object(Bucket="bundles", Key="a b/ü+%.bin")
        assert got["ContentLength"] == len(data)
        assert b"".join(got["Body"].iter_chunks(1000)) == data
        part = client.get_object(Bucket="bundles", Key="k", Range="bytes=9-")["Body"]
        assert [part.read(10), part.read(), part.read(5)] == [data[9:19], data[19:], b""]
        assert client.get_object(Bucket="bundles", Key="k")["Body"].read(len(data) + 1) == data
        assert client.get_object(Bucket="bundles", Key="empty")["Body"].read(1) == b""
        assert server.connections == 1
        assert server.requests[0].line == "GET /bundles/a%20b/%C3%BC%2B%25.bin HTTP/1.1"
        assert server.requests[1].headers["range"] == "bytes=9-"


def test_an_object_that_is_cut_short_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answer(200, b"x" * 1000)
    with Scripted(
        Said(whole[:-1], True), Said(whole[:-1], True), Said(whole[:-1]), answer(200, b"ok")
    ) as server:
        client = made(server, monkeypatch, "s3", read_s=0.1)
        body = client.get_object(Bucket="b", Key="k")["Body"]
        assert body.read(900) == b"x" * 900
        with pytest.raises(NoAnswer, match="cut short"):
            body.read(900)
        with pytest.raises(NoAnswer):
            b"".join(client.get_object(Bucket="b", Key="k")["Body"].iter_chunks(64))
        with pytest.raises(TimedOut):
            client.get_object(Bucket="b", Key="k")["Body"].read()
        assert client.get_object(Bucket="b", Key="k")["Body"].read() == b"ok"
        assert (len(server.requests), server.connections) == (4, 4)


def test_what_comes_after_an_answer_is_not_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    forged = answer(200, b'{"Item": {"pk": {"S": "forged"}}}')
    with Scripted(OK + forged, OK) as server:
        client = made(server, monkeypatch, attempts=1)
        assert get(client) == get(client) == ITEM


def test_an_object_that_nobody_reads_to_its_end_does_not_spoil_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Scripted(answer(200, b"x" * 10**6), answer(200, b"next")) as server:
        client = made(server, monkeypatch, "s3")
        assert client.get_object(Bucket="b", Key="k")["Body"].read(10) == b"x" * 10
        assert client.get_object(Bucket="b", Key="k")["Body"].read() == b"next"
        assert server.connections == 2


@pytest.mark.parametrize(
    "said, code",
    [
        (b"<?xml version='1.0'?>\n<Error><Code>NoSuchKey</Code><Message>none</Message></Error>", "NoSuchKey"),
        (b"<Error>\n<Key>k</Key><Code>InvalidRange</Code>\n</Error>", "InvalidRange"),
        (b"", "404"),
        (b"<Error><Code></Code></Error>", "404"),
        (b"<html>not here</html>", "404"),
        (b'{"__type":', "404"),
    ],
)
def test_what_s3_refuses_has_its_code(said: bytes, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(answer(404, said)) as server:
        with pytest.raises(Refused) as told:
            made(server, monkeypatch, "s3").get_object(Bucket="b", Key="k")
        assert (error_code(told.value), told.value.status) == (code, 404)


def test_an_object_is_put_whole_and_again_where_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down = answer(503, b"<Error><Code>SlowDown</Code></Error>")
    with Scripted(slow_down, HANG_UP, answer(200)) as server:
        client = made(server, monkeypatch, "s3")
        assert client.put_object(Bucket="b", Key="k", Body=b"{}", ContentType="application/json") == {}
        assert [request.body for request in server.requests] == [b"{}"] * 3
        assert {request.headers["content-type"] for request in server.requests} == {"application/json"}


def test_a_base_path_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(answer(200, b"x")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{server.url}/emulated/")
        client = made(server, monkeypatch, "s3")
        assert client.get_object(Bucket="b", Key="k")["Body"].read() == b"x"
        assert server.requests[0].line == "GET /emulated/b/k HTTP/1.1"
