"""This file knows how much a request may use: bounds for holds, estimates for charges, without a tokenizer.

Figures: tokens per UTF-8 byte over 36 corpora and eight tokenizers, and 557 recorded calls with their reported usage.
Three estimates, three uses: `cautious` for holds and cuts, `hard` where nothing may be above it, `expected` for
charges without reported usage.
"""

from __future__ import annotations

from dataclasses import dataclass

from .intent import Intent, Text

TOKENS_PER_PART = 8
TOKENS_PER_TOOL_CALL = 64

FACTORS: dict[str, tuple[int, int]] = {
    # family → (expected, cautious) factor on the byte-class estimate, in per cent
    "openai": (80, 90),
    "open": (90, 105),
    "claude": (100, 120),
    "claude-5": (130, 160),
}
"""A missing family counts as "open"."""

UNSEEN_INPUT = 128_000
"""Bound of input the request only refers to, where the model's context window is not known."""
SERVER_TOOL_INPUT = 4_096
"""Bound of what a provider's own tools add in one step; more of it is an overrun with its cause."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens three ways."""

    expected: int
    cautious: int
    hard: int


def family_of(family: str, model: str | None) -> str:
    """The tokenizer family of a model served by a provider of this family."""
    name = (model or "").lower()
    if "claude" not in name and family != "claude":
        return family
    # The tokenizer changed with Claude Opus 4.7: about 1.3 times the tokens of the ones before.
    older = ("claude-2", "claude-3", "claude-instant", "-4-0", "-4-1", "-4-5", "-4-6", "-4-2025", "claude-v")
    return "claude" if any(mark in name for mark in older) else "claude-5"


def text_tokens(text: Text, family: str) -> Estimate:
    """Tokens of the text alone."""
    expected, cautious = FACTORS.get(family, FACTORS["open"])
    framing = TOKENS_PER_PART * text.parts
    hard = text.bytes + framing
    return Estimate(
        -(-text.hundredths * expected // 10_000) + framing // 2,
        min(-(-text.hundredths * cautious // 10_000) + framing, hard),
        hard,
    )


def input_tokens(
    intent: Intent, family: str, *, framing: int, tools_framing: int, context_tokens: int | None
) -> Estimate:
    """Tokens of everything that goes in: text, media, what the provider adds, what is only referred to."""
    text = text_tokens(intent.text, family)
    added = framing + (tools_framing if intent.tools else 0) + (SERVER_TOOL_INPUT if intent.server_tools else 0)
    unseen = (context_tokens or UNSEEN_INPUT) if intent.unseen_input else 0
    most = intent.media_tokens + added
    return Estimate(
        text.expected + intent.media_tokens // 2 + (tools_framing // 4 if intent.tools else 0),
        max(text.cautious + most, unseen),
        max(text.hard + most, unseen),
    )


def output_tokens(content: Text, extra_tokens: int, family: str) -> Estimate:
    """Tokens of what came out, counted from what passed: text, 8 a block, and what is no text (64 a tool call)."""
    text = text_tokens(content, family)
    expected = -(-content.hundredths * FACTORS.get(family, FACTORS["open"])[0] // 10_000)
    return Estimate(expected + extra_tokens, text.cautious + extra_tokens, text.hard + extra_tokens)
