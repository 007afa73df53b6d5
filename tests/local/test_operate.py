"""Who an operator is: boto3 finds it in a profile, the functions' code looks at the environment alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from functions.aws.credentials import Source
from functions.aws.transport import region
from local.operate import name_credentials

NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
)


def test_a_profile_becomes_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "credentials"
    profile.write_text(
        "[shop]\naws_access_key_id = AKID\naws_secret_access_key = hidden\naws_session_token = token\n"
    )
    (tmp_path / "config").write_text("[profile shop]\nregion = eu-west-3\n")
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "shop")
    name_credentials()
    found = Source(os.environ).get()
    assert (found.access_key, found.secret_key, found.token) == ("AKID", "hidden", "token")
    assert region() == "eu-west-3"


def test_who_has_none_is_told_by_the_functions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*NAMES, "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name_credentials()
    assert not {name for name in NAMES if name in os.environ}
