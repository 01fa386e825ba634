"""This file knows how to set out rows for people: aligned, at most so wide, and harmless to a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ..core.money import Amount, Ticks

WIDTH = 100
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    right: bool = False
    """Numbers stand to the right."""
    gives: bool = False
    """Cut this one where the table would be too wide."""


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int = WIDTH) -> str:
    """The rows under their titles. Cells are cut with an ellipsis only where a column gives."""
    cells = [[printable(cell) for cell in row] for row in rows]
    titles = [column.title for column in columns]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for number, column in enumerate(columns):
        too_many = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        if column.gives and too_many > 0:
            widths[number] = max(len(column.title), 8, widths[number] - too_many)
    return "\n".join(_line(columns, widths, row) for row in (titles, *cells))


def _line(columns: Sequence[Column], widths: Sequence[int], row: Sequence[str]) -> str:
    shown = []
    for column, width, cell in zip(columns, widths, row, strict=True):
        cut = cell if len(cell) <= width else cell[: width - 1] + "…"
        shown.append(cut.rjust(width) if column.right else cut.ljust(width))
    return _GAP.join(shown).rstrip()


def printable(text: str) -> str:
    """Text that came from outside, with nothing in it that a terminal would obey."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "�" for sign in text)


def amounts(column: Sequence[Ticks | None]) -> list[str]:
    """Sums of credits, exact, with as many decimals each as the longest of them needs. None: an empty cell."""
    texts = ["" if ticks is None else str(Amount(ticks)) for ticks in column]
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [text and text + "0" * (decimals - len(text.partition(".")[2])) for text in texts]


def moment(microseconds: int) -> str:
    """2026-11-24 09:30:00, in UTC."""
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(microseconds: int) -> str:
    """For programs."""
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC).isoformat()


def duration(seconds: float) -> str:
    """About so long: 12 s, 3 min, 5 h, 2 days."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
