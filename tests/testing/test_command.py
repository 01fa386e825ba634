"""`python -m lava_middleware.testing`: a stand-in to play with."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx2

from lava_middleware.testing import FakeProvider
from lava_middleware.testing.__main__ import main

from .asking import chat

COMMAND = [sys.executable, "-m", "lava_middleware.testing"]


def test_it_prints_where_it_is_and_a_line_for_each_request() -> None:
    options = ["--port", "0", "--tokens", "5", "--chunk-delay", "0"]
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        first, *others = (running.stdout.readline() for _ in range(5))
        assert first.startswith("OpenAI ")
        assert [line.split()[0] for line in others[:3]] == ["Anthropic", "Gemini", "Mistral"]
        assert "Ctrl-C" in others[3]
        httpx2.post(first.split()[1] + "/chat/completions", json=chat(stream=True)).raise_for_status()
        line = running.stdout.readline()
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
    assert line == "POST /v1/chat/completions gpt-4o-mini stream 200 in=13 out=5 complete\n"
    assert rest == "\n1 requests, 13 tokens in, 5 tokens out\n"
    assert running.returncode == 0


def test_a_taken_port_is_a_sentence_not_a_traceback(provider: FakeProvider, capsys: object) -> None:
    assert main(["--port", provider.host.split(":")[1]]) == 1
