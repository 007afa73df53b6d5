"""Which bundle a user is served from: the champion, or for a share of the users the challenger."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from functions.core.errors import CorruptBundle

ID = re.compile(r"[0-9a-f]{32}")
CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Pointer:
    """`pointer.json`: two bundles, and the share of users that get the second. Raises CorruptBundle."""

    champion: str
    challenger: str | None = None
    share: float = 0.0
    salt: str = ""

    def __post_init__(self) -> None:
        names = [self.champion] if self.challenger is None else [self.champion, self.challenger]
        for name in names:
            if not isinstance(name, str) or not ID.fullmatch(name):
                raise CorruptBundle(f"bundle {str(name)[:100]!r}; expected 32 hex digits (pointer)")
        share = self.share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise CorruptBundle(f"share {str(share)[:100]!r}; expected a number from 0 to 1 (pointer)")
        if not isinstance(self.salt, str):
            raise CorruptBundle(f"salt {str(self.salt)[:100]!r}; expected text (pointer)")

    def arm(self, user_key: str) -> str:
        """A user's arm: the same for as long as the salt is; a larger share only adds users to the second."""
        if self.challenger is None or not self.share:
            return CHAMPION
        digest = hashlib.blake2b(f"{self.salt}|{user_key}".encode(), digest_size=8).digest()
        return CHALLENGER if int.from_bytes(digest, "big") < self.share * 2**64 else CHAMPION


def parse_pointer(data: bytes, place: str) -> Pointer:
    """The pointer in `data`; raises CorruptBundle naming the field and `place`."""
    try:
        read = json.loads(data)
        given = {name: read[name] for name in (CHALLENGER, "share", "salt") if name in read}
        return Pointer(champion=read[CHAMPION], **given)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptBundle(f"{place}: {error!r}; expected a JSON object with a champion") from error
    except CorruptBundle as error:
        raise CorruptBundle(f"{place}: {error}") from error
