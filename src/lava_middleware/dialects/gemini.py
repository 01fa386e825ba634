"""This file knows how to speak Gemini's generateContent, at once and as a stream of either framing.

https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..core.intent import Intent
from .body import WholeBodyMeter
from .dialect import Refusal
from .gather import Gathered
from .gemini_errors import gemini_refusal
from .gemini_request import either, gather_content, gather_tools, spelled
from .gemini_usage import gemini_outline, gemini_usage, overlaid, searches_of, tier_of
from .json_array import ArraySplitter
from .jsons import count, encoded, mapping, parsed, sequence, text_or_none
from .known import Known, reason_of
from .openai_chat import EXTRA_PER_TOOL_CALL, counted_tokens
from .openai_errors import lava_member
from .openai_request import cap_of, choices_of, unreadable
from .sse import is_event_stream
from .stream import EventMeter, sse
from .thinking import gemini_hides_thoughts

IMAGE_TOKENS = 1_290
"""Tokens of one generated image of standard size.
https://ai.google.dev/gemini-api/docs/image-generation#aspect_ratios"""
AUDIO_BYTES_PER_TOKEN = 1_920
"""Generated speech: 24 kHz, 16 bit, 25 tokens a second."""


class GeminiGenerate:
    """generateContent, and with `streams` streamGenerateContent: which of them a request wants, its path says."""

    operation = "chat"

    def __init__(self, *, streams: bool = False) -> None:
        self._streams = streams
        self.name = "gemini.stream" if streams else "gemini.generate"

    def read_request(self, body: Any, path_model: str | None) -> Intent:
        if not isinstance(body, dict) or not isinstance(body.get("contents"), list | dict | str):
            return replace(unreadable(self.operation, path_model), stream=self._streams)
        model = path_model or text_or_none(body.get("model"))
        config = mapping(either(body, "generationConfig"))
        gathered = Gathered()
        gather_content(gathered, body["contents"])
        gather_content(gathered, either(body, "systemInstruction"))
        for name in ("responseSchema", "responseJsonSchema", "stopSequences"):
            gathered.text(either(config, name))
        gathered.unseen |= bool(either(body, "cachedContent"))
        tools, server_tools = gather_tools(gathered, body.get("tools"))
        return Intent(
            operation=self.operation,
            model=model,
            stream=self._streams,
            text=gathered.weight(),
            media_tokens=gathered.media_tokens,
            unseen_input=gathered.unseen,
            tools=tools,
            server_tools=server_tools,
            output_tokens_max=cap_of(either(config, "maxOutputTokens")),
            choices=choices_of(either(config, "candidateCount")),
            hidden_reasoning=gemini_hides_thoughts(model, mapping(either(config, "thinkingConfig"))),
            asks_usage=True,
            service_tier=text_or_none(either(body, "serviceTier")),
            refuse=gathered.refuse,
        )

    def with_cap(self, body: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
        where = spelled(body, "generationConfig")
        config = dict(mapping(body.get(where)))
        config[spelled(config, "maxOutputTokens")] = output_tokens
        return {**body, where: config}

    def asking_usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(body)  # every chunk carries it

    def body_meter(self) -> GeminiBodyMeter:
        return GeminiBodyMeter()

    def stream_meter(self, intent: Intent, *, hide_usage: bool) -> GeminiStreamMeter:
        return GeminiStreamMeter(intent)

    def is_stream(self, content_type: str) -> bool:
        """Without `alt=sse` the stream is a JSON array that grows, under the media type of any JSON."""
        if not self._streams:
            return False
        return is_event_stream(content_type) or content_type.partition(";")[0].strip().lower() == "application/json"

    def refusal(self, refusal: Refusal) -> bytes:
        return gemini_refusal(refusal)


_UNSPECIFIED = ("0", "FINISH_REASON_UNSPECIFIED")


class _Answer:
    """What a meter has heard of one answer, in one chunk or in many."""

    __slots__ = ("block", "blocked", "finished", "open_call", "searches", "usage")

    def __init__(self) -> None:
        self.block: Mapping[str, Any] = {}
        """The last `usageMetadata`."""
        self.usage: dict[str, Any] = {}
        """What all of them say together."""
        self.finished: dict[int, bool] = {}
        """Candidates by index, and whether they are finished."""
        self.searches: dict[int, int] = {}
        self.blocked = False
        """The prompt was refused: there is no candidate."""
        self.open_call = False
        """The arguments of a function call are coming in pieces."""

    def over(self, choices: int) -> bool:
        return self.blocked or (len(self.finished) >= choices and all(self.finished.values()))


def _take_chunk(meter: Known, answer: _Answer, value: Mapping[str, Any]) -> None:
    """Take what a response object says: a whole body, or one chunk. What it reports is read by _take_figures."""
    meter.response_id = text_or_none(value.get("responseId")) or meter.response_id
    meter.model = text_or_none(value.get("modelVersion")) or meter.model
    if value.get("error"):
        meter.error = True
    for candidate in sequence(value.get("candidates")):
        _take_candidate(meter, answer, mapping(candidate))
    if blocked := reason_of(mapping(value.get("promptFeedback")).get("blockReason")):
        answer.blocked, meter.finish_reason = True, meter.finish_reason or blocked
    answer.block = mapping(value.get("usageMetadata"))
    if answer.block:
        answer.usage = overlaid(answer.usage, answer.block)


def _take_figures(meter: Known, answer: _Answer, *, choices: int) -> None:
    meter.service_tier = tier_of(answer.usage) or meter.service_tier
    reading = gemini_usage(answer.usage, answer.block, sum(answer.searches.values()) or None)
    if reading is not None:
        meter.reading, meter.reading_final = reading, answer.over(choices)


def _take_candidate(meter: Known, answer: _Answer, candidate: Mapping[str, Any]) -> None:
    index = count(candidate.get("index")) or 0
    begun = index in answer.finished
    if not begun and len(answer.finished) < 1_024:
        answer.finished[index] = False
    parts = mapping(candidate.get("content")).get("parts")
    if parts and not begun:
        meter.block()
    for part in parts if isinstance(parts, list) else [parts]:
        _hear_part(meter, answer, mapping(part))
    if searches := searches_of(candidate, meter.model):
        answer.searches[index] = max(searches, answer.searches.get(index, 0))
    if (reason := reason_of(candidate.get("finishReason"))) is not None and reason not in _UNSPECIFIED:
        answer.finished[index] = len(answer.finished) < 1_024 or index in answer.finished
        if index == 0 or meter.finish_reason is None:
            meter.finish_reason = reason


def _hear_part(meter: Known, answer: _Answer, part: Mapping[str, Any]) -> None:
    """Count one part. What Google's own tools give back is input of the next pass, not output."""
    meter.words(part.get("text"))
    meter.words(mapping(part.get("executableCode")).get("code"))
    if isinstance(call := part.get("functionCall"), dict):
        if call.get("name"):
            meter.extra_tokens += EXTRA_PER_TOOL_CALL
            meter.words(call["name"])
        for key in ("args", "partialArgs"):
            if given := call.get(key):
                meter.words(encoded(given).decode("utf-8", "replace"))
        answer.open_call = call.get("willContinue") is True
    if isinstance(blob := part.get("inlineData"), dict):
        kind, data = text_or_none(blob.get("mimeType")) or "", blob.get("data")
        size = len(data) * 3 // 4 if isinstance(data, str) else 0
        meter.extra_tokens += size // AUDIO_BYTES_PER_TOKEN if kind.startswith("audio/") else IMAGE_TOKENS


class GeminiBodyMeter(WholeBodyMeter):
    """An unary answer. An error of a stream may come as an array of one."""

    __slots__ = ()

    def _read(self, body: bytes) -> None:
        value = parsed(body)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, dict):
            self.finished = True
            self._whole(value)
            self.weigh_words()

    def _look_around(self, tail: bytes) -> None:
        if found := gemini_outline(tail):
            self._whole(found)

    def _whole(self, value: Mapping[str, Any]) -> None:
        answer = _Answer()
        _take_chunk(self, answer, value)
        _take_figures(self, answer, choices=1)
        self.reading_final = self.reading is not None


class GeminiStreamMeter(EventMeter):
    """A streamed answer: server-sent events (CRLF), or without `alt=sse` the elements of one array."""

    __slots__ = ("_answer", "_array", "_broken", "_counted", "_elements", "_opening", "_stale")

    def __init__(self, intent: Intent) -> None:
        super().__init__(intent)
        self._answer = _Answer()
        self._stale = False
        """Its figures have not been read since the last chunk."""
        self._array: ArraySplitter | None = None
        """Where it is an array. Its first sign tells."""
        self._opening: bytes | None = b""
        """Blanks before that sign; None: it has been seen."""
        self._elements = 0
        """Elements of the array that were taken."""
        self._counted = False
        """The last event was one."""
        self._broken = False
        """A part of an element has been passed on before the rest of it was there."""

    @property
    def in_tool_call(self) -> bool:
        return self._answer.open_call

    # Framing ---------------------------------------------------------------------------------------------------------

    def split(self, data: bytes) -> list[bytes]:
        if self._opening is not None:
            data = self._opening + data
            sign = data.lstrip(b" \t\r\n\xef\xbb\xbf")[:1]
            self._opening = None if sign else data
            if not sign:
                return []
            if sign in b"[{":
                self._array = ArraySplitter()
        return self._splitter.split(data) if self._array is None else self._array.split(data)

    def rest(self) -> bytes:
        opening, self._opening = self._opening or b"", self._opening and b""
        if self._array is None:
            return opening + super().rest()
        self._broken = True
        return self._array.rest()

    @property
    def tail_bytes(self) -> int:
        kept = self._splitter.kept if self._array is None else self._array.kept
        return kept + len(self._opening or b"")

    def _is_whole(self, event: bytes) -> bool:
        if self._array is None:
            return super()._is_whole(event)
        if self._broken:
            data = self._fields(event)[1]
            self._broken = data not in (b"", b"]") and not isinstance(parsed(data), dict)
        return not self._broken

    def _fields(self, event: bytes) -> tuple[bytes, bytes]:
        return super()._fields(event) if self._array is None else (b"", event.strip(_BETWEEN_ELEMENTS))

    def take(self, event: bytes) -> bytes | None:
        if self._array is not None:
            self._counted = event.endswith(b"}")
            self._elements += self._counted
        return super().take(event)

    def untake(self) -> None:
        self._elements -= self._counted
        self._counted = False
        super().untake()

    # Content ---------------------------------------------------------------------------------------------------------

    def _plain(self, event: bytes) -> bytes | None:
        return None  # every chunk carries figures

    def _may_wait(self, event: bytes) -> bool:
        return not any(sign in event for sign in _CARRIES_MORE) and not event.endswith(b"]")

    def _read(self, event: bytes, parse: Callable[[bytes], Any]) -> None:
        if self._array is not None and self._fields(event)[1] == b"]":
            self.finished = True
        else:
            super()._read(event, parse)

    def _event(self, name: bytes, value: Mapping[str, Any], raw: bytes) -> None:
        _take_chunk(self, self._answer, value)
        self._stale = True
        if self._answer.over(self._intent.choices):
            self._take_figures()
            self.finished |= bool(self._answer.block) or self._answer.blocked

    def _take_figures(self) -> None:
        """Figures come in every chunk; they are read when somebody wants to know them."""
        if self._stale:
            self._stale = False
            _take_figures(self, self._answer, choices=self._intent.choices)

    def measure(self) -> None:
        super().measure()
        self._take_figures()

    def ending(self, refusal: Refusal) -> bytes | None:
        self.measure()
        if self.in_tool_call or self._fragment:
            return None
        known = self._answer.finished or dict.fromkeys(range(min(self._intent.choices, 128)), False)
        nothing = {"parts": [{"text": ""}], "role": "model"}
        candidates = [
            {"content": nothing, "finishReason": "MAX_TOKENS", "index": index}
            for index, finished in sorted(known.items())
            if not finished
        ]
        incoming, outgoing = counted_tokens(self, self._intent, refusal)
        usage = {"promptTokenCount": incoming, "candidatesTokenCount": outgoing, "totalTokenCount": incoming + outgoing}
        chunk: dict[str, Any] = {"candidates": candidates, "usageMetadata": usage}
        chunk |= {"modelVersion": self.model or self._intent.model, "responseId": self.response_id}
        chunk["lava"] = lava_member(refusal)
        if self._array is None:
            return sse(chunk)
        return (b",\r\n" if self._elements else b"[") + encoded(chunk) + b"\n]"


_BETWEEN_ELEMENTS = b" \t\r\n,[\xef\xbb\xbf"

_CARRIES_MORE = (b'"finishReason"', b'"error"', b'"promptFeedback"', b'"functionCall"')
"""Marks of a chunk that may carry an ending, an error or a tool call. Figures alone can wait: the last ones count."""
