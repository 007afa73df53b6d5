"""Records that nobody can fold, kept whole in the bucket until somebody has looked at them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from functions.aws.clients import unavailable
from functions.aws.errors import Failure


class Quarantine:
    """`quarantine/{shard}/{sequence}.json`; the same record again overwrites itself."""

    def __init__(self, s3: Any, bucket: str) -> None:
        self._s3, self._bucket = s3, bucket

    def put(self, shard: str, sequence: int, record: Mapping[str, Any], reason: str) -> None:
        """Keep the whole record and the reason; raises Unavailable, and then it must not be acknowledged."""
        body = json.dumps({"reason": reason[:1000], "record": record}).encode()
        key = f"quarantine/{shard}/{sequence}.json"
        try:
            self._s3.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType="application/json")
        except Failure as error:
            raise unavailable(error, f"{key} into {self._bucket}") from error
