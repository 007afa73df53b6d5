"""AWS clients with time limits: the defaults wait for a minute, and try five times.

They are botocore's, which boto3's are too: importing boto3 costs a cold start 20 ms for nothing more.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from functions.core.errors import Throttled, Unavailable

THROTTLES = {
    "ProvisionedThroughputExceededException",
    "ThrottlingException",
    "Throttling",
    "ThrottledException",
    "RequestLimitExceeded",
    "LimitExceededException",
    "TooManyRequestsException",
    "KMSThrottlingException",
    "SlowDown",
}
Failure = (BotoCoreError, ClientError)


@cache
def session() -> Any:
    """One session for all clients: it loads the service models once."""
    return botocore.session.get_session()


def client(
    service: str, *, connect_s: float, read_s: float, attempts: int, connections: int = 10, **more: Any
) -> Any:
    """A client that gives up after `connect_s` and `read_s` seconds, `attempts` times in all."""
    config = Config(
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=connections,
        tcp_keepalive=True,
        **more,
    )
    return session().create_client(service, config=config)


def error_code(error: Exception) -> str:
    """The service's own error code; "" where it did not answer."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""


def unavailable(error: Exception, what: str) -> Unavailable:
    """The failure of a call as our own error, throttles told from the rest; `what` was wanted of whom."""
    kind = Throttled if error_code(error) in THROTTLES else Unavailable
    return kind(f"{what}: {type(error).__name__}: {error}")
