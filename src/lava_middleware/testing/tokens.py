"""This file knows how to cut text into the stand-in's tokens.

The rule is fixed, so that proofs "to the token" work without any tokenizer: from left to right, a token is at most so
many ASCII letters, or three digits, or two other characters (punctuation, non-Latin script), each with at most one
space before it; what is left of a longer run of white space is one token. At six letters, English prose comes out at
about a quarter of a token per byte and compact JSON at a third, as with most models. Claude's tokens are smaller: four
letters up to version 4.6, three since 4.7 (measured per byte of English: 0.30 and 0.40 against 0.25).
"""

from __future__ import annotations

import re
from functools import cache

from ..core.bound import family_of

_LETTERS = {"claude": 4, "claude-5": 3}
"""Letters in a token; of a missing family six."""

_PROSE = (
    "A ledger is a memory that nobody may edit. Each line says what was decided, and the lines together say what is "
    "left. When a call begins, a part of the credit is set aside; when it ends, the true price is written down and "
    "the rest comes back. Nothing is lost when the lights go out, because the line was there before the bytes left. "
    "People forget, clocks drift, networks drop; a good book still adds up in the morning, to the last small coin. "
)


def tokens(text: str, model: str | None = None) -> list[str]:
    """The text as tokens. Joined they are the text again; a prefix of them is cut the same way when cut alone."""
    return _token(_letters(model)).findall(text)


def count(text: str, model: str | None = None) -> int:
    """Tokens of the text, as this model counts them: a name with "claude" in it in smaller ones than the others."""
    return len(tokens(text, model))


def prose_token(position: int, model: str | None = None) -> str:
    """Token number `position` of an endless, always equal piece of prose."""
    prose = _prose(_letters(model))
    lap, place = divmod(position, len(prose))
    token = prose[place]
    return f" {token}" if lap and not place else token


def _letters(model: str | None) -> int:
    return _LETTERS.get(family_of("", model), 6)


@cache
def _token(letters: int) -> re.Pattern[str]:
    return re.compile(rf"\s?(?:[A-Za-z]{{1,{letters}}}|[0-9]{{1,3}}|[^\sA-Za-z0-9]{{1,2}})|\s+(?!\S)")


@cache
def _prose(letters: int) -> tuple[str, ...]:
    return tuple(_token(letters).findall(_PROSE.rstrip()))
