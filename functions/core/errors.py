"""Every error that Vitrine raises on purpose.

VitrineError
├── InvalidRequest   a caller's field has a wrong value            → 400
│   ├── InvalidEvent the same, in a behaviour event
│   └── TooLarge     the whole request is too big                  → 413
├── InvalidToken     a credential or decision token is not ours    → 401
├── CorruptRow       a stored user row can't be read
├── CorruptBundle    a bundle's bytes are not what its manifest says
├── InvalidSettings  the environment lacks what a function needs
├── VersionConflict  a row was written by somebody else meanwhile
└── Unavailable      a service did not answer in time              → 503
    └── Throttled    it did: not now
"""


class VitrineError(Exception):
    """The root: whatever is raised on purpose."""


class InvalidRequest(VitrineError, ValueError):
    """A field that a caller sent: its name, its value and what was expected."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field, self.value, self.expected = field, value, expected
        super().__init__(f"{field}: {str(value)[:100]!r}; expected {expected}")


class InvalidEvent(InvalidRequest):
    """A field of a behaviour event."""


class TooLarge(InvalidRequest):
    """A request of more bytes than are read."""


class InvalidToken(VitrineError):
    """A token that we did not sign, or that no longer holds."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"token refused: {reason}")


class CorruptRow(VitrineError):
    """A stored user row whose bytes don't have the stated lengths."""


class CorruptBundle(VitrineError):
    """A bundle that must not be served; names the file and what differs."""


class InvalidSettings(VitrineError):
    """An environment variable that is missing or cannot be; names it."""


class VersionConflict(VitrineError):
    """A user row that is no longer at the version that was read."""


class Unavailable(VitrineError):
    """A service that could not be reached, did not answer in time, or answered with an error."""


class Throttled(Unavailable):
    """A service that refuses for now, because it has too much to do."""
