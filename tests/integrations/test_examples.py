"""The example applications, each started for real with its one command, do what their READMEs say."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from lava_middleware import Lava

INTEGRATIONS = Path(__file__).parents[2] / "integrations"
EXAMPLES = ("fastapi", "django", "flask")
FEW = 60
ACME = {"authorization": "Bearer key-of-acme"}
BROOK = {"authorization": "Bearer key-of-brook"}


@dataclass(frozen=True, slots=True)
class Example:
    name: str
    url: str
    directory: Path
    """Where it was started: the ledger is there."""

    @property
    def place(self) -> Path:
        return INTEGRATIONS / self.name

    @property
    def ledger(self) -> str:
        return f"sqlite:///{self.directory / 'lava.db'}"

    def post(self, path: str, body: object, headers: dict[str, str]) -> httpx.Response:
        return httpx.post(f"{self.url}/{path}", json=body, headers=headers, timeout=60)

    def lines(self, command: str) -> list[list[str]]:
        """The lines of its README that begin with this command."""
        lines = re.findall(rf"^\$ ({command} .*)$", (self.place / "README.md").read_text(), re.MULTILINE)
        return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    pytest.importorskip(request.param)
    pytest.importorskip("uvicorn")
    directory = tmp_path_factory.mktemp(request.param)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Example(request.param, f"http://127.0.0.1:{port}", directory)
    command = [sys.executable, str(made.place / "app.py"), "--port", str(port)]
    with subprocess.Popen(command, cwd=directory, env=_environment(), stderr=subprocess.DEVNULL) as running:
        try:
            _wait(made.url, running)
            yield made
        finally:
            running.send_signal(signal.SIGINT)
            assert running.wait(20) in (0, 130, -signal.SIGINT)


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.endswith("_API_KEY") and not name.startswith(("LAVA_", "DJANGO_"))
    }


def _wait(url: str, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and running.poll() is None:
        try:
            httpx.get(f"{url}/balance", headers=ACME)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the example did not start")


def call(example: Example, words: list[str]) -> httpx.Response:
    """What the curl line would send."""
    headers = dict(words[place + 1].split(": ", 1) for place, word in enumerate(words) if word == "-H")
    content = words[words.index("-d") + 1] if "-d" in words else None
    path = next(word for word in words if word.startswith("localhost:")).partition("/")[2]
    return httpx.request(
        "POST" if content else "GET", f"{example.url}/{path}", headers=headers, content=content, timeout=30
    )


def run(example: Example, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=example.directory,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_of_the_readme_do_what_it_says(example: Example) -> None:
    chat, balance, refused, *rest = (call(example, words) for words in example.lines("curl"))
    assert chat.status_code == 200
    assert chat.headers["content-type"].startswith("text/event-stream")
    assert '"finish": "stop"' in chat.text
    assert balance.json()["available"] < "1.00"
    assert refused.status_code == 402
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "insufficient_credit"
    for answers in rest:
        assert len(answers.json()["texts"]) == 2
    said = "".join(run(example, "-m", "lava_middleware", *words[1:]) for words in example.lines("lava"))
    said += "".join(
        run(example, str(example.place / words[1]), *words[2:]) for words in example.lines("python manage.py")
    )
    assert example.name != "django" or "System check identified no issues" in said
    assert "key welcome" in said
    assert said.count("200 out") == 1 + 2 * len(rest)


def test_a_stranger_is_not_a_customer(example: Example) -> None:
    for headers in ({"authorization": "Bearer guessed"}, {"x-lava-customer": "acme", "x_lava_customer": "acme"}):
        assert example.post("chat", {"text": "Hello?"}, headers).status_code == 401


def test_a_client_that_leaves_is_billed_for_what_it_got(example: Example) -> None:
    with httpx.stream("POST", f"{example.url}/chat", json={"text": "Hello?"}, headers=ACME) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number == 40:
                break
    with Lava(example.ledger) as lava:
        deadline = time.monotonic() + 10
        while lava.balance("acme").held and time.monotonic() < deadline:
            time.sleep(0.02)
        record = next(lava.records("acme"))
    assert record.basis == "counted"
    assert 15 <= record.usage.output_tokens <= 40


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_requests_of_two_customers_at_once_never_cross(example: Example, soak_count: Callable[[int], int]) -> None:
    """G6, T37: one asks at length, the other briefly, so a record on the wrong account is seen."""
    texts = {"acme": "Hello?", "brook": "Hello? " * 100}
    headers = {"acme": ACME, "brook": BROOK}
    count = soak_count(10_000)
    count = FEW if count < 10_000 else count
    with Lava(example.ledger) as lava:
        for name in texts:
            lava.grant(name, "1000")
        before = {name: len(list(lava.records(name))) for name in texts}

    with httpx.Client(base_url=example.url, timeout=60) as client, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> None:
            name = ("acme", "brook")[number % 2]
            path = "chat" if count > FEW and number % 100 < 2 else "answer"  # a chat takes its time: 4 s
            answer = client.post(path, json={"text": texts[name]}, headers=headers[name])
            assert answer.status_code == 200, answer.text

        list(pool.map(ask, range(count)))
    with Lava(example.ledger) as lava:
        for name in texts:
            records = list(lava.records(name))
            mine = records[: len(records) - before[name]]
            assert len(mine) == count // 2
            assert {record.usage.input_tokens > 100 for record in mine} == {name == "brook"}
