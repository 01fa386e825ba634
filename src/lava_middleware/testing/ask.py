"""This file knows how to read a request as the provider would: what is asked, and how many tokens that is.

Input tokens: 3 for the answer to come, 4 a message, 85 an image, sound or file, and the tokens of every text, of tool
calls and results, and of the declared tools and output formats as compact JSON. Embeddings count their texts only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .tokens import count

_ANSWER, _MESSAGE, _MEDIA = 3, 4, 85

# The members of messages and parts that a model reads; others are ids, roles and types.
_READ = (
    "content",
    "parts",
    "text",
    "name",
    "arguments",
    "input",
    "output",
    "thinking",
    "refusal",
    "function",
    "tool_calls",
)
_MEDIA_TYPES = frozenset(
    {"image", "image_url", "input_image", "audio", "input_audio", "document", "file", "input_file", "video_url"}
)
# OpenAI refuses the older name of the cap for its reasoning models.
_REASONING_MODEL = re.compile(r"o\d|gpt-5")


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, read whole."""

    method: str
    target: str
    """Path and query."""
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks of the model."""

    operation: str
    flavour: str
    """Whose dialect of it: "openai", "azure", "groq", "mistral", "together", "anthropic", "gemini"."""
    model: str | None = None
    stream: bool = False
    array: bool = False
    """The stream is to be one JSON array that grows (Gemini's, without `alt=sse`)."""
    cap: int | None = None
    choices: int = 1
    asks_usage: bool = False
    input_tokens: int = 0
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    fault: str | None = None
    """Why the provider would answer 400."""
    fault_param: str | None = None


_GEMINI = r"/v1[a-z0-9]*/models/(?P<model>[^/:]+)"
_PATHS = (
    (_GEMINI + ":generateContent", "generateContent", "gemini"),
    (_GEMINI + ":streamGenerateContent", "generateContent", "gemini"),
    (_GEMINI + ":(?:embedContent|batchEmbedContents)", "embedContent", "gemini"),
    (_GEMINI + ":countTokens", "count_tokens", "gemini"),
    (r"(?:/v1)?/chat/completions", "chat.completions", "openai"),
    (r"(?:/v1)?/responses", "responses", "openai"),
    (r"(?:/v1)?/responses/input_tokens", "count_tokens", "openai"),
    (r"(?:/v1)?/embeddings", "embeddings", "openai"),
    (r"(?:/v1)?/models(?:/(?P<model>[^/]+))?", "models", "openai"),
    (r"(?:/anthropic)?/v1/messages", "messages", "anthropic"),
    (r"(?:/anthropic)?/v1/messages/count_tokens", "count_tokens", "anthropic"),
    (r"/openai/deployments/(?P<model>[^/]+)/chat/completions", "chat.completions", "azure"),
    (r"/openai/deployments/(?P<model>[^/]+)/embeddings", "embeddings", "azure"),
    (r"/openai(?:/v1)?/responses", "responses", "azure"),
    (r"/openai/v1/chat/completions", "chat.completions", "groq"),
    (r"/openai/v1/embeddings", "embeddings", "groq"),
    (r"/openai/v1/models(?:/(?P<model>[^/]+))?", "models", "groq"),
    (r"/v1beta/models(?:/(?P<model>[^/:]+))?", "models", "gemini"),
)
_ROUTES = tuple((re.compile(path), operation, flavour) for path, operation, flavour in _PATHS)
EMBEDDINGS = frozenset({"embeddings", "embedContent"})
GENERATIONS = EMBEDDINGS | {"chat.completions", "responses", "messages", "generateContent"}
"""The operations that scripts are for."""


def read(call: Call) -> Ask:
    """What the request asks. Never raises: `fault` says what is wrong with it."""
    operation, flavour, path_model = _route(call)
    if operation not in GENERATIONS and operation != "count_tokens":
        return Ask(operation, flavour, path_model)
    try:
        body = json.loads(call.body)
    except (ValueError, RecursionError):
        return Ask(operation, flavour, path_model, fault="We could not parse the JSON body of your request.")
    if not isinstance(body, dict):
        return Ask(operation, flavour, path_model, fault="The request body must be a JSON object.")
    return _asked(operation, flavour, body, path_model, call)


def _route(call: Call) -> tuple[str, str, str | None]:
    for pattern, operation, flavour in _ROUTES:
        if found := pattern.fullmatch(call.path):
            return operation, _flavour(call, operation, flavour), found.groupdict().get("model")
    return "unknown", "anthropic" if "anthropic-version" in call.headers else "openai", None


def _flavour(call: Call, operation: str, flavour: str) -> str:
    """Azure's newer paths are Groq's; Anthropic's and Gemini's lists of models, and Mistral's and Together's paths, are
    OpenAI's: the headers tell them apart."""
    agent = call.headers.get("user-agent", "").lower()
    if flavour == "openai" and agent.startswith("mistral-client"):
        return "mistral"
    if flavour == "openai" and "together/" in agent:
        return "together"
    if flavour == "groq" and "api-key" in call.headers:
        return "azure"
    if operation == "models" and "anthropic-version" in call.headers:
        return "anthropic"
    if operation == "models" and "x-goog-api-key" in call.headers:
        return "gemini"
    return flavour


def _asked(operation: str, flavour: str, body: dict[str, Any], path_model: str | None, call: Call) -> Ask:
    model = body.get("model") or path_model
    stream = body.get("stream") is True or ":streamGenerateContent" in call.path
    options = body.get("stream_options")
    fault, param = _fault(operation, flavour, body, model, stream)
    return Ask(
        operation=operation,
        flavour=flavour,
        model=model if isinstance(model, str) else None,
        stream=stream,
        array=stream and flavour == "gemini" and "alt=sse" not in call.target,
        cap=_cap(operation, body),
        choices=_choices(_config(body).get("candidateCount") if flavour == "gemini" else body.get("n")),
        asks_usage=isinstance(options, dict) and options.get("include_usage") is True,
        input_tokens=_input_tokens(operation, body, model if isinstance(model, str) else None),
        body=body,
        fault=fault,
        fault_param=param,
    )


def _config(body: Mapping[str, Any]) -> Mapping[str, Any]:
    config = body.get("generationConfig")
    return config if isinstance(config, dict) else {}


def _choices(n: object) -> int:
    return n if isinstance(n, int) and 1 <= n <= 128 else 1


_CAPS = {
    "chat.completions": ("max_completion_tokens", "max_tokens"),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
    "generateContent": ("maxOutputTokens",),
}


def _cap(operation: str, body: Mapping[str, Any]) -> int | None:
    body = _config(body) if operation == "generateContent" else body
    caps = [body[name] for name in _CAPS.get(operation, ()) if isinstance(body.get(name), int)]
    return caps[0] if caps else None


_INPUT = {
    "responses": "input",
    "embeddings": "input",
    "generateContent": "contents",
}  # A missing entry means "messages".


def _fault(
    operation: str, flavour: str, body: Mapping[str, Any], model: object, stream: bool
) -> tuple[str | None, str | None]:
    """(message, parameter) of the 400 that the real provider gives; what it lets pass, passes."""
    needed = _INPUT.get(operation, "messages")
    if operation in ("count_tokens", "embedContent"):
        return None, None
    if not isinstance(model, str):
        return "you must provide a model parameter", "model"
    if needed not in body and not (operation == "responses" and "prompt" in body):
        return f"Missing required parameter: '{needed}'.", needed
    if needed == "messages" and not isinstance(body["messages"], list):
        return "Invalid type for 'messages': expected an array of objects.", "messages"
    if operation == "messages" and not isinstance(body.get("max_tokens"), int):
        return "max_tokens: Field required", "max_tokens"
    if operation == "chat.completions":
        return _chat_fault(flavour, body, model, stream)
    cap = body.get("max_output_tokens")
    if operation == "responses" and isinstance(cap, int) and cap < 16:
        return (
            f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got {cap} instead.",
            "max_output_tokens",
        )
    return None, None


def _chat_fault(flavour: str, body: Mapping[str, Any], model: str, stream: bool) -> tuple[str | None, str | None]:
    if body.get("stream_options") is not None and flavour == "mistral":
        return "Extra inputs are not permitted: stream_options", "stream_options"
    if body.get("stream_options") is not None and not stream:
        return "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
    if body.get("max_tokens") is None:
        return None, None
    if body.get("max_completion_tokens") is not None:
        return "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.", "max_tokens"
    if flavour not in ("groq", "mistral", "together") and _REASONING_MODEL.match(model):
        return (
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "max_tokens",
        )
    return None, None


def _input_tokens(operation: str, body: Mapping[str, Any], model: str | None) -> int:
    if operation == "embeddings":
        return sum(embedded_tokens(item) for item in embedded(body.get("input")))
    if operation == "embedContent":
        asked = [one.get("content") for one in body.get("requests", [body]) if isinstance(one, dict)]
        return sum(_weight(item, model) for item in _read(asked))
    messages = body.get("messages", body.get("input", body.get("contents")))
    listed = messages if isinstance(messages, list) else [messages]
    declared = [body[name] for name in ("tools", "functions", "response_format", "text") if body.get(name)]
    told = [body[name] for name in ("system", "instructions", "systemInstruction") if body.get(name)]
    return (
        _ANSWER
        + _MESSAGE * (len(listed) + len(told))
        + sum(_weight(item, model) for item in _read([*listed, *told]))
        + sum(count(_compact(item), model) for item in declared)
    )


def embedded(value: object) -> list[Any]:
    """The inputs of an embeddings request: text, several texts, a list of token ids, several of those."""
    if not isinstance(value, list) or (value and isinstance(value[0], int)):
        return [value]
    return value


def embedded_tokens(item: object) -> int:
    return len(item) if isinstance(item, list) else count(str(item))


def _weight(item: str | int, model: str | None) -> int:
    return item if isinstance(item, int) else count(item, model)


def _read(value: object) -> Iterator[str | int]:
    """Every text a model reads in there, and a number of tokens for what is not text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _read(item)
    elif isinstance(value, dict):
        yield from _read_part(value)


def _read_part(part: Mapping[str, Any]) -> Iterator[str | int]:
    if part.get("type") in _MEDIA_TYPES:
        yield _MEDIA
    elif part.get("type") == "tool_use":
        yield str(part.get("name"))
        yield _compact(part.get("input"))
    elif isinstance(called := part.get("functionCall") or part.get("functionResponse"), dict):
        yield str(called.get("name"))
        yield _compact(called.get("args", called.get("response")))
    elif "inlineData" in part or "fileData" in part:
        yield _MEDIA
    else:
        for name in _READ:
            yield from _read(part.get(name))


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
