"""Signed tokens: JWS compact serialization, HS256 (RFC 7515, RFC 7518 §3.2), and the decision inside one."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from functions.core.errors import InvalidToken, VitrineError

MAX_TOKEN_CHARS = 4096
MIN_SECRET_BYTES = 32  # RFC 7518 §3.2: a key at least as long as the hash
DECISION = "decision"


@dataclass(frozen=True)
class Keys:
    """Secrets by key id, and the id that signs. To rotate: add a key, make it current, later drop the old."""

    secrets: Mapping[str, bytes] = field(repr=False)
    current: str

    def __post_init__(self) -> None:
        if self.current not in self.secrets:
            raise VitrineError(f"current key {self.current!r}; expected one of {sorted(self.secrets)} (keys)")
        for kid, secret in self.secrets.items():
            if len(secret) < MIN_SECRET_BYTES:
                raise VitrineError(
                    f"secret of {len(secret)} bytes; expected at least {MIN_SECRET_BYTES} (key {kid!r})"
                )


def sign(claims: Mapping[str, Any], keys: Keys) -> str:
    """Sign the claims with the current key; raises InvalidToken for what `verify` would call too long."""
    header = {"alg": "HS256", "kid": keys.current, "typ": "JWT"}
    signed = f"{_encode(_dump(header))}.{_encode(_dump(claims))}"
    token = f"{signed}.{_encode(_mac(keys.secrets[keys.current], signed))}"
    _require_length(token)
    return token


def verify(token: str, keys: Keys, now_s: float) -> dict[str, Any]:
    """The claims of a genuine, unexpired token; raises InvalidToken.

    `exp` is required, and a token is over at `exp` (RFC 7519 §4.1.4: "on or after").
    """
    _require_length(token)
    parts = token.split(".")
    if len(parts) != 3:
        raise InvalidToken(f"malformed: {len(parts)} parts; expected 3, separated by dots")
    secret = _secret(_load(parts[0], "header"), keys)
    if not hmac.compare_digest(_mac(secret, f"{parts[0]}.{parts[1]}"), _decode(parts[2], "signature")):
        raise InvalidToken("bad signature")
    claims = _load(parts[1], "claims")
    _require_unexpired(claims.get("exp"), now_s)
    return claims


def _require_length(token: str) -> None:
    if len(token) > MAX_TOKEN_CHARS:
        raise InvalidToken(f"too long: {len(token)} characters; expected at most {MAX_TOKEN_CHARS}")


def _secret(header: dict[str, Any], keys: Keys) -> bytes:
    if header.get("alg") != "HS256":
        raise InvalidToken(f"alg {header.get('alg')!r}; expected 'HS256'")
    if "crit" in header:  # RFC 7515 §4.1.11: an extension that is not understood must be refused
        raise InvalidToken(f"crit {header['crit']!r}; expected no critical extensions")
    kid = header.get("kid")
    if not isinstance(kid, str) or kid not in keys.secrets:
        raise InvalidToken(f"unknown kid {kid!r}")
    return keys.secrets[kid]


def _require_unexpired(exp: object, now_s: float) -> None:
    if isinstance(exp, bool) or not isinstance(exp, int | float) or not abs(exp) <= sys.float_info.max:
        raise InvalidToken(f"exp {exp!r}; expected seconds since 1970")
    if now_s >= exp:
        raise InvalidToken(f"expired at {exp}; it is {now_s}")


def _mac(secret: bytes, signed: str) -> bytes:
    return hmac.new(secret, signed.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _load(part: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(_decode(part, place))
    except (ValueError, RecursionError) as error:
        raise InvalidToken(f"malformed {place}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidToken(f"malformed {place}: {type(value).__name__}; expected a JSON object")
    return value


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(part: str, place: str) -> bytes:
    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidToken(f"malformed {place}: not base64url") from error
    if _encode(data) != part:  # spare bits of the last character: one token, one spelling
        raise InvalidToken(f"malformed {place}: not canonical base64url")
    return data


class Decision(NamedTuple):
    """Why one banner was shown: enough to attribute a click, replay the choice and evaluate it off-policy."""

    user_key: str
    slot: str
    item_id: str
    creative: str
    position: int
    arm: str
    policy: str
    propensity: float  # of this item at this position, given the items above it
    bundle: str
    row_version: int
    expires_s: int
    device: str = ""  # of the request; "": it named none

    def to_claims(self) -> dict[str, Any]:
        """Claims for `sign`; without a `sub`, so that a decision never passes for a visitor's credential."""
        claims = self._asdict()
        claims["exp"] = claims.pop("expires_s")
        return {"kind": DECISION, **claims}

    @classmethod
    def from_claims(cls, claims: Mapping[str, Any]) -> Decision:
        """The decision in verified claims; raises InvalidToken for any other kind of token."""
        if claims.get("kind") != DECISION:
            raise InvalidToken(f"kind {claims.get('kind')!r}; expected {DECISION!r}")
        return cls(
            **{
                name: _text(claims, name)
                for name in ("user_key", "slot", "item_id", "creative", "arm", "policy")
            },
            bundle=_text(claims, "bundle"),
            position=_count(claims, "position"),
            row_version=_count(claims, "row_version"),
            propensity=_propensity(claims.get("propensity")),
            expires_s=_count(claims, "exp"),
            device=_text({"device": "", **claims}, "device"),
        )


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str):
        raise InvalidToken(f"{name} {value!r}; expected text (decision)")
    return value


def _count(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidToken(f"{name} {value!r}; expected an integer >= 0 (decision)")
    return value


def _propensity(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidToken(f"propensity {value!r}; expected a number in (0, 1] (decision)")
    return float(value)
