"""This file knows how to sign a carried record with the operator's key, and how to tell whether somebody else did."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

KEY_LEAST = 32
"""Characters of a key: 16 random bytes in hexadecimal."""
_SCHEME = "v1="
_PURPOSE = b"lava.record.1\0"
"""In front of what is signed, so that the key's signatures on other things mean nothing here."""


class Signer:
    """Signs with the first of its keys, and believes all of them: so a key is changed in two steps, receivers first.

    Raises ValueError for a key that is too short. Safe in any thread.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: str | Sequence[str]) -> None:
        given = keys.split(",") if isinstance(keys, str) else keys
        self._keys = tuple(key.strip().encode() for key in given)
        if not self._keys or any(len(key) < KEY_LEAST for key in self._keys):
            raise ValueError(f"a span key has at least {KEY_LEAST} characters; make one with: openssl rand -hex 32")

    def __repr__(self) -> str:
        return f"<Signer of {len(self._keys)} keys>"

    def sign(self, text: str) -> str:
        return _signed(self._keys[0], text)

    def verify(self, text: object, signature: object) -> bool:
        """Whether one of the keys signed exactly this text. Takes the same time for every wrong signature."""
        if not isinstance(text, str) or not isinstance(signature, str):
            return False
        given = signature.encode("utf-8", "replace")
        return any(hmac.compare_digest(_signed(key, text).encode(), given) for key in self._keys)


def _signed(key: bytes, text: str) -> str:
    return _SCHEME + hmac.new(key, _PURPOSE + text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()
