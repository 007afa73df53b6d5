"""The signature is AWS's: its published examples, and botocore's own on random requests."""

from __future__ import annotations

import calendar
import datetime
import time
from unittest.mock import patch
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Botocores
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.aws.credentials import Credentials
from functions.aws.signature import Scope, signed

S3_EXAMPLES = {"host": "examplebucket.s3.amazonaws.com"}
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def seconds(stamp: str) -> float:
    return calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))


def test_the_published_example_of_an_object_read_in_part() -> None:
    """Amazon S3 API reference, "Signature Calculations: Transferring Payload in a Single Chunk"."""
    own = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    headers = S3_EXAMPLES | {"range": "bytes=0-9"}
    named = signed(
        "GET", "/test.txt", headers, b"", Scope("us-east-1", "s3"), own, seconds("20130524T000000Z")
    )
    assert named["x-amz-content-sha256"] == EMPTY
    assert named["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_the_published_example_of_an_object_written() -> None:
    own = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    more = {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"}
    scope, moment = Scope("us-east-1", "s3"), seconds("20130524T000000Z")
    body = b"Welcome to Amazon S3."
    named = signed("PUT", "/test%24file.text", S3_EXAMPLES | more, body, scope, own, moment)
    assert named["authorization"].endswith(
        "Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    )


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    ],
)
def test_the_published_test_suites_requests(method: str, expected: str) -> None:
    """AWS Signature Version 4 test suite: get-vanilla, post-vanilla."""
    own = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    scope, moment = Scope("us-east-1", "service"), seconds("20150830T123600Z")
    named = signed(method, "/", {"host": "example.amazonaws.com"}, b"", scope, own, moment)
    assert named["authorization"].endswith(f"Signature={expected}")


def botocores(
    service: str, method: str, path: str, headers: dict[str, str], body: bytes, token: str, moment: float
) -> str:
    """What botocore puts into the header Authorization."""
    request = AWSRequest(
        method, f"https://{headers['host']}{path}", {k: v for k, v in headers.items() if k != "host"}, body
    )
    kind = S3SigV4Auth if service == "s3" else SigV4Auth
    now = datetime.datetime.fromtimestamp(moment, datetime.UTC).replace(tzinfo=None)
    with patch("botocore.auth.get_current_datetime", lambda *given: now):
        kind(Botocores("AKID", "secret/+key", token or None), service, "eu-west-3").add_auth(request)
    return str(request.headers["Authorization"])


text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)
keys = st.lists(
    st.one_of(
        st.sampled_from(["..", ".", "", "a b", "ä/ö", "+", "%2F", "%", "~", "a=b&c", "?q", "#", "日本"]),
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r\n\t"), max_size=12),
    ),
    min_size=1,
    max_size=5,
).map("/".join)
moments = st.integers(0, 4_000_000_000).map(float)


@settings(max_examples=400, deadline=None)
@given(
    method=st.sampled_from(["GET", "PUT"]),
    key=keys,
    body=st.binary(max_size=200),
    token=text,
    moment=moments,
    port=st.sampled_from(["", ":8443"]),
    begin=st.none() | st.integers(0, 10**12),
)
def test_objects_are_signed_as_botocore_does(
    method: str, key: str, body: bytes, token: str, moment: float, port: str, begin: int | None
) -> None:
    headers = {"host": f"s3.eu-west-3.amazonaws.com{port}"}
    if begin is not None:
        headers["range"] = f"bytes={begin}-"
    path = f"/bucket/{quote(key)}"
    own = Credentials("AKID", "secret/+key", token)
    named = signed(method, path, headers, body, Scope("eu-west-3", "s3"), own, moment)
    assert named["authorization"] == botocores("s3", method, path, headers, body, token, moment)


@settings(max_examples=300, deadline=None)
@given(
    service=st.sampled_from(["dynamodb", "kinesis", "secretsmanager"]),
    body=st.binary(max_size=300),
    token=text,
    moment=moments,
    target=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
)
def test_what_is_asked_in_json_is_signed_as_botocore_does(
    service: str, body: bytes, token: str, moment: float, target: str
) -> None:
    headers = {"host": f"{service}.eu-west-3.amazonaws.com", "x-amz-target": target}
    headers["content-type"] = "application/x-amz-json-1.0"
    own = Credentials("AKID", "secret/+key", token)
    named = signed("POST", "/", headers, body, Scope("eu-west-3", service), own, moment)
    assert named["authorization"] == botocores(service, "POST", "/", headers, body, token, moment)
    assert named.get("x-amz-security-token", "") == token


def test_a_signature_says_nothing_of_the_secret() -> None:
    own = Credentials("AKID", "the-secret-itself", "the-token")
    assert "secret" not in repr(own) and "token" not in repr(own)
