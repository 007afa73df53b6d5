"""A shop's account in the emulator: what the template creates, and the bundles in their bucket."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from functions.core.errors import VitrineError
from local.template import Template

TABLE, STREAM, BUCKET, SECRET = "vitrine-rows", "vitrine-events", "vitrine-bundles", "vitrine-secret"
KEYS = "vitrine-keys"  # of the archive
DISCARDED = "vitrine-discarded"  # the queue that hears of batches nobody could process
DEADLINE_MS = "1000"  # an emulator on a busy laptop does not answer as DynamoDB does
REGION = "eu-central-1"
SHARDS = 2  # more than one, so that "in order per shard" means something; an on-demand stream would have four
POINTER = "pointer.json"


class NoAccount(VitrineError):
    """There is no local cloud to work on."""


class MissingPointer(VitrineError):
    """The folder holds no bundles that were published."""


def environment(endpoint: str) -> dict[str, str | None]:
    """The functions' environment in this account; None unsets what belongs to the caller's real account."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_PROFILE": None,
        "AWS_SESSION_TOKEN": None,
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",  # functions prepare when they are imported
        "VITRINE_TABLE": TABLE,
        "VITRINE_STREAM": STREAM,
        "VITRINE_BUCKET": BUCKET,
        "VITRINE_SECRET": SECRET,
        "VITRINE_KEYS": KEYS,
        "VITRINE_DEADLINE_MS": DEADLINE_MS,
    }


def client(service: str, endpoint: str) -> Any:
    """A boto3 client of the emulated account, whatever the caller's own settings are."""
    return boto3.session.Session().client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=Config(
            retries={"total_max_attempts": 3, "mode": "standard"},
            # over loopback, hashing 100 MB takes longer than sending it
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
            proxies={},
        ),
    )


def create(endpoint: str, template: Template, bundles: Path) -> dict[str, str | None]:
    """Create table, stream, bucket, secret and queue, upload the bundles; returns the functions' environment.

    Raises MissingPointer for a folder without a pointer, InvalidTemplate.
    """
    read_pointer(bundles)
    for table in (TABLE, KEYS):
        _create_table(client("dynamodb", endpoint), table, template.table())
    _create_stream(client("kinesis", endpoint))
    client("secretsmanager", endpoint).create_secret(Name=SECRET, SecretString=_new_secret())
    client("sqs", endpoint).create_queue(QueueName=DISCARDED)
    _upload(client("s3", endpoint), bundles)
    return environment(endpoint)


def write_account(path: Path, variables: Mapping[str, str | None]) -> None:
    """Where the running account is, for the commands that work on it."""
    path.write_text(json.dumps(variables, indent=1))


def enter_account(path: Path) -> None:
    """Work on the local cloud that runs, from here on; raises NoAccount where there is none."""
    try:
        variables = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise NoAccount(f"{path}: {error}; expected a local cloud that runs (`python -m local`)") from error
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def read_pointer(bundles: Path) -> dict[str, Any]:
    """The pointer of a folder of bundles; raises MissingPointer naming the file and what to do."""
    path = bundles / POINTER
    try:
        pointer = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MissingPointer(
            f"{path}: {error}; expected a folder of bundles, as `python -m export --out {bundles}` writes it"
        ) from error
    if not isinstance(pointer, dict) or not isinstance(pointer.get("champion"), str):
        raise MissingPointer(f'{path}: {str(pointer)[:100]}; expected {{"champion": "<bundle id>", …}}')
    return pointer


def _create_table(dynamodb: Any, name: str, properties: Mapping[str, Any]) -> None:
    dynamodb.create_table(
        TableName=name,
        AttributeDefinitions=properties["AttributeDefinitions"],
        KeySchema=properties["KeySchema"],
        BillingMode="PAY_PER_REQUEST",
    )
    expiry = properties.get("TimeToLiveSpecification")
    if expiry and name == TABLE:
        dynamodb.update_time_to_live(
            TableName=name,
            TimeToLiveSpecification={"AttributeName": expiry["AttributeName"], "Enabled": True},
        )


def _create_stream(kinesis: Any) -> None:
    kinesis.create_stream(StreamName=STREAM, ShardCount=SHARDS)
    kinesis.get_waiter("stream_exists").wait(StreamName=STREAM, WaiterConfig={"Delay": 1, "MaxAttempts": 20})


def _new_secret() -> str:
    return json.dumps(
        {"current": "local", "keys": {"local": secrets.token_hex(32)}, "pseudonym": secrets.token_hex(32)}
    )


def put_file(s3: Any, bundles: Path, path: Path) -> None:
    """One file of the folder of bundles into the bucket, in its place."""
    with path.open("rb") as body:
        s3.put_object(Bucket=BUCKET, Key=path.relative_to(bundles).as_posix(), Body=body)


def _upload(s3: Any, bundles: Path) -> None:
    """Upload the folder as it is: the bucket's layout is the folder's. The pointer goes last."""
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    files = sorted(path for path in bundles.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path == bundles / POINTER):
        put_file(s3, bundles, path)
