"""This file knows how to play the demo from its first sentence to its verdict."""

from __future__ import annotations

import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from .scenes import SCENES
from .stage import MARKUP, Stage, staged
from .surroundings import alone, listening
from .telling import Telling


def play(directory: Path, out: TextIO) -> int:
    """0 if every claim was proved."""
    tell = Telling(out)
    began = time.monotonic()
    with alone(), listening() as log, staged(directory, log) as stage:
        _introduce(stage, tell)
        for title, scene in SCENES:
            tell.chapter(title)
            scene(stage, tell)
    for line in log.errors:
        tell.prove(f"nothing went wrong behind the scenes: {line}", False)
    _conclude(tell, directory, time.monotonic() - began)
    return 1 if tell.failed else 0


def _introduce(stage: Stage, tell: Telling) -> None:
    sdks = " and ".join(f"{name} {version(name)}" for name in ("openai", "anthropic"))
    tell.say(
        "lava_middleware gates, meters and bills the calls that an application makes to AI providers, inside the",
        f"application. Here a FastAPI application under uvicorn calls with {sdks}, unchanged. The only thing that is",
        "not real is the provider: a stand-in on this machine, which keeps a log of what it serves.",
    )
    tell.show(
        f"  application   {stage.url}\n"
        f"  stand-in      {stage.provider.url}\n"
        f"  ledger        {stage.directory / 'lava.db'}\n"
        f"  prices        the shipped price list, sold at cost x {MARKUP}"
    )


def _conclude(tell: Telling, directory: Path, seconds: float) -> None:
    if tell.failed:
        tell.verdict(f"{len(tell.failed)} of {tell.proved + len(tell.failed)} claims FAILED:")
        for claim in tell.failed:
            tell.say(f"- {claim}")
    else:
        tell.verdict(f"All {tell.proved} claims were proved, in {seconds:.0f} seconds.")
    tell.show(
        "The ledger is kept. Look at it, for example, with\n"
        f"  {_lava()} statement delta --ledger sqlite:///{directory / 'lava.db'}\n"
        f"and delete it with\n  rm -r {directory}"
    )


def _lava() -> str:
    """How to call the command from here."""
    beside = Path(sys.executable).parent / "lava"
    if shutil.which("lava") or not beside.exists():
        return "lava"
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
