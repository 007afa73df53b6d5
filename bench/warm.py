"""One warm environment of the handlers in this process: a made-up shop, tables that answer in 0 ms."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from bench.shop import ENVIRONMENT, KEYS, Account, make_bundle
from functions.core.tokens import sign

Json = dict[str, object]
CREDENTIAL_S = 86_400


class Context:
    """What Lambda gives a handler beside its event."""

    function_name = "bench"
    memory_limit_in_mb = "1769"
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:bench"
    aws_request_id = "00000000-0000-0000-0000-000000000000"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds left."""
        return 60_000


@contextmanager
def warm_shop(items: int) -> Iterator[Path]:
    """The folder of bundles of a shop with so many products, which the handlers read meanwhile."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, ENVIRONMENT):
        with redirect_stdout(sys.stderr):
            bundles = make_bundle(Path(folder), items)
        scratch = Path(folder) / "tmp"
        scratch.mkdir()
        account = Account(bundles)
        with (
            patch("functions.aws.clients.session", lambda: account),
            patch("tempfile.tempdir", str(scratch)),
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),  # the logs' and the metrics' lines
        ):
            yield bundles


def credential(user: str) -> str:
    """The Authorization header of a user."""
    return "Bearer " + sign({"sub": user, "exp": int(time.time()) + CREDENTIAL_S}, KEYS)


def http_event(path: str, body: object, authorization: str) -> Json:
    """A POST as API Gateway hands it over (payload 2.0)."""
    http = {"method": "POST", "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"}
    return {
        "version": "2.0",
        "routeKey": f"POST {path}",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "authorization": authorization},
        "requestContext": {"http": http, "requestId": "id", "stage": "$default", "timeEpoch": 0},
        "isBase64Encoded": False,
        "body": json.dumps(body),
    }
