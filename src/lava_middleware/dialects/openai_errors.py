"""This file knows how to phrase a refusal as OpenAI would, so that its SDKs raise their natural class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dialect import Refusal
from .jsons import encoded

_KINDS = {
    # status → (type, code) of OpenAI's own error of that kind. A missing entry: invalid_request_error with our code.
    # Frameworks recognise "insufficient_quota" and do not retry it.
    402: ("insufficient_quota", "insufficient_quota"),
    429: ("rate_limit_exceeded", "rate_limit_exceeded"),
    403: ("permission_denied", "permission_denied"),
}


def openai_refusal(refusal: Refusal) -> bytes:
    kind, code = _KINDS.get(refusal.status, ("invalid_request_error", refusal.code))
    error = {"message": refusal.message, "type": kind, "param": None, "code": code}
    return encoded({"error": error, "lava": lava_member(refusal)})


_ERROR_SIGNS = ("error", "detail", "message")
"""Where a body that has no answer in it says why: at OpenAI and most hosts, at servers built on FastAPI, at Mistral."""


def is_error(body: Mapping[str, Any]) -> bool:
    """Whether a body says why it is no answer, in one of the shapes that OpenAI's followers use."""
    return any(body.get(sign) for sign in _ERROR_SIGNS)


def lava_member(refusal: Refusal) -> dict[str, object]:
    """The machine-readable reason that rides on refusals and on the last event of a stream that was cut."""
    member: dict[str, object] = {"code": refusal.code, "message": refusal.message, **refusal.details}
    if refusal.retry_after_s is not None:
        member["retry_after_s"] = refusal.retry_after_s
    return member
