"""This file knows how to hold what has been learned from one answer, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.intent import Text
from ..core.usage import Reading
from .jsons import count, text_or_none
from .text import weigh

NO_TEXT = Text()


class Known:
    """What every meter says of an answer. The dialect fills it in; see dialect.Meter for the meanings."""

    __slots__ = (
        "_parts",
        "_weight",
        "_words",
        "error",
        "extra_tokens",
        "finish_reason",
        "finished",
        "misread",
        "model",
        "others",
        "reading",
        "reading_final",
        "response_id",
        "service_tier",
    )

    def __init__(self) -> None:
        self.reading: Reading | None = None
        self.reading_final = False
        self.others: Sequence[tuple[str | None, Reading]] = ()
        self.model: str | None = None
        self.response_id: str | None = None
        self.service_tier: str | None = None
        self.finish_reason: str | None = None
        self.finished = False
        self.error = False
        self.misread = 0
        """Events or bodies that were JSON and that we failed on all the same."""
        self.extra_tokens = 0
        self._weight = NO_TEXT
        self._parts = 0
        self._words: list[bytes] = []
        """Text that came out and is not weighed yet."""

    def name(self, answer: Mapping[str, Any]) -> None:
        """Take the id, the model and the tier from where OpenAI and Anthropic both put them. The last that says
        something counts: Azure's first chunk has an empty model."""
        self.response_id = text_or_none(answer.get("id")) or self.response_id
        self.model = text_or_none(answer.get("model")) or self.model
        self.service_tier = text_or_none(answer.get("service_tier")) or self.service_tier

    def words(self, text: object) -> None:
        """Output that is text."""
        if isinstance(text, str) and text:
            self._words.append(text.encode("utf-8", "surrogatepass"))

    def block(self) -> None:
        """A block of output begins."""
        self._parts += 1

    def weigh_words(self) -> None:
        """Weigh what has been collected: once per batch, for the cost is per call."""
        if self._words:
            self._weight = self._weight + weigh(b"".join(self._words))
            self._words.clear()


def reason_of(value: object) -> str | None:
    """A finish reason: a word, or the number some providers send."""
    number = count(value)
    return text_or_none(value) or (None if number is None else str(number))
