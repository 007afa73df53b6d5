"""Who an operator is: boto3 finds it in a profile, the functions' code looks at the environment alone."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import boto3
import pytest

from functions.aws.credentials import Source
from functions.aws.transport import region
from local.operate import keys, name_credentials
from tests.functions.scripted import Scripted, answer

NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """boto3 knows no credentials and no session; what a test names is taken back after it."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name in (*NAMES, "AWS_PROFILE"):
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def test_credentials_that_end_are_renewed_while_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of the profile vends them, as single sign-on and roles do: some that end within minutes."""
    vend = tmp_path / "vend.py"
    vend.write_text(
        "import datetime, json, pathlib, sys\n"
        "count = pathlib.Path(sys.argv[1])\n"
        "count.write_text(count.read_text() + 'x' if count.exists() else 'x')\n"
        "ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'AKID{len(count.read_text())}',"
        " 'SecretAccessKey': 'hidden', 'SessionToken': 'token', 'Expiration': ends.isoformat()}))\n"
    )
    (tmp_path / "config").write_text(
        f"[profile shop]\nregion = eu-west-3\ncredential_process = {sys.executable} {vend} {tmp_path / 'n'}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "shop")
    name_credentials()
    named = os.environ["AWS_ACCESS_KEY_ID"]
    with Scripted(answer(200, b"{}"), answer(200, b"{}")) as server:
        dynamodb = boto3.client("dynamodb", endpoint_url=server.url)
        for _ in range(2):
            dynamodb.list_tables()
        signers = [re.search(r"AKID\d+", r.headers["authorization"]) for r in server.requests]
    numbers = [int(named[4:]), *(int(found[0][4:]) for found in signers if found)]
    assert len(numbers) == 3 and numbers[0] < numbers[1] < numbers[2]


def test_a_profile_becomes_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text(
        "[shop]\naws_access_key_id = AKID\naws_secret_access_key = hidden\naws_session_token = token\n"
    )
    (tmp_path / "config").write_text("[profile shop]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_PROFILE", "shop")
    name_credentials()
    found = Source(os.environ).get()
    assert (found.access_key, found.secret_key, found.token) == ("AKID", "hidden", "token")
    assert region() == "eu-west-3"


def test_who_has_none_is_told_by_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name_credentials()
    assert not {name for name in NAMES if name in os.environ}


def test_a_profile_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "another shop")
    assert keys(["--aws", "--out", str(tmp_path / "keys.jsonl")]) == 1
    assert re.fullmatch(r"error: .*another shop.*\n", capsys.readouterr().err)
