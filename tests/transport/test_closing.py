"""What happens to calls while their Lava closes, and where somebody closes it in the middle of a line."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from lava_middleware import Lava
from lava_middleware.core.commands import Authorize
from lava_middleware.core.decide import Declined
from lava_middleware.ledger import appender
from lava_middleware.ledger.ledger import LedgerUnavailable

from .rig import CUSTOMER, chat, eventually, rigged


def test_while_a_last_purchase_ends_no_new_call_goes_out_and_what_was_let_out_is_settled() -> None:
    """T45: the ledger closes seconds later than the Lava, where a hook is at work; who would end what goes out then?"""
    answers: list[Any] = []
    ended: list[str] = []
    with rigged(credits="500") as rig, httpx2.Client(verify=False) as client:
        lava = rig.lava

        def end_slowly() -> None:
            with lava.charge_to(CUSTOMER):
                answers.append(client.post(rig.chat_url, json=chat()))
            lava._open[0] = SimpleNamespace(abandoned=ended.append)  # type: ignore[assignment]

        lava.topups = SimpleNamespace(close=end_slowly, awake=lambda: None, answer=lambda ticket, _: ticket)  # type: ignore[assignment]
        lava.close()
        assert "ledger_unavailable" in answers[0].text
        assert not rig.provider.requests
        assert ended == ["closing"]


def test_a_signal_handler_may_close_it_in_the_middle_of_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T35: the thread that the handler interrupted has locks that whoever closes waits for."""
    lava = Lava(f"sqlite:///{tmp_path}/lava.db")
    lava.grant(CUSTOMER, "5")
    evolve = appender.evolve  # type: ignore[attr-defined]
    left: list[str] = []

    def close(*_: object) -> None:
        lava.close()
        left.append("the handler")

    def interrupted(*arguments: Any) -> None:
        if not left and threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGUSR1)
        evolve(*arguments)

    monkeypatch.setattr(appender, "evolve", interrupted)
    before = signal.signal(signal.SIGUSR1, close)
    try:
        asked = Authorize("call", lava.ledger.owner, 10, 0, 0, 0, 0)
        assert lava.ledger.apply(CUSTOMER, asked).wait(10).event is not None
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert left == ["the handler"]
    eventually(lambda: lava.ledger._closed, 20)


def test_a_refusal_of_a_stranger_asks_nobody_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """T38: an event loop tells it, and the ledger may be far away."""
    with Lava("memory://", unknown_accounts="refuse") as lava:
        lava.ledger.apply("stranger", Authorize("call", lava.ledger.owner, 10, 0, 0, 0, 0)).wait(10)

        lava.grant("known", "1")

        def look(*_: object) -> None:
            raise LedgerUnavailable("a round trip")

        monkeypatch.setattr(lava.ledger, "look", look)
        assert lava.denied("stranger", Declined("insufficient_credit")).reason == "customer_unknown"
        assert lava.denied("known", Declined("insufficient_credit")).reason == "insufficient_credit"
