"""This file knows which models think without showing it, so that what passes does not show what is spent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .jsons import mapping

_HIDES = re.compile(
    r"^(?:ft:)?o\d(?:$|[-:.])"  # o1, o3-mini, o4-mini-2025-04-16, ft:o4-mini
    r"|^(?:ft:)?gpt-(?:[5-9]|\d\d)(?!.*chat)"  # gpt-5 and later, but for the chat models
    r"|^codex|^computer-use|deep-research"
    r"|^gemini-(?:2\.5|[3-9])"
    r"|^grok-(?:[4-9]|code)"
)
_SHOWS = re.compile(r"gpt-oss")

_CLAUDE_SHOWS = re.compile(r"claude-(?:[12]|instant|v\d|3)")
"""Up to Claude 3.7 what streams is the thinking itself; since Claude 4 a summary, while all of it is billed.
https://docs.claude.com/en/docs/build-with-claude/extended-thinking#summarized-thinking"""

_CLAUDE_THINKS_ONLY_IF_ASKED = re.compile(r"claude-(?:[123]|instant|v\d)|-4(?:$|[-@:.])")
"""Claude 5 thinks unless it is told not to."""


def hides_thoughts(model: str | None, body: Mapping[str, Any]) -> bool:
    """Whether an OpenAI-format request may spend output tokens that its stream does not show."""
    name = (model or "").rpartition("/")[2].lower()
    if _SHOWS.search(name):
        return body.get("reasoning_format") == "hidden" or body.get("include_reasoning") is False
    effort = body.get("reasoning_effort", mapping(body.get("reasoning")).get("effort"))
    if effort == "none":
        return False
    asked = effort not in (None, "default")
    withheld = body.get("reasoning_format") == "hidden" or body.get("include_reasoning") is False
    return asked or withheld or _HIDES.search(name) is not None


def claude_hides_thoughts(model: str | None, body: Mapping[str, Any]) -> bool:
    """Whether a Claude request may spend output tokens that its stream does not show."""
    name = (model or "").lower()
    thinking = mapping(body.get("thinking"))
    kind = thinking.get("type")
    if kind == "disabled":
        return False
    if kind is None:
        return not _CLAUDE_THINKS_ONLY_IF_ASKED.search(name)
    return thinking.get("display") == "omitted" or not _CLAUDE_SHOWS.search(name)


_GEMINI_NEVER_THINKS = re.compile(
    r"gemini-(?:1|2\.0)(?!.*thinking)|gemini-pro$|gemma-[123]|learnlm|-tts|2\.5-flash-image"
)
_GEMINI_THINKS_IF_ASKED = re.compile(r"2\.5-flash-lite")
_GEMINI_MAY_STOP_THINKING = re.compile(r"2\.5-flash|flash-(?:lite-)?latest")
"""https://ai.google.dev/gemini-api/docs/thinking#set-budget"""


def gemini_hides_thoughts(model: str | None, config: Mapping[str, Any]) -> bool:
    """Whether a Gemini request may spend output tokens that its stream does not show: all it shows is a summary."""
    name = (model or "").lower()
    if _GEMINI_NEVER_THINKS.search(name):
        return False
    budget = config.get("thinkingBudget", config.get("thinking_budget"))
    if budget == 0 and _GEMINI_MAY_STOP_THINKING.search(name):
        return False
    return budget is not None or not _GEMINI_THINKS_IF_ASKED.search(name) or bool(config)
