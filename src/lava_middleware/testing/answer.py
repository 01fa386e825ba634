"""This file knows how to work out one whole answer: status, headers, and a body or the events of a stream."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .ask import EMBEDDINGS, GENERATIONS, Ask, Call
from .formats import chat, embeddings, errors, gemini, gemini_embeddings, messages, responses
from .formats.wire import Event, Stamp, dumps, marked
from .generation import Generation, generate, served_input
from .script import Script
from .served import Figures

_Body = Callable[[Ask, Script, Generation, Stamp], tuple[dict[str, Any], Figures]]
_Events = Callable[[Ask, Script, Generation, Stamp], Iterator[Event]]
_Error = Callable[[Ask, dict[str, Any], int], bytes]

_BODIES: dict[str, _Body] = {
    "chat.completions": chat.body,
    "responses": responses.body,
    "messages": messages.body,
    "embeddings": embeddings.body,
    "generateContent": gemini.body,
    "embedContent": gemini_embeddings.body,
}
# A missing entry means: never streamed, whatever the request says.
_STREAMS: dict[str, tuple[_Events, _Error]] = {
    "chat.completions": (chat.events, chat.error),
    "responses": (responses.events, responses.error),
    "messages": (messages.events, messages.error),
    "generateContent": (gemini.events, gemini.error),
}
MODELS = ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small")
GEMINI_MODELS = ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-embedding-001")
CLAUDE_MODELS = ("claude-sonnet-4-6", "claude-haiku-4-5")


@dataclass(slots=True)
class Answer:
    """What goes out. Either `body` or `events`."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    events: Iterator[Event] | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    """Of `body`; a stream's are on its events."""
    reasoning_tokens: int = 0
    """Hidden: spent when the answer begins."""
    figures: Figures | None = None
    """The usage block of `body`."""


def answer(call: Call, ask: Ask, script: Script, stamp: Stamp) -> Answer:
    """The answer that the script gives to this request. Pure: the same arguments, the same bytes."""
    made = _made(call, ask, script, stamp)
    made.headers = {**_identity(ask, stamp), **made.headers}
    if script.content_type is not None:
        made.headers["content-type"] = script.content_type
    if ask.operation in GENERATIONS:
        made.headers |= {name.lower(): value for name, value in script.headers.items()}
        _compress(made, call.headers, script)
    return made


def _made(call: Call, ask: Ask, script: Script, stamp: Stamp) -> Answer:
    if ask.operation not in GENERATIONS:
        return _plain(ask, stamp)
    if 300 <= script.status < 400:
        return Answer(script.status, {"location": call.target})
    if script.body is not None:
        return _given(ask, script)
    if script.status >= 400:
        return _json(script.status, errors.body(ask.flavour, script.status, script, stamp))
    if ask.fault is not None:
        blamed = Script(error_message=ask.fault)
        status = 422 if ask.flavour == "mistral" else 400
        return _json(status, errors.body(ask.flavour, status, blamed, stamp, ask.fault_param))
    said = generate(script, ask)
    if ask.stream and ask.operation in _STREAMS:
        return _stream(ask, script, said, stamp)
    return _unary(ask, script, said, stamp)


def _json(status: int, body: Mapping[str, Any]) -> Answer:
    return Answer(status, {"content-type": "application/json"}, dumps(body).encode())


def _unary(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> Answer:
    body, told = _BODIES[ask.operation](ask, script, said, stamp)
    made = _json(script.status, body)
    made.input_tokens = served_input(script, ask)
    if ask.operation not in EMBEDDINGS:
        made.reasoning_tokens = said.reasoning_tokens * _choices(ask)
        made.output_tokens = said.visible_tokens * _choices(ask)
    made.figures = told if script.usage else None
    return made


def _choices(ask: Ask) -> int:
    return ask.choices if ask.operation in ("chat.completions", "generateContent") else 1


def _stream(ask: Ask, script: Script, said: Generation, stamp: Stamp) -> Answer:
    events, error = _STREAMS[ask.operation]
    stream = events(ask, script, said, stamp)
    if script.error_after is not None:
        fault = errors.fault(ask.flavour, 529 if ask.flavour == "anthropic" else 500, script)
        stream = _failing(stream, script.error_after, lambda sequence: error(ask, fault, sequence))
    kind = "application/json; charset=UTF-8" if ask.array else "text/event-stream; charset=utf-8"
    return Answer(
        script.status,
        {"content-type": kind, "cache-control": "no-cache"},
        events=stream,
        input_tokens=served_input(script, ask),
        reasoning_tokens=said.reasoning_tokens * _choices(ask),
    )


def _failing(events: Iterator[Event], after: int, error: Callable[[int], bytes]) -> Iterator[Event]:
    """The stream up to so many chunks, then the error, and no more."""
    chunks = sequence = 0
    for event in events:
        if chunks >= after:
            break
        yield event
        chunks += event.chunk
        sequence += 1
    yield Event(error(sequence))


def _given(ask: Ask, script: Script) -> Answer:
    stream = ask.stream and ask.operation in _STREAMS
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"
    assert script.body is not None
    return Answer(script.status, {"content-type": kind}, script.body)


def _plain(ask: Ask, stamp: Stamp) -> Answer:
    """What scripts are not for: the list of models, counting tokens, and paths that nobody serves."""
    if ask.fault is not None:
        return _json(400, errors.body(ask.flavour, 400, Script(error_message=ask.fault), stamp))
    if ask.operation == "count_tokens" and ask.flavour == "gemini":
        return _json(200, {"totalTokens": ask.input_tokens})
    if ask.operation == "count_tokens":
        head = {} if ask.flavour == "anthropic" else {"object": "response.input_tokens"}
        return _json(200, {**head, "input_tokens": ask.input_tokens})
    if ask.operation == "models":
        return _json(200, _models(ask, stamp))
    return _json(404, errors.body(ask.flavour, 404, Script(), stamp))


def _models(ask: Ask, stamp: Stamp) -> dict[str, Any]:
    if ask.flavour == "gemini":
        listed = [{"name": f"models/{model}", "displayName": model} for model in GEMINI_MODELS]
        return {"models": listed} if ask.model is None else {"name": f"models/{ask.model}", "displayName": ask.model}
    if ask.flavour == "anthropic":
        listed = [_claude(model) for model in CLAUDE_MODELS]
        whole = {"data": listed, "has_more": False, "first_id": CLAUDE_MODELS[0], "last_id": CLAUDE_MODELS[-1]}
        return whole if ask.model is None else _claude(ask.model)
    whole = {"object": "list", "data": [_model(model, stamp) for model in MODELS]}
    return whole if ask.model is None else _model(ask.model, stamp)


def _model(model: str, stamp: Stamp) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": stamp.now_s, "owned_by": "system"}


def _claude(model: str) -> dict[str, Any]:
    return {"type": "model", "id": model, "display_name": model, "created_at": "2025-09-29T00:00:00Z"}


def _identity(ask: Ask, stamp: Stamp) -> dict[str, str]:
    """The headers by which the provider names this answer."""
    if ask.flavour == "gemini":
        return {"server-timing": "gfet4t7; dur=77"}
    if ask.flavour == "anthropic":
        return {"request-id": "req_011" + stamp.id("request", 21)}
    more = {"openai-version": "2020-10-01", "openai-processing-ms": "12"} if ask.flavour == "openai" else {}
    return {"x-request-id": "req_" + stamp.id("request", 32), **more}


def _compress(made: Answer, asked: Mapping[str, str], script: Script) -> None:
    accepted = "gzip" in asked.get("accept-encoding", "")
    if script.compress == "never" or (script.compress == "accepted" and not accepted):
        return
    made.headers["content-encoding"] = "gzip"
    if made.events is not None:
        made.events = _compressed(made.events)
    else:
        made.body = gzip.compress(made.body, mtime=0)


def _compressed(events: Iterator[Event]) -> Iterator[Event]:
    """Flushed after each event, as providers do it: what was sent can be read."""
    deflate = zlib.compressobj(wbits=31)
    for event, last in marked(events):
        flush = zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH
        yield event._replace(data=deflate.compress(event.data) + deflate.flush(flush))
