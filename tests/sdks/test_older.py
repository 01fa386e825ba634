"""The same matrix with openai 1.x, anthropic 0.x and litellm, in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .drivers import OLDER
from .matrix import cases

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("LAVA_OLDER_PYTHON") or f"{sys.prefix}-older/bin/python")
"""`make test` makes it beside its own environment."""

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="the environment with older SDKs is not there; `make test` makes it"
)


def test_every_older_sdk() -> None:
    """T3, T4, T13, T16, T17, T18. One test: the interpreter is started once, wherever it runs."""
    command = [str(PYTHON), "-W", "ignore", "-m", "tests.sdks.older"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2_000:]
    versions, *lines = map(json.loads, done.stdout.splitlines())
    assert versions["openai"].startswith("1.")
    assert versions["anthropic"].startswith("0.")
    assert [tuple(case) for *case, _ in lines] == list(cases(OLDER))
    faults = [f"{name}, {colour}, {scene}:\n{fault}" for name, colour, scene, fault in lines if fault]
    assert not faults, "\n\n".join(faults)
