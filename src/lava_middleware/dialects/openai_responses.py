"""This file knows how to speak OpenAI's responses API.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.intent import Intent
from .body import WholeBodyMeter
from .dialect import Refusal
from .gather import Block, Gathered
from .jsons import count, first_count, mapping, parsed, sequence, text_or_none
from .known import Known
from .openai_chat import EXTRA_PER_TOOL_CALL, counted_tokens
from .openai_errors import lava_member, openai_refusal
from .openai_request import cache_lifetime, cap_of, gather_tools, media_parts, unreadable
from .openai_usage import responses_usage
from .sse import fields_of, is_event_stream
from .stream import EventMeter, literal_end, sse
from .thinking import hides_thoughts

LARGEST_KEPT = 1024 * 1024
"""Bytes of the answer that are kept to repeat them in a last event; beyond it the stream ends with an exception."""


class OpenAIResponses:
    """The responses API."""

    name = "openai.responses"
    operation = "chat"

    def read_request(self, body: Any, path_model: str | None) -> Intent:
        if not isinstance(body, dict) or not _has_input(body):
            return unreadable(self.operation, path_model)
        model = text_or_none(body.get("model")) or path_model
        gathered = Gathered()
        known = {**media_parts(model), "item_reference": _unseen}
        for field in ("input", "instructions"):
            gathered.block(body.get(field), known)
        gathered.text(body.get("text"))
        prompt = body.get("prompt")
        gathered.text(mapping(prompt).get("variables"))
        gathered.unseen |= bool(body.get("previous_response_id") or body.get("conversation") or prompt)
        tools, server_tools = gather_tools(gathered, body.get("tools"))
        return Intent(
            operation=self.operation,
            model=model,
            stream=body.get("stream") is True,
            text=gathered.weight(),
            media_tokens=gathered.media_tokens,
            unseen_input=gathered.unseen,
            tools=tools,
            server_tools=server_tools,
            output_tokens_max=cap_of(body.get("max_output_tokens")),
            hidden_reasoning=hides_thoughts(model, body) or (prompt is not None and model is None),
            asks_usage=True,
            service_tier=text_or_none(body.get("service_tier")),
            cache_writes=cache_lifetime(body, gathered),
            refuse="background" if body.get("background") is True else gathered.refuse,
        )

    def with_cap(self, body: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
        return {**body, "max_output_tokens": output_tokens}

    def asking_usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(body)  # its streams always end with the usage

    def body_meter(self) -> ResponseBodyMeter:
        return ResponseBodyMeter()

    def stream_meter(self, intent: Intent, *, hide_usage: bool) -> ResponseStreamMeter:
        return ResponseStreamMeter(intent)

    def is_stream(self, content_type: str) -> bool:
        return is_event_stream(content_type)

    def refusal(self, refusal: Refusal) -> bytes:
        return openai_refusal(refusal)


def _has_input(body: Mapping[str, Any]) -> bool:
    """Whether there is anything to answer: input of its own, or something it refers to."""
    given = body.get("input")
    if given is None:
        return any(body.get(field) for field in ("prompt", "previous_response_id", "conversation", "instructions"))
    return isinstance(given, str | list)


def _unseen(gathered: Gathered, _: Block) -> None:
    gathered.unseen = True


def _take_response(meter: Known, response: Mapping[str, Any]) -> None:
    """What a response object says of itself: as a body, and inside the first and the last event of a stream."""
    meter.name(response)
    reason = text_or_none(mapping(response.get("incomplete_details")).get("reason"))
    status = text_or_none(response.get("status"))
    if status in ("completed", "incomplete", "failed", "cancelled"):
        meter.finish_reason = reason or status
    if status == "failed" or (response.get("error") and not response.get("output")):
        meter.error = True
    usage = mapping(response.get("usage"))
    if usage and (reading := responses_usage(usage, _searches(response))) is not None:
        meter.reading, meter.reading_final = reading, True


def _searches(response: Mapping[str, Any]) -> int | None:
    """Web searches: counted beside `usage` by newer models, else one for each search call that did search."""
    told = mapping(mapping(response.get("tool_usage")).get("web_search")).get("num_requests")
    xai = mapping(mapping(response.get("usage")).get("server_side_tool_usage_details")).get("web_search_calls")
    if (searches := first_count(told, xai)) is not None:
        return searches
    calls = [mapping(item) for item in sequence(response.get("output"))]
    searched = sum(
        1
        for call in calls
        if call.get("type") == "web_search_call"
        and call.get("status") in (None, "completed")
        and mapping(call.get("action")).get("type") in (None, "search")
    )
    return searched or None


def _is_tool_call(kind: object) -> bool:
    """Items whose arguments stream and are useless when they are cut."""
    return kind in ("function_call", "custom_tool_call", "mcp_call", "apply_patch_call", "shell_call")


def _hear_item(meter: Known, item: Mapping[str, Any]) -> None:
    """Count an output item that came whole."""
    if _is_tool_call(item.get("type")):
        meter.words(item.get("arguments"))
        meter.words(item.get("input"))
    meter.words(item.get("code"))
    for part in (*sequence(item.get("content")), *sequence(item.get("summary"))):
        meter.words(mapping(part).get("text"))
        meter.words(mapping(part).get("refusal"))


def _begin_item(meter: Known, item: Mapping[str, Any]) -> None:
    kind = item.get("type")
    if kind != "reasoning":
        meter.block()
    if isinstance(kind, str) and kind.endswith("_call"):
        meter.extra_tokens += EXTRA_PER_TOOL_CALL
        meter.words(item.get("name"))


class ResponseBodyMeter(WholeBodyMeter):
    """An unary response."""

    __slots__ = ()

    def _whole(self, value: Mapping[str, Any]) -> None:
        _take_response(self, value)
        for item in sequence(value.get("output")):
            _begin_item(self, mapping(item))
            _hear_item(self, mapping(item))


class ResponseStreamMeter(EventMeter):
    """A streamed response."""

    __slots__ = ("_created", "_done", "_heard", "_items", "_kept", "_said")

    def __init__(self, intent: Intent) -> None:
        super().__init__(intent)
        self._created = b""
        """The event that carries the response object as it began; parsed again only if the stream is cut."""
        self._done: list[bytes] = []
        """The events that closed output items."""
        self._items: dict[int, _Item] = {}
        """Open output items by their index."""
        self._said: list[bytes] = []
        """The open part's deltas, as whole events."""
        self._kept = 0
        self._heard = False
        """Whether the open item came in deltas, so that its closing event only repeats it."""

    @property
    def in_tool_call(self) -> bool:
        return any(_is_tool_call(item.kind) for item in self._items.values())

    def _plain(self, event: bytes) -> bytes | None:
        head = event.find(b"\n")
        key = event[:head] in _DELTA_EVENTS and event.find(_DELTA, head)
        if not key or key < 0:
            return None
        start = key + len(_DELTA)
        end = literal_end(event, start)
        if end < 0:
            return None
        self._keep(event)
        return event[start:end]

    def _keep(self, event: bytes) -> None:
        self._heard = True
        self._kept += len(event)
        if self._kept <= LARGEST_KEPT:
            self._said.append(event)

    def untake(self) -> None:
        if self._said and self._said[-1] is self.latest:
            self._said.pop()
        super().untake()

    def _may_wait(self, event: bytes) -> bool:
        return event[: event.find(b"\n")] in _DELTA_EVENTS

    def _event(self, name: bytes, value: Mapping[str, Any], raw: bytes) -> None:
        kind = value.get("type")
        if not isinstance(kind, str):
            self.error = self.error or bool(value.get("error"))
            return
        if kind.endswith(".delta"):
            self.words(value.get("delta"))
            self._keep(raw)
        elif kind in ("response.created", "response.queued", "response.in_progress"):
            self._created = raw
            _take_response(self, mapping(value.get("response")))
        elif kind in ("response.completed", "response.incomplete", "response.failed", "response.done"):
            _take_response(self, mapping(value.get("response")))
            self.error = self.error or kind == "response.failed"
            self.finished = True
        elif kind == "error":
            self.error = self.finished = True
        else:
            self._structure(kind, value, raw)

    def _structure(self, kind: str, value: Mapping[str, Any], raw: bytes) -> None:
        """Items and parts that open and close."""
        index = count(value.get("output_index")) or 0
        if kind == "response.output_item.added":
            item = mapping(value.get("item"))
            _begin_item(self, item)
            self._items[index] = _Item(item)
            self._said, self._heard = [], False
        elif kind == "response.output_item.done":
            item = mapping(value.get("item"))
            if self._items.pop(index, None) is None:
                _begin_item(self, item)
            if not self._heard:
                _hear_item(self, item)
            self._kept += len(raw)
            self._done.append(raw if self._kept <= LARGEST_KEPT else b"")
            self._said, self._heard = [], False
        elif kind.endswith("_part.added") and (open_item := self._items.get(index)) is not None:
            open_item.part = value
            self._said = []
        elif kind.endswith("_part.done") and (open_item := self._items.get(index)) is not None:
            open_item.parts.append(mapping(value.get("part")))
            open_item.part = None
            self._said = []

    # Ending early ----------------------------------------------------------------------------------------------------

    def ending(self, refusal: Refusal) -> bytes | None:
        self.measure()
        if self.in_tool_call or self._fragment or self._kept > LARGEST_KEPT:
            return None
        sequence_number = self._last_sequence_number()
        events: list[dict[str, Any]] = []
        output = [mapping(mapping(parsed(fields_of(raw)[1])).get("item")) for raw in self._done]
        for index in sorted(self._items):
            closing, item = self._closing(index, self._items[index])
            events += closing
            output.append(item)
        response = self._response_now(output, refusal)
        events.append({"type": "response.incomplete", "response": response, "lava": lava_member(refusal)})
        numbered = ({**event, "sequence_number": sequence_number + n} for n, event in enumerate(events, 1))
        return b"".join(sse(event, event["type"]) for event in numbered)

    def _last_sequence_number(self) -> int:
        return first_count(mapping(parsed(fields_of(self.latest)[1])).get("sequence_number"), 0) or 0

    def _closing(self, index: int, item: _Item) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The events that close an open item, and the item as it stands."""
        events: list[dict[str, Any]] = []
        parts = [dict(part) for part in item.parts]
        if item.part is not None:
            text = "".join(_delta_of(event) for event in self._said)
            events, part = _closing_part(item.part, text)
            parts.append(part)
        whole = {**item.value, "status": "incomplete"}
        if parts:
            whole["summary" if item.kind == "reasoning" and parts[0].get("type") == "summary_text" else "content"] = (
                parts
            )
        events.append({"type": "response.output_item.done", "output_index": index, "item": whole})
        return events, whole

    def _response_now(self, output: list[Any], refusal: Refusal) -> dict[str, Any]:
        """The response object as it is at this point: incomplete, with what was put out so far."""
        begun = mapping(mapping(parsed(fields_of(self._created)[1])).get("response"))
        incoming, outgoing = counted_tokens(self, self._intent, refusal)
        empty = {
            "id": "resp_lava",
            "object": "response",
            "created_at": 0,
            "model": self._intent.model or "",
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "instructions": None,
            "metadata": {},
        }
        return {
            **empty,
            **begun,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": output,
            "usage": {
                "input_tokens": incoming,
                "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
                "output_tokens": outgoing,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": incoming + outgoing,
            },
        }


class _Item:
    """An output item that is being written."""

    __slots__ = ("kind", "part", "parts", "value")

    def __init__(self, value: Mapping[str, Any]) -> None:
        self.value = value
        self.kind = value.get("type")
        self.part: Mapping[str, Any] | None = None
        """The event that opened its open part."""
        self.parts: list[Mapping[str, Any]] = []


def _delta_of(event: bytes) -> str:
    return text_or_none(mapping(parsed(fields_of(event)[1])).get("delta")) or ""


def _closing_part(opened: Mapping[str, Any], text: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events that close a part, and the part as it stands."""
    place = {key: opened[key] for key in ("item_id", "output_index", "content_index", "summary_index") if key in opened}
    part = dict(mapping(opened.get("part")))
    family = "reasoning_summary" if opened.get("type") == "response.reasoning_summary_part.added" else ""
    spoken = "refusal" if part.get("type") == "refusal" else "text"
    part[spoken] = text
    if family:
        said = {"type": "response.reasoning_summary_text.done", **place, "text": text}
    elif spoken == "refusal":
        said = {"type": "response.refusal.done", **place, "refusal": text}
    elif part.get("type") == "reasoning_text":
        said = {"type": "response.reasoning_text.done", **place, "text": text}
    else:
        said = {"type": "response.output_text.done", **place, "text": text, "logprobs": []}
    done = f"response.{family}_part.done" if family else "response.content_part.done"
    return [said, {"type": done, **place, "part": part}], part


_DELTA = b'"delta":"'
_DELTA_EVENTS = frozenset(
    b"event: response.%s.delta" % kind
    for kind in (
        b"output_text",
        b"refusal",
        b"reasoning_text",
        b"reasoning_summary_text",
        b"function_call_arguments",
        b"custom_tool_call_input",
        b"mcp_call_arguments",
        b"code_interpreter_call_code",
    )
)
"""The first lines of events that are nothing but a piece of text, whose JSON has one `"delta":"` and no figures."""
