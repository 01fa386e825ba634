"""This file knows how to speak chat completions, as OpenAI and the many that took over its format do.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from ..core.intent import Intent
from .body import WholeBodyMeter
from .dialect import Refusal
from .gather import Gathered
from .jsons import count, mapping, sequence, text_or_none
from .known import Known, reason_of
from .openai_errors import is_error, lava_member, openai_refusal
from .openai_request import cache_lifetime, cap_of, choices_of, gather_tools, media_parts, unreadable
from .openai_usage import asking_usage, chat_usage
from .sse import is_event_stream
from .stream import EventMeter, literal_end, sse
from .thinking import hides_thoughts

CapField = Literal["max_completion_tokens", "max_tokens", "by_model"]
"""The field that caps the output. "by_model": Azure, whose older API versions know only max_tokens while models that
think accept only max_completion_tokens."""

SPOKEN = ("content", "reasoning_content", "reasoning", "refusal")
"""Members of a delta or a message that are text of the model."""

EXTRA_PER_TOOL_CALL = 64

_READ_BY_MODEL = ("response_format", "prediction", "web_search_options", "data_sources", "stop", "tool_choice")


class OpenAIChat:
    """Chat completions. One instance per way of capping the output."""

    name = "openai.chat"
    operation = "chat"

    def __init__(self, cap: CapField = "max_completion_tokens") -> None:
        self._cap: CapField = cap

    def read_request(self, body: Any, path_model: str | None) -> Intent:
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return unreadable(self.operation, path_model)
        model = _model_of(body) or path_model
        gathered = Gathered()
        gathered.block(body["messages"], media_parts(model))
        gathered.unseen |= _refers_to_more(body)
        tools, server_tools = gather_tools(gathered, body.get("tools"))
        if functions := sequence(body.get("functions")):
            gathered.parts += len(functions)
            gathered.json(functions)
        for field in _READ_BY_MODEL:
            gathered.text(body.get(field))
        return Intent(
            operation=self.operation,
            model=model,
            stream=body.get("stream") is True,
            text=gathered.weight(),
            media_tokens=gathered.media_tokens,
            unseen_input=gathered.unseen,
            tools=tools or bool(functions),
            server_tools=server_tools or _searches(model, body),
            output_tokens_max=cap_of(body.get("max_completion_tokens"), body.get("max_tokens")),
            choices=choices_of(body.get("n")),
            hidden_reasoning=hides_thoughts(model, body),
            asks_usage=mapping(body.get("stream_options")).get("include_usage") is True,
            service_tier=text_or_none(body.get("service_tier")),
            cache_writes=cache_lifetime(body, gathered),
            # xAI answers a deferred request with an id; what it used shows when the result is fetched.
            refuse="deferred completions" if body.get("deferred") is True else gathered.refuse,
        )

    def with_cap(self, body: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
        capped = dict(body)
        present = [field for field in ("max_completion_tokens", "max_tokens") if count(body.get(field)) is not None]
        for field in present or [self._cap_field(body)]:
            capped[field] = output_tokens
        return capped

    def _cap_field(self, body: Mapping[str, Any]) -> str:
        if self._cap != "by_model":
            return self._cap
        model = text_or_none(body.get("model"))
        return "max_completion_tokens" if model is None or hides_thoughts(model, body) else "max_tokens"

    def asking_usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("data_sources"):
            return dict(body)  # Azure refuses stream_options together with its "on your data"
        return asking_usage(body)

    def body_meter(self) -> ChatBodyMeter:
        return ChatBodyMeter()

    def stream_meter(self, intent: Intent, *, hide_usage: bool) -> ChatStreamMeter:
        return ChatStreamMeter(intent, hide_usage=hide_usage)

    def is_stream(self, content_type: str) -> bool:
        return is_event_stream(content_type)

    def refusal(self, refusal: Refusal) -> bytes:
        return openai_refusal(refusal)


def _refers_to_more(body: Mapping[str, Any]) -> bool:
    """Input that is not in the request: an earlier audio answer, Azure's data sources."""
    if body.get("data_sources"):
        return True
    return any(isinstance(mapping(message).get("audio"), dict) for message in body["messages"])


def _model_of(body: Mapping[str, Any]) -> str | None:
    """The model; of OpenRouter's list of fallbacks the first."""
    first = next(iter(sequence(body.get("models"))), None)
    return text_or_none(body.get("model")) or text_or_none(first)


_SEARCH_FIELDS = ("web_search_options", "search_parameters", "enable_search", "web_search")
"""Members with which OpenAI, xAI, Alibaba and others are asked to search by themselves."""
_SEARCHING_MODEL = re.compile(r"search-preview|search-api|compound|:online$|^(?:perplexity/)?sonar")


def _searches(model: str | None, body: Mapping[str, Any]) -> bool:
    """Models and options with which the provider searches by itself."""
    if any(body.get(field) not in (None, False) for field in _SEARCH_FIELDS):
        return mapping(body.get("search_parameters")).get("mode") != "off"
    plugins = (mapping(one).get("id") for one in sequence(body.get("plugins")))
    venice = mapping(body.get("venice_parameters")).get("enable_web_search")
    asked = "web" in plugins or venice not in (None, False, "off")
    return asked or (body.get("disable_search") is not True and _SEARCHING_MODEL.search(model or "") is not None)


class ChatBodyMeter(WholeBodyMeter):
    """An unary chat completion."""

    __slots__ = ()

    def _said(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a choice says, as a message."""
        return mapping(choice.get("message"))

    def _whole(self, value: Mapping[str, Any]) -> None:
        self.name(value)
        self.error = is_error(value) and not value.get("choices")
        for choice in sequence(value.get("choices")):
            choice = mapping(choice)
            self.finish_reason = self.finish_reason or reason_of(choice.get("finish_reason"))
            _hear(self, self._said(choice), new=True)
        self.reading = chat_usage(_usage_of(value))
        self.reading_final = self.reading is not None


class ChatStreamMeter(EventMeter):
    """A streamed chat completion."""

    EMPTY: ClassVar[Mapping[str, Any]] = {"id": "chatcmpl-lava", "object": "chat.completion.chunk"}
    """What a chunk is called before the provider's own has said so."""

    __slots__ = (
        "_beginning",
        "_choices",
        "_envelope",
        "_hide_usage",
        "_hits",
        "_lessons",
        "_prefix",
        "_tail",
        "_tail_open",
        "_tries",
    )

    def __init__(self, intent: Intent, *, hide_usage: bool) -> None:
        super().__init__(intent)
        self._hide_usage = hide_usage
        self._beginning: Mapping[str, Any] | None = None
        """Figures of an answer that goes on, not read yet."""
        self._choices: dict[int, _Choice] = {}
        self._envelope: dict[str, Any] = {}
        """What every chunk repeats: id, created, model, ..."""
        # A chunk that is nothing but text, as this provider writes it: everything before the text and after it.
        self._prefix, self._tail, self._tail_open = b"\0", b"", False
        self._tries = self._lessons = self._hits = 0

    @property
    def in_tool_call(self) -> bool:
        return any(choice.in_tool_call and not choice.finished for choice in self._choices.values())

    def _plain(self, event: bytes) -> bytes | None:
        if not event.startswith(self._prefix):
            return None
        start = len(self._prefix)
        end = literal_end(event, start)
        if end < 0 or not event.startswith(self._tail, end):
            return None
        after = end + len(self._tail)
        if event.find(b"{", after) >= 0 if self._tail_open else len(event) != after:
            return None
        self._hits += 1
        return event[start:end]

    def _may_wait(self, event: bytes) -> bool:
        return self._tries > 2 and _CARRIES_MORE.search(event) is None

    def _event(self, name: bytes, value: Mapping[str, Any], raw: bytes) -> None:
        self.name(value)
        if value.get("error") or name == b"error":
            self.error = True
        choices = sequence(value.get("choices"))
        if choices or not self._envelope:
            self._envelope = {key: value[key] for key in _ENVELOPE if key in value}
        for one in choices:
            self._choice(mapping(one))
        if usage := _usage_of(value):
            self._take_usage(usage, alone=not choices)
        elif len(choices) == 1 and not self.error:
            self._learn(mapping(choices[0]), raw)

    def _take_usage(self, usage: Mapping[str, Any], *, alone: bool) -> None:
        """Figures are cumulative or final, never to be added. In the middle of an answer, where Perplexity and
        Databricks send them in every chunk, they are only a beginning, and a cost among them is not yet the cost."""
        over = bool(self._choices) and all(one.finished for one in self._choices.values())
        if not alone and not over:
            self._beginning = usage  # read when somebody wants to know it
        elif (reading := chat_usage(usage)) is not None:
            self.reading, self.reading_final = reading, True
            self._beginning = None
            self._hidden = self._hide_usage and alone
            self.finished |= over  # Cerebras and others send no [DONE]

    def measure(self) -> None:
        super().measure()
        if self._beginning is not None:
            reading, self._beginning = chat_usage(self._beginning), None
            if reading is not None:
                self.reading, self.reading_final = replace(reading, cost_ticks=None), False

    def _said(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a choice adds, as the part of a message."""
        return mapping(choice.get("delta")) or mapping(choice.get("message"))

    def _closing(self, index: int) -> dict[str, Any]:
        """The choice that ends one which is still open."""
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}

    def _choice(self, choice: Mapping[str, Any]) -> None:
        index = count(choice.get("index")) or 0
        known = self._choices.get(index)
        if known is None:
            known = self._choices[index] = _Choice()
            if len(self._choices) > 1_024:
                self._choices.clear()
        spoken, called = _hear(self, self._said(choice), new=not known.begun)
        known.begun |= spoken
        known.in_tool_call |= called
        if (reason := reason_of(choice.get("finish_reason"))) is not None:
            known.finished = True
            if index == 0 or self.finish_reason is None:
                self.finish_reason = reason

    def _learn(self, choice: Mapping[str, Any], raw: bytes) -> None:
        """Remember what stands around the text, if this chunk is nothing but text."""
        self._tries += 1
        if self._lessons > 32 and self._hits < self._lessons:
            return  # its envelope changes all the time
        key = self._only_text(choice)
        if key is None or not raw.startswith(b"data:"):
            return
        opening = b'"%s":"' % key
        start = raw.find(opening) + len(opening)
        if start < len(opening) or raw.find(opening, start) >= 0:
            return
        end = literal_end(raw, start)
        if end < 0:
            return
        self._lessons += 1
        tail = raw[end:]
        padding = tail.find(b'"obfuscation":"')  # random letters that hide the length of the text
        self._tail_open = padding >= 0
        self._prefix, self._tail = raw[:start], tail[: padding + 15] if padding >= 0 else tail

    def _only_text(self, choice: Mapping[str, Any]) -> bytes | None:
        """The key of the string that grows, if this choice has nothing else to say."""
        return _only_text(choice)

    def ending(self, refusal: Refusal) -> bytes | None:
        self.measure()
        if self.in_tool_call or self._fragment:
            return None
        envelope = {**self.EMPTY, "created": 0, "model": self._intent.model, **self._envelope}
        open_choices = [index for index, one in self._choices.items() if not one.finished]
        if not self._choices:
            open_choices = list(range(min(self._intent.choices, 128)))
        closing = [self._closing(index) for index in sorted(open_choices)]
        events = [sse({**envelope, "choices": closing, "lava": lava_member(refusal)})] if closing else []
        if self._intent.asks_usage:
            events.append(sse({**envelope, "choices": [], "usage": self._usage_so_far(refusal)}))
        return b"".join([*events, b"data: [DONE]\n\n"])

    def _usage_so_far(self, refusal: Refusal) -> dict[str, int]:
        incoming, outgoing = counted_tokens(self, self._intent, refusal)
        return {"prompt_tokens": incoming, "completion_tokens": outgoing, "total_tokens": incoming + outgoing}


class _Choice:
    __slots__ = ("begun", "finished", "in_tool_call")

    def __init__(self) -> None:
        self.begun = False
        self.finished = False
        self.in_tool_call = False


_ENVELOPE = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "provider")

_CARRIES_MORE = re.compile(
    rb'"(?:usage|error|x_groq|finish_reason)"\s*:\s*[^n\s]|"(?:name|function_call|audio)"\s*:\s*[^n\s]'
    rb'|"choices"\s*:\s*\[\s*\]|\[DONE\]|^event:',
    re.MULTILINE,
)
"""Marks of a chunk that may carry figures, an ending, an error or the start of a tool call: anything but null."""


def _usage_of(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The usage block of a body or a chunk. Groq sends it in `x_groq` first and repeats it: the same figures twice.
    Moonshot's older streams have it inside the choice."""
    usage = mapping(value.get("usage")) or mapping(mapping(value.get("x_groq")).get("usage"))
    if not usage and (choices := sequence(value.get("choices"))):
        usage = mapping(mapping(choices[0]).get("usage"))
    return usage


def _hear(meter: Known, said: Mapping[str, Any], *, new: bool) -> tuple[bool, bool]:
    """Count what a delta or a message says. (it says something, it is within a tool call)."""
    spoken = called = False
    for key in SPOKEN:
        text = said.get(key)
        if key == "reasoning" and said.get("reasoning_content"):
            continue  # some hosts send the same thought under both names
        if isinstance(text, str) and text:
            meter.words(text)
            spoken = True
        elif key == "content":
            for part in sequence(text):  # some providers answer in parts, thinking among them
                spoken |= _hear_part(meter, mapping(part))
    if spoken and new:
        meter.block()
    audio = mapping(said.get("audio"))
    meter.words(audio.get("transcript"))
    if isinstance(data := audio.get("data"), str):
        meter.extra_tokens += len(data) * 3 // 4 // 2_400  # 24 kHz, 16 bit, 20 tokens a second
    calls = [mapping(call) for call in sequence(said.get("tool_calls"))]
    if isinstance(legacy := said.get("function_call"), dict):
        calls.append({"id": "function_call" if legacy.get("name") else None, "function": legacy})
    for call in calls:
        called = True
        function = mapping(call.get("function")) or mapping(call.get("custom"))
        if call.get("id") or function.get("name"):
            meter.extra_tokens += EXTRA_PER_TOOL_CALL
            meter.words(function.get("name"))
        meter.words(function.get("arguments"))
        meter.words(function.get("input"))
    return spoken, called


def _hear_part(meter: Known, part: Mapping[str, Any]) -> bool:
    text = part.get("text")
    meter.words(text)
    inner = part.get("thinking")
    meter.words(inner)
    for one in sequence(inner):
        meter.words(mapping(one).get("text"))
    return bool(text or inner)


def _only_text(choice: Mapping[str, Any]) -> bytes | None:
    """The key of the string that grows, if this choice has nothing else to say."""
    delta = choice.get("delta")
    if not isinstance(delta, dict) or choice.get("finish_reason"):
        return None
    said = {key: value for key, value in delta.items() if value is not None and key != "role"}
    if len(said) != 1:
        return None
    key, value = next(iter(said.items()))
    if isinstance(key, str) and key in SPOKEN and isinstance(value, str):
        return key.encode()
    if key == "tool_calls" and isinstance(value, list) and len(value) == 1:
        call = mapping(value[0])
        function = mapping(call.get("function"))
        if not call.get("id") and set(function) == {"arguments"} and isinstance(function["arguments"], str):
            return b"arguments"
    return None


def counted_tokens(meter: EventMeter, intent: Intent, refusal: Refusal) -> tuple[int, int]:
    """(input, output) tokens for the usage block of a stream that was cut: the caller's figures where `details` has
    them, else what the provider has said so far, else counted from the text."""
    given = refusal.details
    reading = meter.reading
    incoming = count(given.get("input_tokens"))
    if incoming is None and reading is not None:
        incoming = reading.input_tokens
    if incoming is None:
        incoming = -(-intent.text.hundredths // 100) + 4 * intent.text.parts + intent.media_tokens
    outgoing = count(given.get("output_tokens"))
    if outgoing is None:
        outgoing = -(-meter.content.hundredths // 100) + meter.extra_tokens
    return incoming, outgoing
