"""What an earlier process left is delivered by the next one that serves, before it makes any provider call (G8)."""

from __future__ import annotations

import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lava_middleware import Lava, LavaMiddleware
from lava_middleware.core.commands import Report


def test_the_first_request_starts_the_exporters(tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path / 'lava.db'}"
    with Lava(ledger) as before:
        before.grant("acme", "5.00")
        before.ledger.apply("acme", Report("left-behind", 1)).wait()
    lines = tmp_path / "usage.jsonl"
    with Lava(ledger, export_jsonl=str(lines)) as lava:
        app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("no provider is called here"))])
        app.add_middleware(LavaMiddleware, lava=lava)
        assert TestClient(app).get("/").status_code == 200
        until = time.monotonic() + 10
        while time.monotonic() < until and not (lines.exists() and "left-behind" in lines.read_text()):
            time.sleep(0.02)
    assert lines.read_text().count("left-behind") == 1
