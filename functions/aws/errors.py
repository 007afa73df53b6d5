"""What may come of a call of a service, besides its answer.

Failure
├── NoCredentials  it was not asked: nobody says as whom
├── NoAnswer       nobody knows whether it was done: no connection, an answer cut short, one that is none
│   ├── TimedOut   the same, for want of time
│   └── Closed     the same, and nothing of an answer came
└── Refused        it answered that it does not do it: `code` is the service's own, `status` HTTP's
"""

from __future__ import annotations

THROTTLES = {
    "BandwidthLimitExceeded",
    "KMSThrottlingException",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
}
PASSING = {"RequestTimeout", "RequestTimeoutException"}  # codes, and states of HTTP, of what passes by itself
PASSING_STATES = {429, 500, 502, 503, 504}


class Failure(Exception):
    """The root: whatever a call of a service raises."""


class NoCredentials(Failure):
    """The environment does not say as whom to ask; names what is missing."""


class NoAnswer(Failure):
    """The service may have done it or not."""


class TimedOut(NoAnswer):
    """No connection, or no answer, in time."""


class Closed(NoAnswer):
    """Nothing of an answer came: a connection that was kept was dead before it was asked."""


class Refused(Failure):
    """The service's own answer that it does not do it; `date` is its clock's, "" where it says none."""

    def __init__(self, code: str, status: int, message: str = "", date: str = "") -> None:
        self.code, self.status, self.date = code, status, date
        super().__init__(f"{code} ({status}): {message}")

    @property
    def throttled(self) -> bool:
        """Whether it has too much to do."""
        return self.code in THROTTLES or self.status == 429

    @property
    def passing(self) -> bool:
        """Whether it may do it when asked again."""
        return self.throttled or self.code in PASSING or self.status in PASSING_STATES
