"""What the functions say of themselves: structured logs, and metrics in CloudWatch's embedded format."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

logger = Logger(service="vitrine")


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
    metrics = EphemeralMetrics(namespace="Vitrine", service="vitrine")  # the other kind is shared by threads
    for name, count in counts.items():
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=count)
    for name, duration in (milliseconds or {}).items():
        metrics.add_metric(name=name, unit=MetricUnit.Milliseconds, value=duration)
    for name, value in (dimensions or {}).items():
        metrics.add_dimension(name=name, value=value)
    for name, value in (about or {}).items():
        metrics.add_metadata(name, value)
    metrics.flush_metrics()
