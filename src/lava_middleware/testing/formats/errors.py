"""This file knows how each provider phrases an error."""

from __future__ import annotations

from typing import Any

from ..script import Script
from .wire import Stamp

# status -> (type, code). A missing entry means the nearest of 400 and 500.
_OPENAI: dict[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_quota"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "unknown_url"),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", None),
    503: ("server_error", "overloaded"),
}
# https://docs.claude.com/en/api/errors
_ANTHROPIC: dict[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("authentication_error", None),
    402: ("billing_error", None),
    403: ("permission_error", None),
    404: ("not_found_error", None),
    413: ("request_too_large", None),
    429: ("rate_limit_error", None),
    500: ("api_error", None),
    504: ("timeout_error", None),
    529: ("overloaded_error", None),
}
_GOOGLE = {
    # status -> Google's name of it. A missing entry means the nearest of 400 and 500.
    # https://ai.google.dev/gemini-api/docs/troubleshooting
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_MESSAGES = {
    401: "Incorrect API key provided.",
    404: "Unknown request URL.",
    429: "Rate limit reached.",
    500: "The server had an error while processing your request.",
    503: "The service is temporarily overloaded.",
    529: "Overloaded",
}


def body(flavour: str, status: int, script: Script, stamp: Stamp, param: str | None = None) -> dict[str, Any]:
    inner = fault(flavour, status, script, param)
    if flavour == "anthropic":
        return {"type": "error", "error": inner, "request_id": "req_011" + stamp.id("request", 21)}
    if flavour == "mistral":
        return {"object": "error", **inner}
    return {"error": inner}


def fault(flavour: str, status: int, script: Script, param: str | None = None) -> dict[str, Any]:
    """The error object itself, as it also stands inside a stream."""
    table = _ANTHROPIC if flavour == "anthropic" else _OPENAI
    kind, code = table.get(status) or table[400 if status < 500 else 500]
    kind, code = script.error_type or kind, script.error_code or code
    message = script.error_message or _MESSAGES.get(status, f"The request failed with status {status}.")
    if flavour == "anthropic":
        return {"type": kind, "message": message}
    if flavour == "gemini":
        status_name = _GOOGLE.get(status) or _GOOGLE[400 if status < 500 else 500]
        return {"code": status, "message": message, "status": script.error_type or status_name}
    if flavour == "azure":
        return {"code": code or str(status), "message": message}
    if flavour == "groq":
        return {"message": message, "type": kind, **({"code": code} if code else {})}
    return {"message": message, "type": kind, "param": param, "code": code}
