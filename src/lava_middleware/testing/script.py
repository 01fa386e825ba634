"""This file knows how to describe one answer of the stand-in: what is said, what is reported, and what goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .barrier import Barrier

OUTPUT_TOKENS = 40
"""What an answer says when the script does not tell."""
UNCAPPED_TOKENS = 400
"""The same for `ignores_cap`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the model wants called. `arguments` is JSON text; it is streamed in pieces."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One answer. Without arguments: 40 tokens of prose, the request's cap obeyed, usage as counted.

    A *chunk* is an event that carries output; `..._after` counts chunks. A figure left None is what was counted.
    """

    # What the model says.
    text: str | None = None
    """None: prose of `output_tokens` tokens."""
    output_tokens: int | None = None
    """Length of the prose, hidden reasoning apart. None: 40; 400 with `ignores_cap`; none beside `tool_calls`."""
    tool_calls: tuple[ToolCall, ...] = ()
    thinking: str | None = None
    """Reasoning that is shown (thinking blocks, `reasoning_content`, reasoning summaries)."""
    reasoning_tokens: int = 0
    """Reasoning that is not shown: spent before the first word, seen in the usage only."""
    ignores_cap: bool = False
    """Goes on whatever the request's cap says."""
    endless: bool = False
    """A stream goes on until the peer leaves."""
    tokens_per_chunk: int = 1

    # What it reports.
    usage: bool = True
    """False: no usage block anywhere."""
    input_tokens: int | None = None
    """All input, cached and cache-written included. It is also what was "truly served"."""
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    """The part of `cache_write_tokens` with the long lifetime (Anthropic)."""
    reported_output_tokens: int | None = None
    """A lie about the output; what was truly served does not change."""
    model: str | None = None
    """The model the answer names, where it is not the request's."""
    service_tier: str | None = None

    # When.
    barrier: Barrier | None = None
    """Kept back here before the first byte."""
    first_byte_delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    """Before each chunk."""
    confirm: Barrier | None = None
    """Kept back here after `confirm_after` chunks."""
    confirm_after: int = 1

    # In which form.
    compress: Literal["never", "accepted", "always"] = "never"
    """gzip: where the request accepts it, or even where it does not."""
    single_chunk: bool = False
    """The whole stream in one write."""
    split_bytes: int | None = None
    """The stream in writes of so many bytes, wherever that cuts."""
    keep_alive: bool = True
    informational: tuple[int, ...] = ()
    """1xx answers sent ahead of the real one."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Added to the answer's own, or instead of them."""

    # What goes wrong.
    status: int = 200
    """4xx and 5xx: an error in the provider's own shape. 3xx: a redirect to the same URL."""
    error_type: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    error_after: int | None = None
    """A stream turns into an error event after so many chunks, under status 200."""
    truncate_after: int | None = None
    """The connection is closed after so many chunks; a body is cut in half."""
    truncate_by: Literal["close", "reset"] = "close"
    stall_after: int | None = None
    """A stream falls silent after so many chunks, until the peer leaves. An answer in one body never comes."""
    close_before_answer: bool = False
    """The request is read, and the connection closed."""
    body: bytes | None = None
    """These bytes instead of an answer: garbage, half of a JSON document, somebody else's page."""
    content_type: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.output_tokens is not None:
            raise ValueError("a script has either a text or a number of output_tokens")
        if self.endless and self.single_chunk:
            raise ValueError("an endless stream cannot be one chunk")
        if self.tokens_per_chunk < 1 or (self.split_bytes is not None and self.split_bytes < 1):
            raise ValueError("tokens_per_chunk and split_bytes must be at least 1")
