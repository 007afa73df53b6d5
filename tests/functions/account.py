"""A shop's account in memory, as the template makes it: table, stream, bucket with a bundle, secret."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import boto3

from functions.core.events import user_key
from functions.core.tokens import Keys, sign

STORED = Path(__file__).parents[1] / "data" / "tiny_bundle"
REGION = "eu-central-1"
TABLE, STREAM, BUCKET, SECRET, KEY_TABLE = "rows", "events", "bundles", "secret", "keys"
PSEUDONYM = bytes(range(32))
KEYS = Keys({"k1": b"1" * 32}, "k1")
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": REGION,
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "VITRINE_TABLE": TABLE,
    "VITRINE_STREAM": STREAM,
    "VITRINE_BUCKET": BUCKET,
    "VITRINE_SECRET": SECRET,
    "VITRINE_KEYS": KEY_TABLE,
    "VITRINE_DEADLINE_MS": "2000",  # the emulator shares its process with the test
}


class Context:
    """What Lambda gives a handler beside its event."""

    function_name = "test"
    memory_limit_in_mb = "1769"
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:test"
    aws_request_id = "00000000-0000-0000-0000-000000000000"

    def __init__(self, remaining_ms: int = 60_000) -> None:
        self._remaining_ms = remaining_ms

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds left."""
        return self._remaining_ms


class Account:
    """The emulated account, created empty but for its secret and, if a folder is given, its bundles."""

    def __init__(self, bundles: Path | None = STORED) -> None:
        self.dynamodb = boto3.client("dynamodb", region_name=REGION)
        self.kinesis = boto3.client("kinesis", region_name=REGION)
        self.s3 = boto3.client("s3", region_name=REGION)
        for table in (TABLE, KEY_TABLE):
            self.dynamodb.create_table(
                TableName=table,
                AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
            )
        self.kinesis.create_stream(StreamName=STREAM, ShardCount=1)
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        boto3.client("secretsmanager", region_name=REGION).create_secret(
            Name=SECRET, SecretString=secret_string()
        )
        if bundles is not None:
            self.upload(bundles)

    def upload(self, bundles: Path) -> None:
        """Upload a folder of bundles; the pointer goes last."""
        files = sorted(p for p in bundles.rglob("*") if p.is_file() and p.name != "pointer.json")
        for path in [*files, bundles / "pointer.json"]:
            key = path.relative_to(bundles).as_posix()
            self.s3.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())

    def point(self, champion: str) -> None:
        """Swap the pointer."""
        body = json.dumps({"champion": champion, "challenger": None, "share": 0.0, "salt": ""}).encode()
        self.s3.put_object(Bucket=BUCKET, Key="pointer.json", Body=body)

    def items(self) -> dict[str, dict[str, Any]]:
        """All rows of the table by key, as DynamoDB has them."""
        return {item["pk"]["S"]: item for item in self.dynamodb.scan(TableName=TABLE)["Items"]}

    def records(self) -> list[dict[str, Any]]:
        """All records of the stream, as Kinesis has them."""
        (shard,) = self.kinesis.describe_stream(StreamName=STREAM)["StreamDescription"]["Shards"]
        iterator = self.kinesis.get_shard_iterator(
            StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        found: list[dict[str, Any]] = self.kinesis.get_records(ShardIterator=iterator)["Records"]
        return found

    def quarantine(self) -> dict[str, dict[str, Any]]:
        """What is in quarantine, by key."""
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix="quarantine/").get("Contents", [])
        return {
            o["Key"]: json.loads(self.s3.get_object(Bucket=BUCKET, Key=o["Key"])["Body"].read())
            for o in listed
        }


def secret_string() -> str:
    """The secret as Secrets Manager holds it."""
    keys = {kid: secret.hex() for kid, secret in KEYS.secrets.items()}
    return json.dumps({"current": KEYS.current, "keys": keys, "pseudonym": PSEUDONYM.hex()})


def key_of(subject: str) -> str:
    """The user key of a subject."""
    return user_key(PSEUDONYM, subject)


def credential(subject: str, lifetime_s: int = 3600) -> str:
    """A value for the Authorization header."""
    return "Bearer " + sign({"sub": subject, "exp": int(time.time()) + lifetime_s}, KEYS)


def http(
    method: str, path: str, body: object = None, authorization: str | None = None, query: str = ""
) -> dict[str, Any]:
    """An API Gateway event, payload 2.0; a body that is text goes as it is."""
    headers = {"content-type": "application/json"}
    if authorization is not None:
        headers["authorization"] = authorization
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": f"{method} {path}",
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"},
            "requestId": "id",
            "stage": "$default",
            "timeEpoch": int(time.time() * 1000),
        },
        "isBase64Encoded": False,
    }
    if query:
        event["queryStringParameters"] = dict(part.split("=", 1) for part in query.split("&"))
    if body is not None:
        event["body"] = body if isinstance(body, str) else json.dumps(body)
    return event


def behaviour(number: int, item: str = "sku-001", kind: str = "view", **more: Any) -> dict[str, Any]:
    """A behaviour event as a client sends it; `number` makes its id and its time."""
    minute, second = divmod(number, 60)
    moment = f"2026-11-24T12:{minute % 60:02d}:{second:02d}Z"
    return {"event_id": f"e{number}", "type": kind, "item_id": item, "time": moment, **more}


def stream_record(
    user: str, event: object, sequence: int, shard: str = "shardId-000000000000"
) -> dict[str, Any]:
    """One record of a Lambda Kinesis batch; `event` that is bytes is the record's whole data."""
    data = event if isinstance(event, bytes) else json.dumps({"user_key": user, "event": event}).encode()
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": user or "none",
            "sequenceNumber": str(sequence),
            "data": base64.b64encode(data).decode(),
            "approximateArrivalTimestamp": 1_795_521_600.5,
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": f"{shard}:{sequence}",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": "arn:aws:iam::123456789012:role/update",
        "awsRegion": REGION,
        "eventSourceARN": f"arn:aws:kinesis:{REGION}:123456789012:stream/{STREAM}",
    }


def copy_bundles(folder: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(STORED, folder / "bundles"))


def set_environment(monkeypatch: Any, temporary: Path) -> None:
    """The functions' environment, with a folder of the test's own for what is fetched."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "VITRINE_"))]:
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
