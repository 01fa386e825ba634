"""This file knows what settled calls teach: how estimates relate to what providers report, per model.

Only calls whose input is wholly visible and whose usage was reported teach. What is learned makes estimates of
unreported usage better; it is an argument of them, never of `decide`, and it is bounded: the last calls of each model.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field

KEPT = 64
"""Calls per model that count. Each is (reported, estimated) for input and output."""
MODELS = 512
"""Models remembered; the one taught longest ago leaves first."""
LEAST, MOST = 200, 5_000
"""Bounds of a learned ratio, in thousandths."""
ENOUGH = 200
"""Estimated output tokens of a model's calls from which on their ratio also says when a stream is to be cut."""
MARGIN = 1_100
"""By how much such a cut comes early, in thousandths."""


@dataclass(slots=True)
class Lessons:
    """What one model's last calls say."""

    inputs: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=KEPT))
    outputs: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=KEPT))
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Reported output tokens of whole answers."""


def _ratio(pairs: deque[tuple[int, int]]) -> int:
    reported, estimated = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    return max(LEAST, min(MOST, reported * 1000 // estimated)) if estimated else 1000


@dataclass(slots=True)
class Learned:
    """Lessons by model. Not thread-safe in a strict sense: a lost lesson costs nothing but accuracy."""

    models: dict[str, Lessons] = field(default_factory=dict)

    def teach(
        self, model: str, *, inputs: tuple[int, int] | None, outputs: tuple[int, int] | None, length: int
    ) -> None:
        """Add one settled call: (reported, estimated) tokens in and out, and its reported output."""
        lessons = self.models.pop(model, None) or Lessons()
        if inputs and inputs[1] > 0:
            lessons.inputs.append(inputs)
        if outputs and outputs[1] > 0:
            lessons.outputs.append(outputs)
        lessons.lengths.append(length)
        self.models[model] = lessons
        while len(self.models) > MODELS:
            self.models.pop(next(iter(self.models)))

    def input_tokens(self, model: str, expected: int) -> int:
        """The expected estimate times what this model's calls taught."""
        lessons = self.models.get(model)
        return -(-expected * _ratio(lessons.inputs) // 1000) if lessons else expected

    def output_tokens(self, model: str, expected: int) -> int:
        lessons = self.models.get(model)
        return -(-expected * _ratio(lessons.outputs) // 1000) if lessons else expected

    def output_bound(self, model: str) -> int | None:
        """Thousandths of the expected estimate that bound what a stream delivers; None: not taught enough."""
        lessons = self.models.get(model)
        if lessons is None or sum(estimated for _, estimated in lessons.outputs) < ENOUGH:
            return None
        return _ratio(lessons.outputs) * MARGIN // 1000

    def mean_output(self, model: str) -> int | None:
        """Mean output of this model's whole answers; None: not taught."""
        lessons = self.models.get(model)
        return sum(lessons.lengths) // len(lessons.lengths) if lessons and lessons.lengths else None

    def to_text(self) -> str:
        return json.dumps(
            {name: [list(one.inputs), list(one.outputs), list(one.lengths)] for name, one in list(self.models.items())},
            separators=(",", ":"),
        )

    @classmethod
    def from_text(cls, text: str) -> Learned:
        learned = cls()
        for name, (inputs, outputs, lengths) in json.loads(text).items():
            learned.models[name] = Lessons(
                deque((tuple(pair) for pair in inputs), KEPT),
                deque((tuple(pair) for pair in outputs), KEPT),
                deque(lengths, KEPT),
            )
        return learned
