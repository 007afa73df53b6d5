"""AWS clients of our own for the seven calls that functions make, with time limits.

Arguments and answers have the shapes that boto3's clients have, as far as functions use them, so that
boto3's, and what stands in for them, fit the same code.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

from functions.aws.credentials import Source
from functions.aws.errors import THROTTLES, Refused
from functions.aws.transport import Clock, Limits, Reply, Request, Transport
from functions.core.errors import Throttled, Unavailable

Json = dict[str, Any]


class JsonClient:
    """A service that is asked in JSON: the operation in a header, bytes as base64."""

    def __init__(self, transport: Transport, prefix: str, version: str) -> None:
        self._transport, self._prefix = transport, prefix
        self._content = f"application/x-amz-json-{version}"

    def _call(self, operation: str, request: Json, read: Callable[[Reply], Json] = Reply.json) -> Json:
        headers = {"content-type": self._content, "x-amz-target": f"{self._prefix}.{operation}"}
        body = json.dumps(request, default=_base64).encode()
        return self._transport.call(Request("POST", "/", headers, body), read)


class DynamoDB(JsonClient):
    """Items of tables; their binary attributes are bytes."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "DynamoDB_20120810", "1.0")

    def get_item(self, **request: Any) -> Json:
        """One item, where there is one."""
        return self._call("GetItem", request, _one)

    def batch_get_item(self, **request: Any) -> Json:
        """Up to 100 items, and the keys of those that must be asked for again."""
        return self._call("BatchGetItem", request, _many)

    def put_item(self, **request: Any) -> Json:
        """Write an item, under a condition if one is stated."""
        return self._call("PutItem", request)


class Kinesis(JsonClient):
    """Streams."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "Kinesis_20131202", "1.1")

    def put_record(self, **request: Any) -> Json:
        """Append one record."""
        return self._call("PutRecord", request)


class SecretsManager(JsonClient):
    """Secrets."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "secretsmanager", "1.1")

    def get_secret_value(self, **request: Any) -> Json:
        """A secret that is text."""
        return self._call("GetSecretValue", request)


class S3:
    """Objects, with the bucket in the path."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get_object(self, Bucket: str, Key: str, Range: str | None = None) -> Json:
        """An object, or a part of it: `Body` is read as it comes."""
        headers = {"range": Range} if Range else {}
        reply = self._transport.call(Request("GET", _path(Bucket, Key), headers), lambda reply: reply)
        return {"Body": reply, "ContentLength": int(reply.headers.get("content-length", 0))}

    def put_object(self, Bucket: str, Key: str, Body: bytes, ContentType: str) -> Json:
        """Write an object; S3 compares its bytes with the hash that is signed."""
        headers = {"content-type": ContentType}
        self._transport.call(Request("PUT", _path(Bucket, Key), headers, Body), Reply.read)
        return {}


CLIENTS = {"dynamodb": DynamoDB, "kinesis": Kinesis, "s3": S3, "secretsmanager": SecretsManager}


class Session:
    """What all clients share: credentials, and the services' clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.source = Source(clock=self.clock.now_s)

    def create_client(self, service: str, limits: Limits) -> Any:
        """A client of a service."""
        return CLIENTS[service](Transport(service, limits, self.source, self.clock))


@cache
def session() -> Session:
    """The one Session of this environment."""
    return Session()


def client(service: str, *, connect_s: float, read_s: float, attempts: int, connections: int = 10) -> Any:
    """A client that gives up after `connect_s` and `read_s` seconds, `attempts` times in all."""
    return session().create_client(service, Limits(connect_s, read_s, attempts, connections))


def _one(reply: Reply) -> Json:
    answer = reply.json()
    return answer | {"Item": item(answer["Item"])} if "Item" in answer else answer


def _many(reply: Reply) -> Json:
    answer = reply.json()
    for table, found in answer.get("Responses", {}).items():
        answer["Responses"][table] = [item(each) for each in found]
    for left in answer.get("UnprocessedKeys", {}).values():
        left["Keys"] = [item(key) for key in left["Keys"]]
    return answer


def item(attributes: Mapping[str, Any]) -> Json:
    """A DynamoDB item, or key, as boto3 has it."""
    return {name: _attribute(value) for name, value in attributes.items()}


def _attribute(value: Mapping[str, Any]) -> Json:
    ((kind, content),) = value.items()
    if kind == "B":
        content = base64.b64decode(content)
    elif kind == "BS":
        content = [base64.b64decode(each) for each in content]
    elif kind == "L":
        content = [_attribute(each) for each in content]
    elif kind == "M":
        content = item(content)
    return {kind: content}


def _base64(data: object) -> str:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"{type(data).__name__}; expected what JSON has, or bytes")
    return base64.b64encode(data).decode()


def _path(bucket: str, key: str) -> str:
    return f"/{quote(bucket)}/{quote(key)}"


def error_code(error: Exception) -> str:
    """The service's own error code; "" where it did not answer."""
    return error.code if isinstance(error, Refused) else ""


def unavailable(error: Exception, what: str) -> Unavailable:
    """The failure of a call as our own error, throttles told from the rest; `what` was wanted of whom."""
    kind = Throttled if error_code(error) in THROTTLES else Unavailable
    return kind(f"{what}: {type(error).__name__}: {error}")
