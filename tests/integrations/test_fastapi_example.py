"""integrations/fastapi, started for real with its one command, does what its README says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lava_middleware import Lava

EXAMPLE = Path(__file__).parents[2] / "integrations" / "fastapi"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(its address, its directory)"""
    pytest.importorskip("uvicorn")
    directory = tmp_path_factory.mktemp("example")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    command = [sys.executable, str(EXAMPLE / "app.py"), "--port", str(port)]
    with subprocess.Popen(command, cwd=directory, env=environment, stderr=subprocess.DEVNULL) as running:
        try:
            yield _answering(f"http://127.0.0.1:{port}", running), directory
        finally:
            running.send_signal(signal.SIGINT)
            assert running.wait(20) in (0, 130, -signal.SIGINT)


def _answering(url: str, running: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and running.poll() is None:
        try:
            httpx.get(f"{url}/openapi.json")
        except httpx.ConnectError:
            time.sleep(0.05)
        else:
            return url
    raise AssertionError("the example did not start")


def commands() -> list[list[str]]:
    """The curl lines of its README."""
    lines = re.findall(r"^\$ (curl .*)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def call(url: str, words: list[str]) -> httpx.Response:
    """What the curl line would send."""
    headers = dict(words[place + 1].split(": ", 1) for place, word in enumerate(words) if word == "-H")
    content = words[words.index("-d") + 1] if "-d" in words else None
    path = next(word for word in words if word.startswith("localhost:")).partition("/")[2]
    return httpx.request("POST" if content else "GET", f"{url}/{path}", headers=headers, content=content, timeout=30)


def test_the_lines_of_the_readme_do_what_it_says(served: tuple[str, Path]) -> None:
    url, directory = served
    chat, balance, refused = (call(url, words) for words in commands())
    assert chat.status_code == 200
    assert chat.headers["content-type"].startswith("text/event-stream")
    assert '"finish": "stop"' in chat.text
    assert balance.json()["available"] < "1.00"
    assert refused.status_code == 402
    assert refused.json()["code"] == "insufficient_credit"
    said = subprocess.run(
        [sys.executable, "-m", "lava_middleware", "statement", "acme"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "key welcome" in said.stdout
    assert "200 out" in said.stdout


def test_a_stranger_is_not_a_customer(served: tuple[str, Path]) -> None:
    answer = httpx.post(f"{served[0]}/chat", json={"text": "Hello?"}, headers={"authorization": "Bearer guessed"})
    assert answer.status_code == 401


def test_a_client_that_leaves_is_billed_for_what_it_got(served: tuple[str, Path]) -> None:
    url, directory = served
    with httpx.stream(
        "POST", f"{url}/chat", json={"text": "Hello?"}, headers={"authorization": "Bearer key-of-acme"}
    ) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number == 40:
                break
    with Lava(f"sqlite:///{directory / 'lava.db'}") as lava:
        deadline = time.monotonic() + 10
        while lava.balance("acme").held and time.monotonic() < deadline:
            time.sleep(0.02)
        record = next(lava.records("acme"))
    assert record.basis == "counted"
    assert 15 <= record.usage.output_tokens <= 40
