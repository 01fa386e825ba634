"""This file knows what a dialect must be able to do: the seam between wire formats and everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.intent import Intent, Text
from ..core.usage import Reading


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request does not go out, in the terms every dialect phrases in its own error shape."""

    status: int
    code: str
    """The reason: "insufficient_credit", "limit_reached", ..."""
    message: str
    """For people: what is missing and what to do. Never a customer id."""
    retry_after_s: int | None
    details: Mapping[str, Any]
    """Machine-readable facts for a member named `lava`."""


class Meter(Protocol):
    """Reads one answer, incrementally. Everything it knows may be asked at any moment.

    A meter never raises on a provider's bytes: what it fails to understand weakens what it knows.
    """

    @property
    def reading(self) -> Reading | None:
        """The figures reported so far; None: none yet."""

    @property
    def reading_final(self) -> bool:
        """The reading is that of the whole answer: a usage chunk, a message_delta, a whole body. False while it is
        only a beginning (Anthropic's message_start: the input is final, the output is not)."""

    @property
    def others(self) -> Sequence[tuple[str | None, Reading]]:
        """Further passes the same answer bills beside `reading`: (model, or None for the same model; figures)."""

    @property
    def model(self) -> str | None:
        """As the answer names it."""

    @property
    def response_id(self) -> str | None: ...

    @property
    def service_tier(self) -> str | None: ...

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def finished(self) -> bool:
        """The dialect's terminal event was seen, or the body is complete and well formed."""

    @property
    def error(self) -> bool:
        """The answer is an error in the provider's own shape, whatever its status."""

    @property
    def content(self) -> Text:
        """The output that was delivered so far: text, tool calls' names and arguments, visible reasoning.
        `parts` counts blocks (8 tokens each); 64 tokens a tool call are in `extra_tokens`."""

    @property
    def extra_tokens(self) -> int:
        """Counted tokens that are not text: 64 a tool call, tokens of generated audio or images if known."""

    @property
    def in_tool_call(self) -> bool:
        """Cutting now would leave broken JSON arguments."""


class BodyMeter(Meter, Protocol):
    """Reads an answer that is one body (JSON)."""

    def feed(self, data: bytes) -> None: ...

    def end(self) -> None:
        """The body is complete. Safe to repeat."""


class StreamMeter(Meter, Protocol):
    """Reads an answer that is a stream of events, and says what of it may go on to the application."""

    def split(self, data: bytes) -> list[bytes]:
        """The events that `data` completes, as the raw bytes they came in. Joined with `rest()`, nothing is lost."""

    def rest(self) -> bytes:
        """At the end of the stream: what has come after the last complete event (it still counts: take() it too)."""

    @property
    def tail_bytes(self) -> int:
        """Length of the unfinished event that is kept back."""

    def take(self, event: bytes) -> bytes | None:
        """Count one event. The bytes to pass on, or None where it must be hidden (a usage chunk the application did
        not ask for). May defer parsing: then `content_bound()` grows by the event's bytes until `measure()`."""

    def untake(self) -> None:
        """The last event taken is not passed on after all: forget the content it added. At most once after a take()."""

    @property
    def unmeasured(self) -> int:
        """Bytes of text and of events taken since the last measure(): the content has grown by at most one token a
        byte. Cheaper to ask than content_bound()."""

    def content_bound(self) -> tuple[Text, int]:
        """(content, extra_tokens) so far with everything not yet parsed counted by its bytes: never too low."""

    def measure(self) -> None:
        """Parse what was deferred: afterwards `content_bound()` equals (content, extra_tokens)."""

    def ending(self, refusal: Refusal) -> bytes | None:
        """The dialect's own events that end the stream here, with finish reason `length`, the usage block if the
        application asked for one, and a `lava` member. None: it cannot be ended well here (inside a tool call)."""


class Dialect(Protocol):
    """One wire format. Stateless; one instance serves all requests."""

    name: str
    """"openai.chat", "anthropic.messages", ..."""
    operation: str
    """gen_ai.operation.name."""

    def read_request(self, body: Any, path_model: str | None) -> Intent:
        """What the request asks for. `body` is parsed JSON of any type; never raises: `Intent.refuse` says why not."""

    def with_cap(self, body: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
        """A copy of the body that caps the output (per choice) in this endpoint's own field."""

    def asking_usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the body that asks for a usage block in the stream."""

    def body_meter(self) -> BodyMeter: ...

    def stream_meter(self, intent: Intent, *, hide_usage: bool) -> StreamMeter:
        """`hide_usage`: the usage block was asked for by us, not by the application."""

    def is_stream(self, content_type: str) -> bool:
        """Whether an answer of this content type is this dialect's stream."""

    def refusal(self, refusal: Refusal) -> bytes:
        """The refusal as this provider would phrase an error of its own: JSON with a `lava` member."""
