"""This file knows how to show a command of `lava` and what it says."""

from __future__ import annotations

import contextlib
import io
import shlex

from ..cli.main import main
from .stage import Stage
from .telling import Telling


def run(stage: Stage, tell: Telling, *words: str) -> int:
    """Its exit code. The ledger is named for it, as LAVA_LEDGER would."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main([words[0], "--ledger", stage.ledger_url, *words[1:]])
    tell.command(shlex.join(["lava", *words]), said.getvalue().rstrip())
    return code
