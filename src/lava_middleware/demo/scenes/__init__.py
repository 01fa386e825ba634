"""This file knows the order in which the demo's scenes are played."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ..stage import Stage
from ..telling import Telling
from . import aborted, agreement, books, crowd, limited, refused, stopped, streamed

Scene: TypeAlias = Callable[[Stage, Telling], None]

SCENES: tuple[tuple[str, Scene], ...] = (
    ("A streamed answer: the credit goes down while it arrives", streamed.play),
    ("A customer without credit is refused before the provider is reached", refused.play),
    ("A monthly limit of tokens is reached", limited.play),
    ("A stream is stopped when the money ends", stopped.play),
    ("A hundred calls at once by a customer who can afford ten", crowd.play),
    ("A client hangs up: what was delivered is billed", aborted.play),
    ("The books: records, a statement, the margin", books.play),
    ("Do they agree with what was served?", agreement.play),
)
