"""The demo proves what it tells, wherever it is started, and says so when it cannot."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lava_middleware import demo
from lava_middleware.demo import scenes
from lava_middleware.demo.play import play
from lava_middleware.demo.stage import Stage
from lava_middleware.demo.telling import WIDTH, Telling
from lava_middleware.testing import Script

COMMAND = [sys.executable, "-m", "lava_middleware.demo"]

HOSTILE = {
    # What stands in a developer's environment must not change what is shown.
    "LAVA_MODE": "observe",
    "LAVA_LEDGER": "sqlite:////nowhere/lava.db",
    "LAVA_MARKUP": "9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
    "OPENAI_BASE_URL": "http://127.0.0.1:9",
    "OPENAI_API_KEY": "sk-canary-of-the-developer",
    "PYTHONIOENCODING": "ascii",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One whole demo, in a process of its own."""
    directory = tmp_path_factory.mktemp("demo")
    return subprocess.run(
        [*COMMAND, "--directory", str(directory / "new")],
        env={**os.environ, **HOSTILE},
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_every_claim_is_proved_in_the_environment_of_any_developer(told: subprocess.CompletedProcess[str]) -> None:
    assert told.returncode == 0, told.stdout + told.stderr
    assert "FAILED" not in told.stdout
    assert "claims were proved" in told.stdout
    assert told.stderr == ""


def test_each_scene_of_the_issue_is_told(told: subprocess.CompletedProcess[str]) -> None:
    for number, (title, _) in enumerate(scenes.SCENES, 1):
        assert f"{number}. {title}" in told.stdout
    for shown in (
        "402 application/problem+json",
        "of 100 calls 10 reached the stand-in",
        "agree to the token, call by call",
        "lava statement acme",
        "lava doctor",
        "margin",
    ):
        assert shown in told.stdout


def test_it_fits_a_hundred_columns_and_is_plain_where_nobody_looks(told: subprocess.CompletedProcess[str]) -> None:
    text = told.stdout.replace("�", "?")
    assert [line for line in text.splitlines() if len(line) > WIDTH and "/lava.db" not in line] == []
    assert "\033" not in told.stdout


def test_nothing_of_the_developers_keys_is_shown(told: subprocess.CompletedProcess[str]) -> None:
    assert "canary" not in told.stdout + told.stderr


def test_the_ledger_is_left_for_the_reader(told: subprocess.CompletedProcess[str]) -> None:
    ledger = next(word for word in told.stdout.split() if word.endswith("lava.db") and word.startswith("/"))
    said = subprocess.run(
        [sys.executable, "-m", "lava_middleware", "statement", "delta", "--ledger", f"sqlite:///{ledger}"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "counted, insufficient" in said.stdout


def test_it_fails_when_a_call_that_should_be_refused_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_credit(stage: Stage, tell: Telling) -> None:
        stage.grant("brook", "5.00", "by mistake")
        stage.play(Script())
        with stage.client() as client:
            status = client.post(
                "/answer", json={"text": "Hello?"}, headers={"authorization": "Bearer key-of-brook"}
            ).status_code
        tell.prove("brook was refused", status == 402)

    monkeypatch.setattr("lava_middleware.demo.play.SCENES", (("A refusal", with_credit),))
    out = io.StringIO()
    assert play(tmp_path, out) == 1
    assert "FAILED  brook was refused" in out.getvalue()
    assert "1 of 1 claims FAILED" in out.getvalue()


def test_without_the_extras_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lava_middleware.demo.NEEDED", ("anthropic", "no_such_server"))
    assert demo.main([]) == 2
    assert capsys.readouterr().err == (
        "lava demo: the demo needs no_such_server; install it with: pip install 'lava-middleware[demo]'\n"
    )


def test_it_writes_only_into_a_directory_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert demo.main(["--directory", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["mine.txt"]


def test_ctrl_c_stops_it_cleanly(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--directory", str(tmp_path / "demo")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "available" in line and "held" in line:
                break  # in the middle of the stream
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert said == "\nStopped.\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False), (False, {}, False)],
)
def test_colours_are_for_terminals(
    terminal: bool, environment: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = _Terminal() if terminal else io.StringIO()
    Telling(out).prove("a claim", True)
    assert ("\033[" in out.getvalue()) is coloured
