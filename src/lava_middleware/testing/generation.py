"""This file knows how to make a script and a request into what the model says, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .ask import Ask
from .script import OUTPUT_TOKENS, UNCAPPED_TOKENS, Script
from .served import Figures
from .tokens import count, prose_token, tokens

THINKING, TEXT, CALL, ARGUMENTS = "thinking", "text", "call", "arguments"


class Piece(NamedTuple):
    """A part of the output: thinking, text, the name that opens a tool call, or a part of its arguments."""

    kind: str
    call: int
    """Which tool call; 0 for text."""
    text: str
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer of the model, cut to the request's cap."""

    pieces: tuple[Piece, ...]
    reasoning_tokens: int
    """Hidden; counted under the cap like the rest."""
    finish: str
    """"stop", "length" or "tool_calls"."""
    endless: bool = False
    model: str | None = None
    """Whose tokens these are."""

    @property
    def visible_tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)

    @property
    def output_tokens(self) -> int:
        return self.visible_tokens + self.reasoning_tokens

    def joined(self, kind: str, index: int = 0) -> str:
        return "".join(piece.text for piece in self.pieces if piece.kind == kind and piece.call == index)

    @property
    def calls(self) -> list[tuple[str, str]]:
        """(name, arguments so far) of each tool call."""
        return [(piece.text, self.joined(ARGUMENTS, piece.call)) for piece in self.pieces if piece.kind == CALL]

    def chunks(self, tokens_per_chunk: int) -> Iterator[Piece]:
        """The pieces as they are streamed."""
        pieces: Iterable[Piece] = self.pieces
        if self.endless:
            start = len(self.pieces)
            pieces = itertools.chain(
                pieces, (Piece(TEXT, 0, prose_token(n, self.model)) for n in itertools.count(start))
            )
        for _, run in itertools.groupby(pieces, key=lambda piece: (piece.kind, piece.call)):
            while group := list(itertools.islice(run, tokens_per_chunk)):
                first = group[0]
                yield Piece(first.kind, first.call, "".join(p.text for p in group), sum(p.tokens for p in group))


def generate(script: Script, ask: Ask) -> Generation:
    cap = None if script.ignores_cap or script.endless else ask.cap
    reasoning = script.reasoning_tokens if cap is None else min(script.reasoning_tokens, cap)
    spoken = tuple(_spoken(script, ask.model))
    pieces = spoken if cap is None else _within(spoken, cap - reasoning)
    cut = len(pieces) < len(spoken) or reasoning < script.reasoning_tokens
    finish = "length" if cut else "tool_calls" if script.tool_calls else "stop"
    return Generation(pieces, reasoning, finish, script.endless, ask.model)


def _spoken(script: Script, model: str | None) -> Iterator[Piece]:
    for token in tokens(script.thinking or "", model):
        yield Piece(THINKING, 0, token)
    for token in _text(script, model):
        yield Piece(TEXT, 0, token)
    for index, call in enumerate(script.tool_calls):
        yield Piece(CALL, index, call.name, count(call.name, model))
        for token in tokens(call.arguments, model):
            yield Piece(ARGUMENTS, index, token)


def _text(script: Script, model: str | None) -> Iterable[str]:
    if script.text is not None:
        return tokens(script.text, model)
    length = script.output_tokens
    if length is None:
        length = 0 if script.tool_calls else UNCAPPED_TOKENS if script.ignores_cap else OUTPUT_TOKENS
    return (prose_token(position, model) for position in range(length))


def _within(pieces: tuple[Piece, ...], budget: int) -> tuple[Piece, ...]:
    sums = itertools.accumulate(piece.tokens for piece in pieces)
    return tuple(piece for piece, total in zip(pieces, sums, strict=True) if total <= budget)


def figures(script: Script, ask: Ask, output_tokens: int, reasoning_tokens: int) -> Figures:
    """The usage block: what was counted, where the script does not say otherwise."""
    reported = script.reported_output_tokens
    return Figures(
        input_tokens=served_input(script, ask),
        output_tokens=output_tokens if reported is None else reported,
        cached_tokens=script.cached_tokens,
        cache_write_tokens=script.cache_write_tokens,
        cache_write_1h_tokens=script.cache_write_1h_tokens,
        reasoning_tokens=reasoning_tokens,
    )


def served_input(script: Script, ask: Ask) -> int:
    return ask.input_tokens if script.input_tokens is None else script.input_tokens
