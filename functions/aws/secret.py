"""The shop's secret: signing keys and the pseudonym key, from Secrets Manager.

To rotate a signing key: add the new one to `keys`, wait until every environment has read it (REFRESH_S), and
only then make it `current`; drop the old one when the last token it signed has expired. The pseudonym key
names every user row, so it stays for as long as the table does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from functions.aws.clients import client, unavailable
from functions.aws.errors import Failure
from functions.aws.telemetry import logger
from functions.core.errors import InvalidSettings, Unavailable, VitrineError
from functions.core.tokens import MIN_SECRET_BYTES, Keys

REFRESH_S = 300.0


@dataclass(frozen=True)
class ShopSecret:
    """Keys that sign tokens, and the key that turns user ids into user keys."""

    keys: Keys
    pseudonym: bytes = field(repr=False)


def secret_client() -> Any:
    """Asked once every few minutes."""
    return client("secretsmanager", connect_s=1.0, read_s=2.0, attempts=3)


def parse_secret(text: str) -> ShopSecret:
    """The secret in `{"current": kid, "keys": {kid: hex}, "pseudonym": hex}`; raises InvalidSettings."""
    try:
        data = json.loads(text)
        keys = {str(kid): bytes.fromhex(value) for kid, value in data["keys"].items()}
        secret = ShopSecret(Keys(keys, str(data["current"])), bytes.fromhex(data["pseudonym"]))
    except (AttributeError, KeyError, TypeError, ValueError, VitrineError) as error:
        # `from None`: the error that is behind this one may quote the secret
        raise InvalidSettings(
            f"secret: {type(error).__name__}; expected JSON with current, keys (hex) and pseudonym (hex)"
        ) from None
    if len(secret.pseudonym) < MIN_SECRET_BYTES:
        raise InvalidSettings(f"pseudonym of {len(secret.pseudonym)} bytes; expected {MIN_SECRET_BYTES}")
    return secret


class Secret:
    """The secret as last read; an old one is better than none when it cannot be read again."""

    def __init__(self, secrets_manager: Any, name: str) -> None:
        self._secrets_manager, self._name = secrets_manager, name
        self._value: ShopSecret | None = None

    def get(self) -> ShopSecret:
        """The secret, read now if it never was; raises Unavailable, InvalidSettings."""
        if self._value is None:
            self._value = self._read()
        return self._value

    def refresh(self) -> bool:
        """Read it anew; False, and a line in the log, where that failed."""
        try:
            self._value = self._read()
        except (Unavailable, InvalidSettings) as error:
            logger.warning("the secret cannot be read", extra={"error": str(error)})
            return False
        return True

    def _read(self) -> ShopSecret:
        try:
            text = self._secrets_manager.get_secret_value(SecretId=self._name)["SecretString"]
        except (Failure, KeyError) as error:
            raise unavailable(error, f"secret {self._name}") from error
        return parse_secret(text)
