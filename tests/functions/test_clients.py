"""The clients' answers have the shapes of boto3's, for the same calls of the same emulated AWS."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from functions.aws.clients import client, error_code, item
from functions.aws.errors import Refused
from tests.functions.account import BUCKET, REGION, SECRET, STREAM, TABLE, Account

ITEM = {
    "pk": {"S": "ann"},
    "binary": {"B": bytes(range(256))},
    "empty": {"B": b""},
    "number": {"N": "-12345678901234567890.5"},
    "truth": {"BOOL": True},
    "nothing": {"NULL": True},
    "binaries": {"BS": [b"\0", b"\1\xff"]},
    "texts": {"SS": ["a", "ü"]},
    "numbers": {"NS": ["1", "2.5"]},
    "list": {"L": [{"B": b"\2"}, {"L": [{"B": b"\3"}, {"S": "x"}]}, {"M": {"B": {"B": b"\4"}}}]},
    "map": {"M": {"S": {"S": "B"}, "B": {"M": {"L": {"B": b"\5\6"}}}}},
}
VALUES = st.recursive(
    st.binary(max_size=40).map(lambda data: {"B": data})
    | st.text(max_size=10).map(lambda text: {"S": text})
    | st.integers(-(10**30), 10**30).map(lambda number: {"N": str(number)})
    | st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=3, unique=True).map(
        lambda data: {"BS": sorted(data)}
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: {"L": values})
        | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3).map(
            lambda values: {"M": values}
        )
    ),
    max_leaves=8,
)


def own(service: str) -> Any:
    return client(service, connect_s=2, read_s=5, attempts=1)


def told(call: Callable[..., Any], **request: Any) -> Any:
    """What a client answers, but for what is said of the answer itself; or the code of its refusal."""
    try:
        return {name: said for name, said in call(**request).items() if name != "ResponseMetadata"}
    except ClientError as error:
        return error.response["Error"]["Code"]
    except Refused as error:
        return error_code(error)


def both(service: str, operation: str, **request: Any) -> Any:
    """What ours answers, once it is found to be what boto3's does."""
    answers = [
        told(getattr(made, operation), **request)
        for made in (own(service), boto3.client(service, region_name=REGION))
    ]
    assert answers[0] == answers[1]
    return answers[0]


def test_items(account: Account) -> None:
    assert both("dynamodb", "put_item", TableName=TABLE, Item=ITEM) == {}
    key = {"pk": {"S": "ann"}}
    got = both("dynamodb", "get_item", TableName=TABLE, Key=key, ConsistentRead=True)["Item"]
    assert got == ITEM and {type(got["binary"]["B"]), type(got["binaries"]["BS"][0])} == {bytes}
    assert both("dynamodb", "get_item", TableName=TABLE, Key={"pk": {"S": "nobody"}}) == {}
    assert both("dynamodb", "get_item", TableName="none", Key=key) == "ResourceNotFoundException"


def test_conditions(account: Account) -> None:
    new = {"TableName": TABLE, "Item": ITEM, "ConditionExpression": "attribute_not_exists(pk)"}
    assert told(own("dynamodb").put_item, **new) == {}
    assert both("dynamodb", "put_item", **new) == "ConditionalCheckFailedException"
    for stored, expected in ((ITEM["binary"]["B"], {}), (b"other", "ConditionalCheckFailedException")):
        values = {"ExpressionAttributeValues": {":e": {"B": stored}}, "ConditionExpression": "#b = :e"}
        values["ExpressionAttributeNames"] = {"#b": "binary"}
        assert both("dynamodb", "put_item", TableName=TABLE, Item=ITEM, **values) == expected
    wrong = {"ConditionExpression": "what is this"}
    assert both("dynamodb", "put_item", TableName=TABLE, Item=ITEM, **wrong) == "ValidationException"


def test_many_items(account: Account) -> None:
    for name in ("ann", "bob"):
        account.dynamodb.put_item(TableName=TABLE, Item=ITEM | {"pk": {"S": name}})
    keys = [{"pk": {"S": name}} for name in ("ann", "bob", "nobody")]
    found = both("dynamodb", "batch_get_item", RequestItems={TABLE: {"Keys": keys, "ConsistentRead": True}})
    assert found["UnprocessedKeys"] == {} and len(found["Responses"][TABLE]) == 2
    assert all(each["map"] == ITEM["map"] for each in found["Responses"][TABLE])
    twice = {TABLE: {"Keys": [keys[0], keys[0]]}}
    assert both("dynamodb", "batch_get_item", RequestItems=twice) == "ValidationException"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attributes=st.dictionaries(st.text(min_size=1, max_size=6), VALUES, max_size=4))
def test_every_item_comes_back_as_it_went(account: Account, attributes: dict[str, Any]) -> None:
    stored = {**attributes, "pk": {"S": "any"}}
    assert told(own("dynamodb").put_item, TableName=TABLE, Item=stored) == {}
    got = both("dynamodb", "get_item", TableName=TABLE, Key={"pk": {"S": "any"}})["Item"]
    assert got == stored


def test_keys_that_must_be_asked_for_again_are_keys() -> None:
    """The emulator leaves none."""
    key = {"pk": {"B": b"\0\1"}}
    sent = json.loads(json.dumps(key, default=lambda data: base64.b64encode(data).decode()))
    assert item(sent) == key


def test_records(account: Account) -> None:
    request = {"StreamName": STREAM, "PartitionKey": "ann", "Data": b"\0\xff{}"}
    first = told(own("kinesis").put_record, **request)
    second = told(account.kinesis.put_record, **request)
    assert set(first) == set(second) and first["ShardId"] == second["ShardId"]
    assert int(first["SequenceNumber"]) < int(second["SequenceNumber"])
    after = {"SequenceNumberForOrdering": first["SequenceNumber"]}
    assert set(told(own("kinesis").put_record, **request, **after)) == set(first)
    assert [record["Data"] for record in account.records()] == [b"\0\xff{}"] * 3
    assert both("kinesis", "put_record", **request | {"StreamName": "none"}) == "ResourceNotFoundException"


def test_secrets(account: Account) -> None:
    theirs = told(boto3.client("secretsmanager", region_name=REGION).get_secret_value, SecretId=SECRET)
    ours = told(own("secretsmanager").get_secret_value, SecretId=SECRET)
    assert {name: value for name, value in ours.items() if name != "CreatedDate"} == {
        name: value for name, value in theirs.items() if name != "CreatedDate"
    }
    assert both("secretsmanager", "get_secret_value", SecretId="none") == "ResourceNotFoundException"


@pytest.mark.parametrize("key", ["plain", "a/b c/+%25?x=1&y#z", "ü/日本/~'()*!", "quarantine/shard:1/2.json"])
def test_objects(account: Account, key: str) -> None:
    data = bytes(range(256)) * 9
    put = own("s3").put_object(Bucket=BUCKET, Key=key, Body=data, ContentType="application/json")
    assert put == {} and account.s3.get_object(Bucket=BUCKET, Key=key)["ContentType"] == "application/json"
    for part in ({}, {"Range": "bytes=100-"}):
        ours = own("s3").get_object(Bucket=BUCKET, Key=key, **part)
        theirs = account.s3.get_object(Bucket=BUCKET, Key=key, **part)
        assert ours["ContentLength"] == theirs["ContentLength"]
        assert ours["Body"].read(50) == theirs["Body"].read(50)
        assert list(ours["Body"].iter_chunks(1000)) == list(theirs["Body"].iter_chunks(1000))
        assert ours["Body"].read(1) == theirs["Body"].read(1) == b""


def test_objects_that_are_not_there(account: Account) -> None:
    assert both("s3", "get_object", Bucket=BUCKET, Key="none") == "NoSuchKey"
    assert both("s3", "get_object", Bucket="no-such-bucket", Key="none") == "NoSuchBucket"
    account.s3.put_object(Bucket=BUCKET, Key="short", Body=b"123")
    assert both("s3", "get_object", Bucket=BUCKET, Key="short", Range="bytes=9-") == "InvalidRange"


def test_what_is_neither_json_nor_bytes_is_refused_here(account: Account) -> None:
    with pytest.raises(TypeError, match="set; expected"):
        own("dynamodb").put_item(TableName=TABLE, Item={"pk": {"S": "ann"}, "x": {"SS": {1}}})
