"""This file knows how to sign webhooks as Standard Webhooks wants it: "v1," and an HMAC-SHA256 of id, time and body.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md#signature-scheme
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac


class Secrets:
    """Signs with each of its secrets, so that a receiver may believe the old one or the new one while it is changed.

    "whsec_" and the base64 of 24 to 64 random bytes; several with commas between. Raises ValueError.
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: str) -> None:
        self._keys = tuple(_key(one.strip()) for one in secrets.split(","))

    def __repr__(self) -> str:
        return f"<Secrets: {len(self._keys)}>"

    def sign(self, name: str, timestamp: int, body: bytes) -> str:
        """The header webhook-signature."""
        signed = f"{name}.{timestamp}.".encode() + body
        macs = (hmac.new(key, signed, hashlib.sha256).digest() for key in self._keys)
        return " ".join("v1," + base64.b64encode(mac).decode() for mac in macs)


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError(
            'a webhook secret is "whsec_" and the base64 of 24 to 64 random bytes; make one with: '
            'echo "whsec_$(openssl rand -base64 32)"'
        )
    return key
