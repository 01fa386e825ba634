"""This file knows what an exchange used, from what the provider reported or, failing that, from what passed."""

from __future__ import annotations

from dataclasses import dataclass

from .bound import output_tokens
from .intent import Text
from .learned import Learned
from .usage import OUTPUT_UNITS, Reading, Usage, usage_of


@dataclass(frozen=True, slots=True)
class Used:
    """Usage and how it is known."""

    usage: Usage
    others: tuple[tuple[str | None, Usage], ...]
    """Further passes the answer bills: (model, or None for the same model; usage)."""
    basis: str
    totals: dict[str, int | None]
    """The provider's own five totals as far as it reported them."""
    counted_output: int
    """Output tokens as counted from what passed (before what was learned), for lessons."""

    @property
    def input_tokens(self) -> int:
        return self.usage.input_tokens + sum(usage.input_tokens for _, usage in self.others)

    @property
    def output_tokens(self) -> int:
        return self.usage.output_tokens + sum(usage.output_tokens for _, usage in self.others)


TOTALS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


def used(
    reading: Reading | None,
    *,
    final: bool,
    others: tuple[tuple[str | None, Reading], ...],
    content: Text,
    extra_tokens: int,
    expected_input: int,
    family: str,
    learned: Learned,
    lesson: str,
) -> Used:
    """What was used. `expected_input` is the estimate of the input before what was learned; `lesson` names the model.

    A final reading is the truth (basis "reported"). Else what it does say is kept and the output is counted from what
    passed ("counted"); where nothing passed and nothing was said, the input is estimated ("estimated"). Input that a
    final reading does not name (recorded of Gemini) is not zero: it is estimated too.
    """
    counted = output_tokens(content, extra_tokens, family).expected
    further = tuple((model, usage_of(one)) for model, one in others)
    totals = {name: getattr(reading, name) for name in TOTALS} if reading is not None else {}
    if reading is not None and final:
        known = usage_of(reading)
        if reading.input_tokens is None:
            known = known + Usage(input=learned.input_tokens(lesson, expected_input))
        return Used(known, further, "reported", totals, counted)
    output = learned.output_tokens(lesson, counted)
    if reading is not None and reading.input_tokens is not None:
        known = usage_of(reading)
        parts = {unit: quantity for unit, quantity in known.items() if unit not in OUTPUT_UNITS}
        parts["output"] = max(output, known.output_tokens)
        return Used(Usage(parts), further, "counted", totals, counted)
    usage = Usage(input=learned.input_tokens(lesson, expected_input), output=output)
    return Used(usage, further, "counted" if output else "estimated", totals, counted)
