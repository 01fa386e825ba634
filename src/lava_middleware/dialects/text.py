"""This file knows how to weigh text without a tokenizer, by classes of bytes."""

from __future__ import annotations

import re

from ..core.intent import Text

_LETTERS = bytes(range(65, 91)) + bytes(range(97, 123))
_DIGITS = b"0123456789"
_SPACE = b" \t\n\r\v\f"
_WIDE = bytes(range(128, 256))

LETTER, DIGIT, PUNCTUATION, SPACE, WIDE = 30, 100, 75, 5, 50
"""Hundredths of a token per byte of each class, measured against six tokenizers over 36 corpora: on natural language,
code and JSON the sum was never below o200k, and 1.0 to 1.9 times the others."""

PACKED = 95
"""Hundredths per byte of base64 and the like, which no tokenizer has words for."""

SHORTEST_PACKED = 200
"""Bytes without a space or punctuation from which a run counts as packed."""

_PACKED_SIGNS = _LETTERS + _DIGITS + b"+/=_-"
_MARK_PACKED = bytes(97 if sign in _PACKED_SIGNS else 32 for sign in range(256))
_RUN = b"a" * SHORTEST_PACKED
_PACKED_RUNS = re.compile(rb"a{%d,}" % SHORTEST_PACKED)


def weigh(text: str | bytes, parts: int = 0) -> Text:
    """The weight of text; `parts` says how many messages or blocks it comes in."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    hundredths = _by_class(raw)
    if len(raw) >= SHORTEST_PACKED and _RUN in (marked := raw.translate(_MARK_PACKED)):
        for run in _PACKED_RUNS.finditer(marked):
            hundredths += max(0, PACKED * (run.end() - run.start()) - _by_class(raw[run.start() : run.end()]))
    return Text(len(raw), hundredths, parts)


def _by_class(raw: bytes) -> int:
    no_letters = raw.translate(None, _LETTERS)
    no_spaces = no_letters.translate(None, _SPACE)
    no_digits = no_spaces.translate(None, _DIGITS)
    punctuation = len(no_digits.translate(None, _WIDE))
    return (
        LETTER * (len(raw) - len(no_letters))
        + SPACE * (len(no_letters) - len(no_spaces))
        + DIGIT * (len(no_spaces) - len(no_digits))
        + WIDE * (len(no_digits) - punctuation)
        + PUNCTUATION * punctuation
    )
