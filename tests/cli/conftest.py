"""This file knows how to run `lava` as a user does, on a ledger in which something has happened."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lava_middleware.cli.main import main
from lava_middleware.core.commands import Authorize, Grant, Report, SetTerms, Settle, Void
from lava_middleware.core.money import TICKS_PER_CREDIT
from lava_middleware.core.record import Facts
from lava_middleware.core.terms import NO_TERMS, Limit
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.sqlite import SqliteJournal


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Lava = Callable[..., Done]


def facts(name: str, **more: object) -> str:
    made = Facts(
        id=name,
        provider="openai",
        model="gpt-4o",
        basis="reported",
        usage={"input": 1_000, "output": 50},
        cost=TICKS_PER_CREDIT // 100,
        charge=TICKS_PER_CREDIT // 50,
        answered=1,
    )
    for fact, value in more.items():
        setattr(made, fact, value)
    return made.to_json()


def live_a_little(ledger: Ledger, customer: str = "acme") -> None:
    """A grant, a limit, a settled call, a void one, an unheld one, an open hold."""
    credit = TICKS_PER_CREDIT

    def authorize(hold: str) -> Authorize:
        return Authorize(hold, ledger.owner, credit, 10, 0, 0, 0)

    for command, record in (
        (Grant("invoice-1", 5 * credit), None),
        (SetTerms(NO_TERMS.with_limit(Limit("tokens/month", "tokens", 100_000))), None),
        (authorize("h1"), facts("h1")),
        (Settle("h1", credit // 50, 1_000, 50), facts("h1")),
        (authorize("h2"), facts("h2")),
        (Void("h2", "unsent"), None),
        (Report("r1", credit // 50, 1_000, 50), facts("r1", basis="counted", unheld="insufficient_credit")),
        (authorize("h3"), facts("h3", model="an\x1b[31m escape")),
    ):
        ticket = ledger.apply(customer, command, record=record)
        assert ticket.wait(10).declined is None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lava.db"


@pytest.fixture
def lived(path: Path) -> Path:
    """The path of a ledger with eight entries of acme."""
    journal = SqliteJournal(path)
    ledger = Ledger(journal)
    live_a_little(ledger)
    ledger.close()
    journal.close()
    return path


@pytest.fixture
def lava(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lava:
    """lava("balance", "acme"): the command on the ledger `path`, in this process, which is quicker."""
    for name in os.environ:
        if name.startswith("LAVA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LAVA_LEDGER", f"sqlite:///{path}")

    def run(*arguments: str, **environment: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            try:
                code = main(arguments)
            except SystemExit as stopped:
                code = int(stopped.code or 0)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return run


@pytest.fixture
def lava_process(path: Path) -> Lava:
    """The same in a process of its own."""

    def run(*arguments: str, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "lava_middleware", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("LAVA_")},
                "LAVA_LEDGER": f"sqlite:///{path}",
                **environment,
            },
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run
