"""This file knows how to tell the demo: sentences, tables, and what was proved. Colours only on a terminal."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import TextIO

from ..cli.table import Column, table

WIDTH = 100
BOLD, GREEN, RED, DIM = "1", "32", "31", "2"


class Telling:
    """What the reader sees, in order, and the claims it rests on. One empty line is between any two blocks."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colours = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._chapters = 0
        self._last = "beginning"
        """What kind of block was told last."""
        self.proved = 0
        self.failed: list[str] = []

    def chapter(self, title: str) -> None:
        self._chapters += 1
        heading = f"{self._chapters}. {title}"
        self._tell(f"{self._in(BOLD, heading)}\n{'-' * len(heading)}")

    def say(self, *sentences: str) -> None:
        """A paragraph."""
        self._tell(textwrap.fill(" ".join(sentences), WIDTH, break_long_words=False, break_on_hyphens=False))

    def show(self, lines: str) -> None:
        """As it is: an answer, an address."""
        self._tell(lines)

    def command(self, words: str, answer: str) -> None:
        self._tell(f"{self._in(DIM, f'$ {words}')}\n{answer}")

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        self._tell(table(columns, rows, WIDTH))

    def row(self, line: str) -> None:
        """One line of a table that grows."""
        self._tell(line, joins="row")

    def prove(self, claim: str, holds: bool) -> None:
        """A claim, and whether what was measured bears it out."""
        if holds:
            self.proved += 1
        else:
            self.failed.append(claim)
        mark = self._in(GREEN, "proved") if holds else self._in(RED, "FAILED")
        lines = textwrap.wrap(claim, WIDTH - 10, break_on_hyphens=False)
        self._tell(f"  {mark}  " + "\n          ".join(lines), joins="claim")

    def verdict(self, text: str) -> None:
        self._tell(self._in(RED if self.failed else GREEN, text))

    def _in(self, colour: str, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours else text

    def _tell(self, text: str, *, joins: str = "") -> None:
        """`joins`: blocks of this kind stand together."""
        if self._last != "beginning" and not (joins and joins == self._last):
            self._out.write("\n")
        self._out.write(text + "\n")
        self._out.flush()
        self._last = joins


class Running:
    """A table whose rows appear one by one, as things happen."""

    def __init__(self, telling: Telling, *titles: str, width: int = 12) -> None:
        self._telling, self._width = telling, width
        self.row(*titles)

    def row(self, *cells: str) -> None:
        self._telling.row("  ".join(cell.rjust(self._width) for cell in cells))
