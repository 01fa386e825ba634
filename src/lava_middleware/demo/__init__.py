"""This file knows how to show the whole of lava_middleware at work in less than a minute: `lava demo`.

A FastAPI application (application.py) on a real socket, the real OpenAI and Anthropic SDKs, a stand-in for the
providers on another socket, a ledger in a file. Nothing is simulated but the providers, and each claim is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

NEEDED = ("anthropic", "fastapi", "openai", "uvicorn")
INSTALL = "pip install 'lava-middleware[demo]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Play it. 0: every claim was proved; 1: one was not, or something broke; 2: it cannot be played; 130: Ctrl-C."""
    options = _parser().parse_args(arguments)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"lava demo: the demo needs {', '.join(missing)}; install it with: {INSTALL}", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a terminal that cannot write a sign shows another
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # not all streams can
    try:
        directory = _directory(options.directory)
        from .play import play  # needs the extras

        return play(directory, sys.stdout)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"lava demo: {error}", file=sys.stderr)
        return 2


def _directory(named: Path | None) -> Path:
    if named is None:
        return Path(tempfile.mkdtemp(prefix="lava-demo-"))
    named = named.absolute()
    named.mkdir(parents=True, exist_ok=True)
    if any(named.iterdir()):
        raise FileExistsError(f"{named} is not empty: the demo needs a directory of its own")
    return named


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lava demo", description="See lava_middleware at work: real SDKs, a real application, a stand-in provider."
    )
    parser.add_argument(
        "--directory", type=Path, help="an empty directory for the ledger and the export (default: a temporary one)"
    )
    return parser
