"""This file knows how to meter a stream of server-sent events at a microsecond or two an event.

Most events of a stream are one piece of text in an envelope. A dialect recognises those by comparing bytes and hands
out the text as it stands in the JSON (`_plain`). Events that carry no figures wait and are parsed together; events that
may carry figures, an ending or an error are parsed at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..core.intent import Intent, Text
from .jsons import parsed
from .known import Known
from .sse import Splitter, fields_of
from .text import weigh

BATCH = 8_192
"""Bytes that wait at most before they are weighed or parsed."""

LARGEST_FRAGMENT = 16 * 1024 * 1024
"""Bytes of one event that went through in pieces and are kept to be read when it is complete."""

BACKSLASH = 0x5C


class EventMeter(Known):
    """The machinery of every stream of server-sent events; a dialect says what the events mean."""

    __slots__ = (
        "_added",
        "_fragment",
        "_hidden",
        "_intent",
        "_last",
        "_literal_bytes",
        "_literals",
        "_pending",
        "_pending_bytes",
        "_splitter",
        "_word_bytes",
        "latest",
        "unmeasured",
    )

    def __init__(self, intent: Intent) -> None:
        super().__init__()
        self._intent = intent
        self._splitter = Splitter()
        self._literals: list[bytes] = []
        """Insides of JSON strings, not weighed yet."""
        self._literal_bytes = 0
        self._word_bytes = 0
        """Bytes of parsed events whose words are not weighed yet."""
        self._pending: list[bytes] = []
        """Whole events, not parsed yet."""
        self._pending_bytes = 0
        self._fragment = b""
        """The beginning of an event of which a part has been passed on already."""
        self._hidden = False
        self._last: bytes | None = None
        """The literal of the last event, if it was a plain one."""
        self._added: tuple[bytes, int, int] = (b"", 0, 0)
        """(words, parts, extra tokens) that the last event added, if it was not."""
        self.latest = b""
        """The last event."""
        self.unmeasured = 0
        """Bytes taken since the last measure(): no event is more tokens than it has bytes."""

    # What a dialect says ---------------------------------------------------------------------------------------------

    def _plain(self, event: bytes) -> bytes | None:
        """The text of an event that is nothing but text, as it stands in its JSON string; None: look closer."""
        raise NotImplementedError

    def _may_wait(self, event: bytes) -> bool:
        """Whether an event carries only content, so that parsing it can wait."""
        raise NotImplementedError

    def _event(self, name: bytes, value: Mapping[str, Any], raw: bytes) -> None:
        """Take what one parsed event says."""
        raise NotImplementedError

    def _sentinel(self) -> None:
        """`data: [DONE]` was seen."""
        self.finished = True

    def _is_whole(self, event: bytes) -> bool:
        """Whether an event is complete: it may come in pieces, or be the last of a body that just stops."""
        return _is_ended(event) or _is_complete(event)

    def _fields(self, event: bytes) -> tuple[bytes, bytes]:
        """(name, data) of one event."""
        return fields_of(event)

    # What the shell calls --------------------------------------------------------------------------------------------

    def split(self, data: bytes) -> list[bytes]:
        return self._splitter.split(data)

    def rest(self) -> bytes:
        return self._splitter.rest()

    @property
    def tail_bytes(self) -> int:
        return self._splitter.kept

    def take(self, event: bytes) -> bytes | None:
        self.latest = event
        if not self._fragment and (literal := self._plain(event)) is not None:
            self._last = literal
            self._literals.append(literal)
            size = len(literal)
            self.unmeasured += size
            self._literal_bytes += size
            if self._literal_bytes > BATCH:
                self._weigh()
            return event
        self.unmeasured += len(event)
        self._last, self._added = None, _NOTHING
        return self._look_closer(event)

    def untake(self) -> None:
        """The last event taken is not passed on: forget the content it added. At most once after a take()."""
        self.measure()
        words, parts, extra = self._added if self._last is None else (_unescaped(self._last), 0, 0)
        self._last, self._added = None, _NOTHING
        off, weight = weigh(words), self._weight
        self._weight = Text(max(0, weight.bytes - off.bytes), max(0, weight.hundredths - off.hundredths))
        self._parts -= parts
        self.extra_tokens -= extra

    @property
    def content(self) -> Text:
        self.measure()
        return Text(self._weight.bytes, self._weight.hundredths, self._parts)

    def content_bound(self) -> tuple[Text, int]:
        waiting = self._literal_bytes + self._pending_bytes + sum(map(len, self._words))
        weight = self._weight
        parts = self._parts + min(len(self._pending), self._intent.choices)
        return Text(weight.bytes + waiting, weight.hundredths + 100 * waiting, parts), self.extra_tokens

    def measure(self) -> None:
        self._read_pending()
        self._weigh()
        self.unmeasured = 0

    # How it is done --------------------------------------------------------------------------------------------------

    def _look_closer(self, event: bytes) -> bytes | None:
        whole, passed_on = event, bool(self._fragment)
        if passed_on:
            whole, self._fragment = self._fragment + event, b""
        if not self._is_whole(whole):
            self._fragment = whole if len(whole) <= LARGEST_FRAGMENT else b""
            return event
        if self._may_wait(whole):
            self._pending.append(whole)
            self._pending_bytes += len(whole)
            if self._pending_bytes > BATCH:
                self.measure()
            return event
        self._read_pending()
        self._read(whole, parsed)
        self._word_bytes += len(whole)
        if self._word_bytes > BATCH:
            self._weigh()
        if self._hidden:
            self._hidden = False
            return event if passed_on else None
        return event

    def _read_pending(self) -> None:
        """Parse all events that wait as one array: a third of the cost of parsing them one by one."""
        if not self._pending:
            return
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        datas = [data for event in pending if (data := self._fields(event)[1])]
        together = parsed(b"[" + b",".join(datas) + b"]")
        if isinstance(together, list) and len(together) == len(datas) == len(pending):
            for event, value in zip(pending, together, strict=True):
                self._read(event, partial(_given, value))
        else:
            for event in pending:
                self._read(event, parsed)

    def _read(self, event: bytes, parse: Callable[[bytes], Any]) -> None:
        name, data = self._fields(event)
        if not data and event.lstrip()[:1] == b"{":
            data = event  # an error as plain JSON under the content type of a stream
        if not data:
            return
        if data.strip() == b"[DONE]":
            self._sentinel()
            return
        value = parse(data)
        if isinstance(value, dict):
            spoken, parts, extra = len(self._words), self._parts, self.extra_tokens
            try:
                self._event(name, value, event)
            except Exception:  # a mistake of ours must not break the application's answer (G7); the tests want none
                self.misread += 1
            self._added = (b"".join(self._words[spoken:]), self._parts - parts, self.extra_tokens - extra)

    def _weigh(self) -> None:
        if self._literals:
            self._words.append(_unescaped(b"".join(self._literals)))
            self._literals.clear()
            self._literal_bytes = 0
        self.weigh_words()
        self._word_bytes = 0


_NOTHING = (b"", 0, 0)


def _given(value: Any, _: bytes) -> Any:
    return value


def _is_ended(event: bytes) -> bool:
    """Whether a blank line ends it."""
    return event.endswith((b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r", b"\n\r\n"))


def _is_complete(event: bytes) -> bool:
    """Whether an event that no blank line ends can be read all the same: the last one of a body that just stops."""
    data = fields_of(event)[1] or event
    return data.strip() == b"[DONE]" or isinstance(parsed(data), dict)


def _unescaped(literal: bytes) -> bytes:
    """The UTF-8 text of the inside of a JSON string."""
    if BACKSLASH not in literal:
        return literal
    try:
        text: str = json.loads(b'"' + literal + b'"', strict=False)
    except ValueError:
        return literal  # not UTF-8: its bytes are counted as they are
    return text.encode("utf-8", "surrogatepass")


def literal_end(event: bytes, start: int) -> int:
    """Where the JSON string whose inside begins at `start` ends: the first quote that no backslash escapes, or -1."""
    end = event.find(b'"', start)
    while end > start and event[end - 1] == BACKSLASH:
        before = end - 1
        while before > start and event[before - 1] == BACKSLASH:
            before -= 1
        if (end - before) % 2 == 0:
            break
        end = event.find(b'"', end + 1)
    return end


def sse(value: Mapping[str, Any], name: str = "") -> bytes:
    """One server-sent event, as OpenAI (without a name) and Anthropic (with one) write it."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode("utf-8", "surrogatepass")
