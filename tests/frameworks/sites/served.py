"""This file knows how to serve a site with a real server in a process of its own, beside a stand-in provider."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from lava_middleware import Lava, Record
from lava_middleware.testing import FakeProvider, Script

from ...transport.rig import eventually

ROOT = Path(__file__).parents[3]
DJANGO = "tests.frameworks.sites.django_site"
FLASK = "tests.frameworks.sites.flask_site"
WORKERS = ("--preload", "--workers", "2")

SERVERS = {
    # name → the command, without interpreter and address
    "django-uvicorn": ("uvicorn", f"{DJANGO}:asgi", "--lifespan", "off", "--log-level", "warning"),
    "django-gunicorn-threads": ("gunicorn", f"{DJANGO}:wsgi", "--threads", "8"),
    "django-gunicorn-preload": ("gunicorn", f"{DJANGO}:wsgi", "--threads", "4", *WORKERS),
    "django-runserver": ("django", "runserver", "--noreload"),
    "flask-werkzeug": ("flask", "--app", FLASK, "run"),
    "flask-gunicorn-preload": ("gunicorn", f"{FLASK}:app", "--threads", "4", *WORKERS),
}


def _command(server: str, port: int) -> list[str]:
    module, *words = SERVERS[server]
    at = {
        "uvicorn": ["--port", str(port)],
        "gunicorn": ["--bind", f"127.0.0.1:{port}"],
        "django": [f"127.0.0.1:{port}"],
        "flask": ["--port", str(port)],
    }
    return [sys.executable, "-m", module, *words, *at[module]]


@dataclass(frozen=True, slots=True)
class Site:
    server: str
    url: str
    client: httpx.Client
    provider: FakeProvider
    ledger: str
    log: Path

    @property
    def framework(self) -> str:
        return self.server.partition("-")[0]

    @property
    def is_async(self) -> bool:
        return self.server == "django-uvicorn"

    def path(self, name: str) -> str:
        """The streaming route that fits the server: Django serves only async bodies piece by piece under ASGI."""
        return f"/a{name}" if self.is_async else f"/{name}"

    def records(self, customer: str) -> list[Record]:
        """Its usage records, oldest first, once nothing is held for it."""
        with Lava(self.ledger) as lava:
            eventually(lambda: not lava.balance(customer).held, 10)
            return list(lava.records(customer))[::-1]


@contextmanager
def serving(server: str, directory: Path) -> Iterator[Site]:
    """alice and bob can pay, brook cannot."""
    ledger = f"sqlite:///{directory / 'lava.db'}"
    with Lava(ledger) as lava:
        for customer in ("alice", "bob"):
            lava.grant(customer, "1000")
    with FakeProvider(Script(output_tokens=20)) as provider:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LAVA_", "OPENAI_"))},
            "DJANGO_SETTINGS_MODULE": "tests.frameworks.sites.django_settings",
            "LAVA_LEDGER": ledger,
            "LAVA_HOSTS": f"{provider.host}=openai",
            "PROVIDER_URL": provider.openai_base_url,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        port, log = _free_port(), directory / "server.log"
        with (
            log.open("wb") as said,
            subprocess.Popen(_command(server, port), cwd=ROOT, env=environment, stdout=said, stderr=said) as running,
        ):
            try:
                url = f"http://127.0.0.1:{port}"
                _wait(url, running, log)
                with httpx.Client(base_url=url, timeout=30) as client:
                    yield Site(server, url, client, provider, ledger, log)
            finally:
                running.terminate()
                try:
                    running.wait(15)
                except subprocess.TimeoutExpired:
                    running.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and running.poll() is None:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


def of(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer token-of-{name}"}
