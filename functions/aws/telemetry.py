"""What the functions say of themselves: structured logs, and metrics in CloudWatch's embedded format.

Both are lines of JSON on the standard output, as Powertools for AWS Lambda writes them; its import is a
quarter of a cold start.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping

SERVICE, NAMESPACE = "vitrine", "Vitrine"
OF_EVERY_RECORD = set(vars(logging.makeLogRecord({})))


class Lines(logging.Handler):
    """One line of JSON for each record, what was given as `extra` beside the message."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it; a line that cannot be written is lost, and the request goes on."""
        try:
            _say(self._line(record))
        except Exception:
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> dict[str, object]:
        line: dict[str, object] = {
            "level": record.levelname,
            "location": f"{record.module}.{record.funcName}:{record.lineno}",
            "message": record.getMessage(),
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "service": SERVICE,
        }
        line |= {name: value for name, value in vars(record).items() if name not in OF_EVERY_RECORD}
        if record.exc_info and record.exc_info[0]:
            line["exception_name"] = record.exc_info[0].__name__
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return line


def _logger() -> logging.Logger:
    made = logging.getLogger(SERVICE)
    made.setLevel(logging.INFO)
    made.handlers = [Lines()]
    made.propagate = False  # the runtime has a handler of its own, which would tell all once more
    return made


logger = _logger()


def emit(
    counts: Mapping[str, int],
    milliseconds: Mapping[str, float] | None = None,
    dimensions: Mapping[str, str] | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write one line of metrics: counts and durations under these dimensions; `about` can be searched for.

    None where all logging is switched off (`logging.disable`): a million simulated histories would write a
    billion lines.
    """
    if not logging.getLogger().isEnabledFor(logging.CRITICAL):
        return
    durations, under = milliseconds or {}, {"service": SERVICE, **(dimensions or {})}
    units = [{"Name": name, "Unit": "Count"} for name in counts]
    units += [{"Name": name, "Unit": "Milliseconds"} for name in durations]
    stated = {"Namespace": NAMESPACE, "Dimensions": [list(under)], "Metrics": units}
    told = {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [stated]}
    values = {name: [value] for name, value in {**counts, **durations}.items()}
    _say({"_aws": told, **under, **(about or {}), **values})


def _say(line: Mapping[str, object]) -> None:
    # in one piece, since other threads write too; what JSON does not have is told by its repr
    sys.stdout.write(json.dumps(line, default=repr) + "\n")
    sys.stdout.flush()
