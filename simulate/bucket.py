"""The bucket: the quarantine and the pointer."""

from __future__ import annotations

import json
from typing import Any

from simulate.table import refused, unanswered
from simulate.world import QUARANTINE_FAULTS, World

BUCKET = "bundles"


class Bucket:
    """The client that `functions.aws.quarantine` is handed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.objects: dict[str, Any] = {}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentType: str) -> dict[str, Any]:
        """Keep an object whole."""
        if Bucket != BUCKET:
            raise refused("NoSuchBucket", "PutObject")
        self._world.pause()
        fault = self._world.fault(QUARANTINE_FAULTS)
        if fault == "quarantine refuses":
            raise refused("SlowDown", "PutObject")
        stored = json.loads(Body)
        if self.objects.setdefault(Key, stored)["record"] != stored["record"]:
            self._world.wrong(f"{Key}: another record in the place of the first")
        self._world.note("kept", Key)
        if fault == "quarantine answer lost":
            raise unanswered(self._world)
        return {}
