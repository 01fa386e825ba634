"""This file knows how to speak Anthropic's messages.

https://docs.claude.com/en/api/messages and https://docs.claude.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.intent import Intent
from .anthropic_usage import left_out, messages_usage, overlaid
from .body import WholeBodyMeter
from .dialect import Refusal
from .gather import Block, Gathered
from .jsons import count, encoded, mapping, sequence, text_or_none
from .known import Known, reason_of
from .media import document_tokens, image_size, image_tokens_claude
from .openai_chat import EXTRA_PER_TOOL_CALL, counted_tokens
from .openai_errors import lava_member
from .openai_request import cap_of, unreadable
from .sse import is_event_stream
from .stream import EventMeter, literal_end, sse
from .thinking import claude_hides_thoughts

BUILT_IN_TOOL = 900
"""Tokens that a tool of Anthropic's own schema (bash, computer, ...) adds at most to what the request shows."""

SEARCHES_UNLIMITED = 5
"""Searches that are held for where the tool has no `max_uses`."""

_CLIENT_TOOLS = ("bash_", "text_editor_", "computer_", "memory_")

_ERRORS = {
    # status → Anthropic's own type of that error. A missing entry: invalid_request_error.
    402: "billing_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class AnthropicMessages:
    """Messages: max_tokens is required and includes the thinking."""

    name = "anthropic.messages"
    operation = "chat"

    def read_request(self, body: Any, path_model: str | None) -> Intent:
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return unreadable(self.operation, path_model)
        model = text_or_none(body.get("model")) or path_model
        gathered = Gathered()
        known = _parts(model)
        for field in ("system", "messages"):
            gathered.block(body.get(field), known)
        gathered.note_caching({"cache_control": body.get("cache_control")})
        for field in ("output_config", "output_format", "stop_sequences", "mcp_servers", "context_management"):
            gathered.text(body.get(field))
        gathered.unseen |= bool(body.get("container"))
        tools, server_tools, searches = _gather_tools(gathered, body.get("tools"))
        servers = bool(sequence(body.get("mcp_servers")))
        return Intent(
            operation=self.operation,
            model=model,
            stream=body.get("stream") is True,
            text=gathered.weight(),
            media_tokens=gathered.media_tokens,
            unseen_input=gathered.unseen,
            tools=tools or servers,
            server_tools=server_tools or servers,
            searches_max=searches,
            output_tokens_max=cap_of(body.get("max_tokens")),
            hidden_reasoning=claude_hides_thoughts(model, body),
            asks_usage=True,
            service_tier="fast" if body.get("speed") == "fast" else text_or_none(body.get("service_tier")),
            cache_writes=gathered.cache_writes,
            refuse=gathered.refuse,
        )

    def with_cap(self, body: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
        capped = {**body, "max_tokens": output_tokens}
        thinking = mapping(body.get("thinking"))
        budget = count(thinking.get("budget_tokens"))
        if budget is not None and budget >= output_tokens:  # it must be below max_tokens, and at least 1,024
            capped["thinking"] = (
                {**thinking, "budget_tokens": output_tokens - 1} if output_tokens > 1_024 else {"type": "disabled"}
            )
        return capped

    def asking_usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(body)  # its streams always carry the usage

    def body_meter(self) -> MessageBodyMeter:
        return MessageBodyMeter()

    def stream_meter(self, intent: Intent, *, hide_usage: bool) -> MessageStreamMeter:
        return MessageStreamMeter(intent)

    def is_stream(self, content_type: str) -> bool:
        return is_event_stream(content_type)

    def refusal(self, refusal: Refusal) -> bytes:
        error = {"type": _ERRORS.get(refusal.status, "invalid_request_error"), "message": refusal.message}
        return encoded({"type": "error", "error": error, "lava": lava_member(refusal)})


def _parts(model: str | None) -> Mapping[str, Callable[[Gathered, Block], None]]:
    """What the blocks that are no text cost."""

    def image(gathered: Gathered, block: Block) -> None:
        source = mapping(block.get("source"))
        data = source.get("data")
        gathered.media_tokens += image_tokens_claude(model, image_size(data) if isinstance(data, str) else None)

    def document(gathered: Gathered, block: Block) -> None:
        source = mapping(block.get("source"))
        data = source.get("data")
        if source.get("type") == "base64" and isinstance(data, str):
            gathered.media_tokens += document_tokens(data, text_or_none(source.get("media_type")))
        elif source.get("type") in ("text", "content"):
            gathered.block([data, source.get("content")], known)
        else:
            gathered.unseen = True  # a file id or a URL: its pages are not in the request
        gathered.block([block.get("title"), block.get("context")], known)

    def uploaded(gathered: Gathered, _: Block) -> None:
        gathered.unseen = True

    known = {"image": image, "document": document, "container_upload": uploaded, "file": uploaded}
    return known


def _gather_tools(gathered: Gathered, tools: object) -> tuple[bool, bool, int]:
    """Count the declared tools. (any are declared, Anthropic runs some of them, searches it may run at most)."""
    server, searches = False, 0
    for tool in sequence(tools):
        gathered.parts += 1
        gathered.json(tool)
        kind = mapping(tool).get("type")
        if kind in (None, "custom"):
            continue
        gathered.media_tokens += BUILT_IN_TOOL
        server |= not str(kind).startswith(_CLIENT_TOOLS)
        if str(kind).startswith("web_search"):
            searches += count(mapping(tool).get("max_uses")) or SEARCHES_UNLIMITED
    return bool(sequence(tools)), server, searches


def _take_usage(meter: Known, usage: Mapping[str, Any], *, final: bool) -> None:
    if (reading := messages_usage(usage, output_known=final)) is None:
        return
    meter.reading, meter.reading_final = reading, final
    meter.service_tier = "fast" if usage.get("speed") == "fast" else text_or_none(usage.get("service_tier"))
    meter.others = left_out(usage) if final else ()


def _begin_block(meter: Known, block: Mapping[str, Any]) -> None:
    """A content block begins. What tools give back is input of the next pass, not output."""
    kind = block.get("type")
    if isinstance(kind, str) and kind.endswith("_result"):
        return
    meter.block()
    if _is_tool_call(kind):
        meter.extra_tokens += EXTRA_PER_TOOL_CALL
        meter.words(block.get("name"))
        if block.get("input"):
            meter.words(encoded(block["input"]).decode("utf-8", "replace"))
    for key in ("text", "thinking"):
        meter.words(block.get(key))
    if kind == "compaction":
        meter.words(block.get("content"))


def _is_tool_call(kind: object) -> bool:
    return kind in ("tool_use", "server_tool_use", "mcp_tool_use")


class MessageBodyMeter(WholeBodyMeter):
    """An unary message."""

    __slots__ = ()

    def _whole(self, value: Mapping[str, Any]) -> None:
        if value.get("type") == "error" or (value.get("error") and "content" not in value):
            self.error = True
        self.name(value)
        self.finish_reason = reason_of(value.get("stop_reason"))
        for block in sequence(value.get("content")):
            _begin_block(self, mapping(block))
        _take_usage(self, mapping(value.get("usage")), final=True)


class MessageStreamMeter(EventMeter):
    """A streamed message."""

    __slots__ = ("_begun", "_delta_seen", "_needle", "_open", "_start")

    def __init__(self, intent: Intent) -> None:
        super().__init__(intent)
        self._start: dict[str, Any] = {}
        """message_start's usage, overlaid by what came since."""
        self._open: dict[int, object] = {}
        """Types of the open content blocks by index."""
        self._begun = self._delta_seen = False
        self._needle = _NEEDLES[0]

    @property
    def in_tool_call(self) -> bool:
        return any(_is_tool_call(kind) for kind in self._open.values())

    def _plain(self, event: bytes) -> bytes | None:
        if not event.startswith(_DELTA_EVENT):
            return None
        found = event.find(self._needle, len(_DELTA_EVENT))
        if found < 0:
            for needle in _NEEDLES:
                if (found := event.find(needle, len(_DELTA_EVENT))) >= 0:
                    self._needle = needle
                    break
            else:
                return None
        start = found + len(self._needle)
        end = literal_end(event, start)
        return event[start:end] if end >= 0 else None

    def _may_wait(self, event: bytes) -> bool:
        return event.startswith((_DELTA_EVENT, b"event: ping\n"))

    def _event(self, name: bytes, value: Mapping[str, Any], raw: bytes) -> None:
        kind = value.get("type")
        index = count(value.get("index")) or 0
        if kind == "content_block_delta":
            delta = mapping(value.get("delta"))
            for key in ("text", "thinking", "partial_json"):
                self.words(delta.get(key))
            if delta.get("type") == "compaction_delta":
                self.words(delta.get("content"))
        elif kind == "content_block_start":
            block = mapping(value.get("content_block"))
            self._open[index] = block.get("type")
            _begin_block(self, block)
        elif kind == "content_block_stop":
            self._open.pop(index, None)
        elif kind == "message_start":
            self._begun = True
            message = mapping(value.get("message"))
            self.name(message)
            self._start = dict(mapping(message.get("usage")))
            _take_usage(self, self._start, final=False)
        elif kind == "message_delta":
            self._delta_seen = True
            self.finish_reason = reason_of(mapping(value.get("delta")).get("stop_reason")) or self.finish_reason
            if usage := mapping(value.get("usage")):
                self._start = overlaid(self._start, usage)
                _take_usage(self, self._start, final=True)
        elif kind == "message_stop":
            self.finished = True
        elif kind == "error" or value.get("error"):
            self.error = True

    def ending(self, refusal: Refusal) -> bytes | None:
        self.measure()
        if self.in_tool_call or self._fragment:
            return None
        events = [] if self._begun else [self._beginning(refusal)]
        events += [{"type": "content_block_stop", "index": index} for index in sorted(self._open)]
        if not self._delta_seen:
            _, outgoing = counted_tokens(self, self._intent, refusal)
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            usage = {"output_tokens": outgoing}
            events.append({"type": "message_delta", "delta": delta, "usage": usage, "lava": lava_member(refusal)})
        events.append({"type": "message_stop"})
        return b"".join(sse(event, str(event["type"])) for event in events)

    def _beginning(self, refusal: Refusal) -> dict[str, Any]:
        """A message_start, for a stream that is cut before its own."""
        incoming, _ = counted_tokens(self, self._intent, refusal)
        message: dict[str, Any] = {
            "id": "msg_lava",
            "type": "message",
            "role": "assistant",
            "model": self._intent.model or "",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": incoming, "output_tokens": 0},
        }
        return {"type": "message_start", "message": message}


_DELTA_EVENT = b"event: content_block_delta\ndata: "
_NEEDLES = (
    b'"delta":{"type":"text_delta","text":"',
    b'"delta":{"type":"thinking_delta","thinking":"',
    b'"delta":{"type":"input_json_delta","partial_json":"',
)
