"""This file knows how to cut text into the stand-in's tokens.

The rule is fixed, so that proofs "to the token" work without any tokenizer: from left to right, a token is at most six
ASCII letters, or three digits, or two other characters (punctuation, non-Latin script), each with at most one space
before it; what is left of a longer run of white space is one token. English prose comes out at about a quarter of a
token per byte, compact JSON at a third, as with real models.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\s?(?:[A-Za-z]{1,6}|[0-9]{1,3}|[^\sA-Za-z0-9]{1,2})|\s+(?!\S)")

_PROSE = (
    "A ledger is a memory that nobody may edit. Each line says what was decided, and the lines together say what is "
    "left. When a call begins, a part of the credit is set aside; when it ends, the true price is written down and "
    "the rest comes back. Nothing is lost when the lights go out, because the line was there before the bytes left. "
    "People forget, clocks drift, networks drop; a good book still adds up in the morning, to the last small coin. "
)


def tokens(text: str) -> list[str]:
    """The text as tokens. Joined they are the text again; a prefix of them is cut the same way when cut alone."""
    return _TOKEN.findall(text)


def count(text: str) -> int:
    return len(_TOKEN.findall(text))


_PROSE_TOKENS = tuple(tokens(_PROSE.rstrip()))


def prose_token(position: int) -> str:
    """Token number `position` of an endless, always equal piece of prose."""
    lap, place = divmod(position, len(_PROSE_TOKENS))
    token = _PROSE_TOKENS[place]
    return f" {token}" if lap and not place else token
