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
class Ratio:
    """Reported to estimated tokens over the last calls. The sums are kept, so that asking costs nothing."""

    pairs: deque[tuple[int, int]] = field(default_factory=deque)
    reported: int = 0
    estimated: int = 0

    def add(self, reported: int, estimated: int) -> None:
        if len(self.pairs) >= KEPT:
            old_reported, old_estimated = self.pairs.popleft()
            self.reported -= old_reported
            self.estimated -= old_estimated
        self.pairs.append((reported, estimated))
        self.reported += reported
        self.estimated += estimated

    @property
    def thousandths(self) -> int:
        return max(LEAST, min(MOST, self.reported * 1000 // self.estimated)) if self.estimated else 1000

    def times(self, tokens: int) -> int:
        """So many estimated tokens as they would be reported, rounded up."""
        return -(-tokens * self.thousandths // 1000)


@dataclass(slots=True)
class Lessons:
    """What one model's last calls say."""

    inputs: Ratio = field(default_factory=Ratio)
    outputs: Ratio = field(default_factory=Ratio)
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Reported output tokens of whole answers."""


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
            lessons.inputs.add(*inputs)
        if outputs and outputs[1] > 0:
            lessons.outputs.add(*outputs)
        lessons.lengths.append(length)
        self.models[model] = lessons
        while len(self.models) > MODELS:
            self.models.pop(next(iter(self.models)))

    def input_tokens(self, model: str, expected: int) -> int:
        """The expected estimate times what this model's calls taught."""
        lessons = self.models.get(model)
        return lessons.inputs.times(expected) if lessons else expected

    def output_tokens(self, model: str, expected: int) -> int:
        lessons = self.models.get(model)
        return lessons.outputs.times(expected) if lessons else expected

    def output_bound(self, model: str) -> int | None:
        """Thousandths of the expected estimate that bound what a stream delivers; None: not taught enough."""
        lessons = self.models.get(model)
        if lessons is None or lessons.outputs.estimated < ENOUGH:
            return None
        return lessons.outputs.thousandths * MARGIN // 1000

    def mean_output(self, model: str) -> int | None:
        """Mean output of this model's whole answers; None: not taught."""
        lessons = self.models.get(model)
        return sum(lessons.lengths) // len(lessons.lengths) if lessons and lessons.lengths else None

    def usual_output(self) -> int | None:
        """Mean output of the whole answers of all models, answers without output apart; None: nothing is taught."""
        lengths = [one.lengths for one in list(self.models.values())]
        answers = sum(sum(map(bool, one)) for one in lengths)
        return sum(map(sum, lengths)) // answers if answers else None

    def to_text(self) -> str:
        return json.dumps(
            {
                name: [list(one.inputs.pairs), list(one.outputs.pairs), list(one.lengths)]
                for name, one in list(self.models.items())
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_text(cls, text: str) -> Learned:
        learned = cls()
        for name, (inputs, outputs, lengths) in json.loads(text).items():
            lessons = learned.models[name] = Lessons(lengths=deque(lengths, KEPT))
            for ratio, pairs in ((lessons.inputs, inputs), (lessons.outputs, outputs)):
                for reported, estimated in pairs:
                    ratio.add(reported, estimated)
        return learned
