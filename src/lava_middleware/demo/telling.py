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
    """What the reader sees, in order, and the claims it rests on."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colours = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._chapters = 0
        self._proving = False
        """The last line was a claim: claims stand together, with an empty line around them."""
        self.proved = 0
        self.failed: list[str] = []

    def chapter(self, title: str) -> None:
        self._chapters += 1
        heading = f"{self._chapters}. {title}"
        self._write(f"\n{self._in(BOLD, heading)}\n{'-' * len(heading)}\n")

    def say(self, *sentences: str) -> None:
        self._write(textwrap.fill(" ".join(sentences), WIDTH, break_long_words=False, break_on_hyphens=False))

    def show(self, lines: str) -> None:
        """As it is: a table, an answer, a command."""
        self._write(lines)

    def command(self, words: str) -> None:
        self._write("\n" + self._in(DIM, f"$ {words}"))

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        self._write("\n" + table(columns, rows, WIDTH) + "\n")

    def prove(self, claim: str, holds: bool) -> None:
        """A claim, and whether what was measured bears it out."""
        self._turn(proving=True)
        if holds:
            self.proved += 1
        else:
            self.failed.append(claim)
        mark = self._in(GREEN, "proved") if holds else self._in(RED, "FAILED")
        lines = textwrap.wrap(claim, WIDTH - 10, break_on_hyphens=False)
        self._out.write(f"  {mark}  " + "\n          ".join(lines) + "\n")
        self._out.flush()

    def verdict(self, text: str) -> None:
        self._write("\n" + self._in(RED if self.failed else GREEN, text))

    def _in(self, colour: str, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours else text

    def _turn(self, *, proving: bool) -> None:
        if proving is not self._proving:
            self._out.write("\n")
        self._proving = proving

    def _write(self, text: str) -> None:
        if self._proving:
            text = text.removeprefix("\n")
        self._turn(proving=False)
        self._out.write(text + "\n")
        self._out.flush()


class Running:
    """A table whose rows appear one by one, as things happen."""

    def __init__(self, telling: Telling, *titles: str, width: int = 12) -> None:
        self._telling, self._width = telling, width
        telling.show("")
        self.row(*titles)

    def row(self, *cells: str) -> None:
        self._telling.show("  ".join(cell.rjust(self._width) for cell in cells))
