"""AWS Signature Version 4, in a request's headers: who asks, for what, and when.

Steps and names are the AWS IAM User Guide's, "Create a signed AWS API request"; what S3 wants besides is in
its API reference, "Authenticating Requests: Using the Authorization Header". No request here has a query, and
only S3's have a path: it is signed as it is sent, where other services' would be encoded a second time.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from hashlib import sha256

from functions.aws.credentials import Credentials

ALGORITHM = "AWS4-HMAC-SHA256"


class Scope:
    """Where a signature holds: a service in a region."""

    def __init__(self, region: str, service: str) -> None:
        self.region, self.service = region, service


def signed(
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    scope: Scope,
    credentials: Credentials,
    now_s: float,
) -> dict[str, str]:
    """The headers, `host` among them, and those that sign them. `path` is encoded, names are lower case."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    hashed = sha256(body).hexdigest()
    named = {**headers, "x-amz-date": moment}
    if credentials.token:
        named["x-amz-security-token"] = credentials.token
    if scope.service == "s3":
        named["x-amz-content-sha256"] = hashed
    names = sorted(named)
    canonical = [method, path, ""]
    canonical += [f"{name}:{' '.join(named[name].split())}" for name in names]
    canonical += ["", ";".join(names), hashed]
    place = f"{moment[:8]}/{scope.region}/{scope.service}/aws4_request"
    digest = sha256("\n".join(canonical).encode()).hexdigest()
    key = f"AWS4{credentials.secret_key}".encode()
    for part in place.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"{ALGORITHM}\n{moment}\n{place}\n{digest}".encode(), "sha256").hex()
    named["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{place}, "
        f"SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return named
