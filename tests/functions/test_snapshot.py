"""After a snapshot is restored, nothing that it froze is relied on but the bundle that the pointer names."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import boto3
import pytest

from functions import score
from functions.aws.clients import session
from functions.core.tokens import Keys, sign
from tests.functions.account import REGION, SECRET, STORED, Account, Context, credential, http, secret_string

CHAMPION = json.loads((STORED / "pointer.json").read_text())["champion"]


def ask(bearer: str) -> dict[str, Any]:
    return score.handler(http("POST", "/v1/banners", {"slot": "cart"}, bearer), Context())


def clients(own: score.Scorer) -> list[object]:
    return [own.rows._dynamodb, own.secret._secrets_manager, own.bundles._s3]


def test_clients_secret_and_pointer_are_fresh_and_the_bundle_is_kept(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(credential("ann"))["statusCode"] == 200
    own = score.scorer()
    frozen, bundle, readers = clients(own), own.bundles.current, own.readers
    frozen_session = session()
    frozen_pools = {id(client._transport._pool) for client in frozen}  # type: ignore[attr-defined]
    rotated = Keys({"k2": b"2" * 32}, "k2")
    said = json.loads(secret_string()) | {"current": "k2", "keys": {"k2": (b"2" * 32).hex()}}
    boto3.client("secretsmanager", region_name=REGION).put_secret_value(
        SecretId=SECRET, SecretString=json.dumps(said)
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "after-the-restore")
    own.restored()
    assert score.scorer() is own
    assert not {id(client) for client in frozen} & {id(client) for client in clients(own)}
    transports = [client._transport for client in clients(own)]  # type: ignore[attr-defined]
    assert {transport._source for transport in transports} == {session().source} != {frozen_session.source}
    assert session().source.get().access_key == "after-the-restore"
    assert not {id(transport._pool) for transport in transports} & frozen_pools
    assert own.bundles.current is bundle and own.readers is not readers
    assert ask(credential("ann"))["statusCode"] == 401  # its key was taken away while the snapshot slept
    bearer = "Bearer " + sign({"sub": "ann", "exp": 4_000_000_000}, rotated)
    answer = json.loads(ask(bearer)["body"])
    assert (answer["tier"], answer["versions"]["bundle"]) == ("popular", CHAMPION)


def test_a_pointer_that_moved_meanwhile_is_followed_before_the_first_answer(account: Account) -> None:
    assert ask(credential("ann"))["statusCode"] == 200
    own = score.scorer()
    own.bundles.current = None  # as in a snapshot that was taken before anything was published
    own.restored()
    assert own.bundles.current is not None and own.bundles.current.id == CHAMPION


def test_the_hook_is_registered_where_lambda_takes_snapshots(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Any] = []
    runtime = types.ModuleType("snapshot_restore_py")
    runtime.register_after_restore = registered.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", runtime)
    monkeypatch.setenv("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start")
    spec = importlib.util.spec_from_file_location("score_in_a_snapshot", Path(score.__file__))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "score_in_a_snapshot", module)
    spec.loader.exec_module(module)
    assert registered == [module.scorer().restored]
    module.scorer().idle(10)
