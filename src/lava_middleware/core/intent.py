"""This file knows what a request says about what it may cost, in one form for all dialects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """The weight of text without a tokenizer. Weights add."""

    bytes: int = 0
    """UTF-8 bytes; no known tokenizer makes more tokens than bytes + 8 (facts measured over 36 corpora)."""
    hundredths: int = 0
    """Hundredths of a token by byte classes, before the model family's factor."""
    parts: int = 0
    """Messages, content parts, tool schemas: each may cost up to 8 tokens of framing."""

    def __add__(self, other: Text) -> Text:
        return Text(self.bytes + other.bytes, self.hundredths + other.hundredths, self.parts + other.parts)


@dataclass(frozen=True, slots=True)
class Intent:
    """What one request asks for, as far as money is concerned. Made by a dialect from the request."""

    operation: str
    """gen_ai.operation.name: "chat", "embeddings", "text_completion"."""
    model: str | None
    """As the body or the path names it."""
    stream: bool = False
    text: Text = Text()
    """All text the provider will read: messages, instructions, tool names, descriptions and schemas, formats."""
    media_tokens: int = 0
    """At most so many tokens for images, audio and documents that are in the request."""
    unseen_input: bool = False
    """Input the request only refers to (previous_response_id, file ids, URLs of documents, stored prompts)."""
    tools: bool = False
    """Functions are declared: providers add framing."""
    server_tools: bool = False
    """The provider runs tools of its own: input grows inside the call."""
    searches_max: int = 0
    """Searches the provider may run at most, where the request says so; 0: it does not."""
    output_tokens_max: int | None = None
    """The request's own cap on output, per choice; None: the model's maximum."""
    choices: int = 1
    """n, best_of, number of prompts: multiplies the output."""
    hidden_reasoning: bool = False
    """The model may think without streaming its thoughts: what passes does not show what is spent."""
    asks_usage: bool = False
    """The application itself asked for a usage block in the stream."""
    service_tier: str | None = None
    cache_writes: str | None = None
    """"5m" or "1h" where the request marks content for caching: the dearest rate the input can meet."""
    refuse: str | None = None
    """Why this request cannot be metered ("background", "unreadable"), else None. Refused under a money gate."""
