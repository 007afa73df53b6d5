"""A function as Lambda runs one instance of it: imported once, one event at a time, JSON in and out."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from functions.core.errors import VitrineError
from local.template import FunctionEntry

MAX_ANSWER_BYTES = 6 * 2**20
ACCOUNT, REGION = "123456789012", "eu-central-1"


class FunctionError(VitrineError):
    """The function raised, or returned what cannot be an answer; the log has its trace."""


class Context:
    """What a handler is given beside its event, as Lambda's Python runtime has it."""

    function_version = "$LATEST"
    identity = None
    client_context = None

    def __init__(self, entry: FunctionEntry) -> None:
        self.function_name = entry.name
        self.memory_limit_in_mb = str(entry.memory_mb)
        self.invoked_function_arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{entry.name}"
        self.aws_request_id = str(uuid.uuid4())
        self.log_group_name = f"/aws/lambda/{entry.name}"
        self.log_stream_name = "local"
        self._ends = time.monotonic() + entry.timeout_s

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the template's timeout. Nothing ends the function here when they are over."""
        return max(0, round(1000 * (self._ends - time.monotonic())))


class Function:
    """One instance. Its import raises what it raises; `invoke` raises FunctionError alone."""

    def __init__(self, entry: FunctionEntry) -> None:
        self.entry = entry
        module, _, name = entry.handler.rpartition(".")
        self._handler: Callable[[dict[str, Any], Context], object] = getattr(
            importlib.import_module(module), name
        )
        self._lock = threading.Lock()

    def invoke(self, event: dict[str, Any]) -> Any:
        """What the function answers, after a trip through JSON; events wait for their turn."""
        copy = json.loads(json.dumps(event))
        with self._lock:
            try:
                answer = json.dumps(self._handler(copy, Context(self.entry)), ensure_ascii=False)
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                raise FunctionError(f"{self.entry.name}: {type(error).__name__}: {error}") from error
        size = len(answer.encode("utf-8", "surrogatepass"))
        if size > MAX_ANSWER_BYTES:
            print(f"{self.entry.name}: answer of {size} bytes; expected {MAX_ANSWER_BYTES}", file=sys.stderr)
            raise FunctionError(f"{self.entry.name}: answer of {size} bytes; expected {MAX_ANSWER_BYTES}")
        return json.loads(answer)
