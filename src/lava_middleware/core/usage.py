"""This file knows how to turn what a provider reported into disjoint units that add up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

INPUT_UNITS = ("input", "cache_read", "cache_write", "cache_write_1h", "input_audio", "cache_read_audio", "input_image")
"""Token units that come in. `input` is what no other unit names; `cache_write` has the provider's standard lifetime."""

OUTPUT_UNITS = ("output", "reasoning", "output_audio", "output_image")
"""Token units that come out. `output` is what no other unit names."""

OTHER_UNITS = ("web_search", "request")
"""Units that are not tokens: searches the provider ran, flat fees per request."""

UNITS = INPUT_UNITS + OUTPUT_UNITS + OTHER_UNITS


class Usage(Mapping[str, int]):
    """How much of each unit was used: unit → quantity, units disjoint, quantities ≥ 0; absent means zero.

    `input_tokens`, `output_tokens` and `tokens` are sums over the units.
    """

    __slots__ = ("_quantities",)

    def __init__(self, quantities: Mapping[str, int] | None = None, /, **more: int) -> None:
        merged = {**(quantities or {}), **more}
        for unit, quantity in merged.items():
            if not isinstance(quantity, int) or quantity < 0:
                raise ValueError(f"usage of {unit!r} must be a whole number of at least 0")
        self._quantities = {unit: quantity for unit, quantity in merged.items() if quantity}

    def __getitem__(self, unit: str) -> int:
        return self._quantities[unit]

    def __iter__(self) -> Iterator[str]:
        return iter(self._quantities)

    def __len__(self) -> int:
        return len(self._quantities)

    def __repr__(self) -> str:
        return f"Usage({', '.join(f'{unit}={quantity}' for unit, quantity in self._quantities.items())})"

    @property
    def input_tokens(self) -> int:
        return sum(self._quantities.get(unit, 0) for unit in INPUT_UNITS)

    @property
    def output_tokens(self) -> int:
        return sum(self._quantities.get(unit, 0) for unit in OUTPUT_UNITS)

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        units = {**self._quantities}
        for unit, quantity in other.items():
            units[unit] = units.get(unit, 0) + quantity
        return Usage(units)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a provider reported, one field a figure, in one meaning for all dialects. None: not reported.

    `input_tokens` includes cached, cache-written, audio and image tokens; `output_tokens` includes reasoning, audio
    and image tokens, whatever the provider's own totals include. The parts may exceed their total (some providers
    count them with another tokenizer): `usage_of` deals with that, the reading keeps the figures as evidence.
    """

    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    """All cache writes, whatever their lifetime."""
    cache_write_1h_tokens: int | None = None
    """The part of `cache_write_tokens` with the long lifetime."""
    input_audio_tokens: int | None = None
    cached_audio_tokens: int | None = None
    """The part of both `cached_input_tokens` and `input_audio_tokens` that is cached audio."""
    input_image_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    output_audio_tokens: int | None = None
    output_image_tokens: int | None = None
    web_searches: int | None = None
    cost_ticks: int | None = None
    """The provider's own price of the call, in ticks, where it reports one."""

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))


def _share(total: int, *parts: int | None) -> tuple[list[int], int]:
    """Each part cut to what the parts before it left of the total, and the rest."""
    shares = []
    for part in parts:
        share = min(max(part or 0, 0), total)
        shares.append(share)
        total -= share
    return shares, total


def usage_of(reading: Reading) -> Usage:
    """The reading as disjoint units whose sums are exactly its input and output totals.

    A part that exceeds its total is cut to it: the totals are what is billed
    (Grok on Azure reports 314 cached of 203 prompt tokens, OpenRouter more reasoning than completion).
    """
    cached, cached_audio = (
        reading.cached_input_tokens,
        min(reading.cached_audio_tokens or 0, reading.cached_input_tokens or 0),
    )
    written, written_1h = (
        reading.cache_write_tokens,
        min(reading.cache_write_1h_tokens or 0, reading.cache_write_tokens or 0),
    )
    incoming, text_in = _share(
        reading.input_tokens or 0,
        cached_audio,
        (cached or 0) - cached_audio,
        written_1h,
        (written or 0) - written_1h,
        (reading.input_audio_tokens or 0) - cached_audio,
        reading.input_image_tokens,
    )
    outgoing, text_out = _share(
        reading.output_tokens or 0, reading.output_audio_tokens, reading.output_image_tokens, reading.reasoning_tokens
    )
    return Usage(
        input=text_in,
        cache_read_audio=incoming[0],
        cache_read=incoming[1],
        cache_write_1h=incoming[2],
        cache_write=incoming[3],
        input_audio=incoming[4],
        input_image=incoming[5],
        output=text_out,
        output_audio=outgoing[0],
        output_image=outgoing[1],
        reasoning=outgoing[2],
        web_search=max(reading.web_searches or 0, 0),
    )
