"""This file knows how to phrase a refusal as Google would, so that its SDKs raise their natural class."""

from __future__ import annotations

from .dialect import Refusal
from .jsons import encoded
from .openai_errors import lava_member

_STATUSES = {
    # HTTP status → Google's own name of that error. A missing entry: FAILED_PRECONDITION.
    # https://cloud.google.com/apis/design/errors#handling_errors
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    429: "RESOURCE_EXHAUSTED",
    400: "INVALID_ARGUMENT",
}


def gemini_refusal(refusal: Refusal) -> bytes:
    status = _STATUSES.get(refusal.status, "FAILED_PRECONDITION")
    error = {"code": refusal.status, "message": refusal.message, "status": status}
    return encoded({"error": error, "lava": lava_member(refusal)})
