"""This file knows how to measure in pairs and how to show one line of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Line:
    """One measurement beside its aim."""

    name: str
    what: str
    value: float
    unit: str
    aim: str
    more: dict[str, float] | None = None

    @property
    def shown(self) -> str:
        figure = f"{self.value:,.0f}" if self.value >= 1_000 else f"{self.value:,.3g}"
        return f"{figure} {self.unit}".strip()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "aim": self.aim,
            **({"more": self.more} if self.more else {}),
        }


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def paired(bare: Callable[[], float], ours: Callable[[], float], *, pairs: int, warm: int = 20) -> tuple[float, float]:
    """(median seconds bare, median of the paired differences), the two taking turns."""
    for _ in range(warm):
        bare(), ours()
    seconds, differences = [], []
    for number in range(pairs):
        if number % 2:
            with_us, without = ours(), bare()
        else:
            without, with_us = bare(), ours()
        seconds.append(without)
        differences.append(with_us - without)
    return statistics.median(seconds), statistics.median(differences)
