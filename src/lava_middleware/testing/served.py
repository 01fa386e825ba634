"""This file knows how to remember what the stand-in was asked and what it truly served."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

State = Literal["arrived", "answering", "complete", "aborted", "broken"]
"""aborted: the peer left. broken: the script closed the connection."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A usage block, in one meaning for all formats: input includes what was cached, output includes reasoning."""

    input_tokens: int
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(slots=True)
class Served:
    """One request and what became of it. Holds no credentials, and no prompt unless bodies are kept."""

    serial: int
    """1 for the first request since the start or the last reset."""
    method: str
    path: str
    operation: str
    """"chat.completions", "responses", "embeddings", "messages", "generateContent" (streamed or not), "embedContent",
    "models", "count_tokens" or "unknown"."""
    model: str | None
    stream: bool
    attempt: int
    """0; more where the SDK says that it tries again."""
    cap: int | None
    """The output cap as it arrived."""
    asks_usage: bool
    """`stream_options.include_usage` as it arrived."""
    accept_encoding: str
    status: int | None = None
    input_tokens: int = 0
    """Counted when a good answer begins; 0 for errors."""
    output_tokens: int = 0
    """What was written to the socket before the peer left, with the hidden reasoning."""
    reasoning_tokens: int = 0
    """The hidden part of it."""
    reported: Figures | None = None
    """The last usage block that was written to the socket."""
    chunks: int = 0
    """Events with output that were written."""
    state: State = "arrived"
    body: bytes | None = field(default=None, repr=False)
    """The request's body, where the stand-in was told to keep them."""

    @property
    def ended(self) -> bool:
        return self.state in ("complete", "aborted", "broken")

    @property
    def aborted_after(self) -> int | None:
        """The chunks written before the peer left; None where it stayed to the end."""
        return self.chunks if self.state == "aborted" else None


@dataclass(frozen=True, slots=True)
class Totals:
    """What was served in all."""

    requests: int = 0
    answered: int = 0
    """Requests with a status of 2xx."""
    aborted: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    reported_input_tokens: int = 0
    reported_output_tokens: int = 0


def totals(log: Iterable[Served]) -> Totals:
    log = tuple(log)
    reported = [served.reported for served in log if served.reported is not None]
    return Totals(
        requests=len(log),
        answered=sum(1 for served in log if served.status is not None and 200 <= served.status < 300),
        aborted=sum(1 for served in log if served.state == "aborted"),
        input_tokens=sum(served.input_tokens for served in log),
        output_tokens=sum(served.output_tokens for served in log),
        reasoning_tokens=sum(served.reasoning_tokens for served in log),
        reported_input_tokens=sum(figures.input_tokens for figures in reported),
        reported_output_tokens=sum(figures.output_tokens for figures in reported),
    )
