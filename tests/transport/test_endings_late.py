"""Endings that come at the wrong time or from the wrong side: a collector between two lines, a fork, late bytes."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import httpx2
import pytest

from lava_middleware import Amount, StreamStalled
from lava_middleware.testing import Script, canned_transport

from .rig import CUSTOMER, Rig, chat, eventually, priced, rigged, said_in

OURS = str(Path("src", "lava_middleware"))
NOT_OURS = str(Path("lava_middleware", "testing"))


class At:
    """Runs a function at the n-th line of the library's own code that this thread executes."""

    def __init__(self, line: int, function: Callable[[], object]) -> None:
        self._left = line
        self._function = function
        self.ran = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if OURS not in name or NOT_OURS in name:
            return None
        if event == "line":
            self._left -= 1
            if self._left == 0:
                self.ran = True
                self._function()
        return self

    def __enter__(self) -> At:
        self._before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self._before)


@pytest.mark.parametrize("ledger", ["memory", "sqlite"])
def test_a_stream_that_is_collected_between_any_two_lines_of_a_call_disturbs_nothing(
    ledger: str, soak_count: Callable[[int], int], tmp_path: Path
) -> None:
    """T35: request, hold, stream, append and settlement of one call, and the collector ends another one's stream.
    Every line in the long suite; else every 41st (the ledger's own suite walks all of its lines)."""
    stride = 1 if soak_count(10) == 10 else 41
    where = "sqlite:///:memory:" if ledger == "memory" else f"sqlite:///{tmp_path}/lava.db"
    mock = canned_transport(Script(output_tokens=5), prebuilt=False, library="httpx2")
    gc.disable()
    try:
        with (
            rigged(ledger=where, credits="500") as rig,
            httpx2.Client(transport=mock, verify=False) as client,
            rig.lava.charge_to(CUSTOMER),
        ):
            client.post(rig.chat_url, json=chat(stream=True))
            line = 1
            calls = 1
            while True:
                garbage = [_dropped(client, rig)]

                def collect(garbage: list[Any] = garbage) -> None:
                    garbage.clear()
                    gc.collect(0)

                with At(line, collect) as collector:
                    client.post(rig.chat_url, json=chat(stream=True))
                collect()
                calls += 2
                if not collector.ran:
                    break
                line += stride
            assert line > 500
            assert rig.endings() == ["settled"] * calls
            assert rig.lava.ledger.counters.unposted == 0
            _check_sums(rig)
    finally:
        gc.enable()


def _dropped(client: httpx2.Client, rig: Rig) -> Any:
    """An open stream that was begun to be read, in a cycle: only the collector can end it."""
    response = client.send(client.build_request("POST", rig.chat_url, json=chat(stream=True)), stream=True)
    response.iterator = iterator = response.iter_bytes()  # type: ignore[attr-defined]
    next(iterator)
    response.itself = response  # type: ignore[attr-defined]
    return response


def _check_sums(rig: Rig, granted: str = "500") -> None:
    charged = sum(record.charge.ticks for record in rig.records())
    balance = rig.lava.balance(CUSTOMER)
    assert balance.available == Amount.of(granted) - Amount(charged)
    assert (balance.held, balance.debt) == (Amount(0), Amount(0))


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_bytes_that_come_after_the_terminal_event_pass_and_change_nothing(library: str) -> None:
    """T15, T18: completeness is a fact of the format, not of the socket."""
    http = importlib.import_module(library)
    one = canned_transport(Script(output_tokens=5), library="httpx2")
    request = httpx2.Request("POST", "http://x/v1/chat/completions", json=chat(stream=True))
    body = one.handle_request(request).content
    late = b'data: {"choices": [{"index": 0, "delta": {"content": "' + b"late " * 200 + b'"}}], '
    late += b'"usage": {"prompt_tokens": 9000, "completion_tokens": 9000, "total_tokens": 18000}}\n\n'
    for prebuilt in (True, False):
        answer = canned_transport(
            body + late, headers={"content-type": "text/event-stream"}, prebuilt=prebuilt, library=library
        )
        with rigged() as rig, http.Client(transport=answer, verify=False) as client:
            with rig.lava.charge_to(CUSTOMER):
                assert client.post(rig.chat_url, json=chat(stream=True)).content == body + late
            assert rig.endings() == ["settled"]
            assert rig.record.usage["output"] < 10


def test_a_stream_that_somebody_else_has_ended_reads_on_and_is_charged_once() -> None:
    """T18: the first ending counts, whoever it is: a watcher, a closer in another thread."""
    with rigged(Script(output_tokens=60, tokens_per_chunk=1)) as rig, httpx2.Client(verify=False) as client:
        with rig.lava.charge_to(CUSTOMER), client.stream("POST", rig.chat_url, json=chat(stream=True)) as response:
            lines = response.iter_lines()
            spoken = 0
            while spoken < 20:
                spoken += bool(said_in(next(lines)))
            (flight,) = rig.lava._open.values()
            for how in ("closed", "cancelled", "collected"):
                thread = threading.Thread(target=flight.abandoned, args=(how,))
                thread.start()
                thread.join()
            rig.wait_settled()
            before = (rig.endings(), rig.record.charge)
            assert spoken + sum(bool(said_in(line)) for line in lines) == 60
        assert (rig.endings(), rig.record.charge) == before
        assert rig.record.facts["ending"] == "closed"


def test_a_stream_that_nobody_reads_is_ended_by_the_watcher_and_pulling_again_raises() -> None:
    """T9: its hold does not stay for ever, and what was delivered is charged."""
    with rigged(Script(stall_after=20), stall_s=1) as rig, httpx2.Client(verify=False) as client:
        with rig.lava.charge_to(CUSTOMER), client.stream("POST", rig.chat_url, json=chat(stream=True)) as response:
            lines = response.iter_lines()
            spoken = 0
            while spoken < 20:
                spoken += bool(said_in(next(lines)))
            (flight,) = rig.lava._open.values()
            flight.last_read -= 3600
            eventually(lambda: not rig.holds())
            eventually(lambda: rig.served.state == "aborted")  # nobody has pulled again or closed it
            with pytest.raises(StreamStalled):
                list(lines)
        assert rig.endings() == ["settled"]
        assert rig.record.facts["ending"] == "stalled"
        assert 14 <= rig.record.usage["output"] <= 24


async def _provider_stops_when_nobody_reads() -> None:
    with rigged(Script(stall_after=20), stall_s=1) as rig:
        async with httpx2.AsyncClient(verify=False) as client:
            with rig.lava.charge_to(CUSTOMER):
                async with client.stream("POST", rig.chat_url, json=chat(stream=True)) as response:
                    lines = response.aiter_lines()
                    await anext(lines)
                    (flight,) = rig.lava._open.values()
                    flight.last_read -= 3600
                    await anyio.to_thread.run_sync(eventually, lambda: rig.served.state == "aborted")
                    with pytest.raises(StreamStalled):
                        [line async for line in lines]
        assert rig.endings() == ["settled"]


@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")  # trio on httpcore2's
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_stream_that_nobody_reads_is_closed_in_its_own_event_loop(loop: str) -> None:
    pytest.importorskip(loop)
    anyio.run(_provider_stops_when_nobody_reads, backend=loop)


def test_while_a_read_is_pending_nobody_loses_patience() -> None:
    """Minutes of hidden reasoning are no stall."""
    with rigged(Script(stall_after=0), stall_s=1) as rig, httpx2.Client(verify=False, timeout=0.3) as client:
        threading.Timer(0.1, lambda: [_age(flight) for flight in rig.lava._open.values()]).start()
        with rig.lava.charge_to(CUSTOMER), pytest.raises(httpx2.ReadTimeout):
            client.post(rig.chat_url, json=chat(stream=True))
        assert rig.record.facts["ending"] == "ReadTimeout"


def _age(flight: Any) -> None:
    assert flight.reading
    flight.last_read -= 3600


FORKS = """
import gc, os, sys, warnings
warnings.simplefilter("ignore")
import httpx2
from tests.transport.rig import CUSTOMER, chat, rigged, said_in
from lava_middleware.testing import Script

with rigged(Script(output_tokens=60), ledger=sys.argv[1]) as rig, httpx2.Client(verify=False) as client:
    with rig.lava.charge_to(CUSTOMER):
        response = client.send(client.build_request("POST", rig.chat_url, json=chat(stream=True)), stream=True)
        lines = response.iter_lines()
        spoken = 0
        while spoken < 20:
            spoken += bool(said_in(next(lines)))
        for how in ("exit at once", "exit", "collect", "close"):
            child = os.fork()
            if child == 0:
                if how == "exit at once":
                    os._exit(0)
                if how == "close":
                    response.close()
                if how != "exit":
                    del response, lines
                    gc.collect()
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0, how
            assert rig.kinds()[:1] == ["held"] and "settled" not in rig.kinds(), (how, rig.kinds())
            assert rig.holds() == 1, how
        spoken += sum(bool(said_in(line)) for line in lines)
    print(spoken, rig.endings(), rig.record.basis, rig.record.usage["output"], rig.record.charge)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_ends_nothing_of_its_parents(tmp_path: Path) -> None:
    """T36: it exits at once, or with all its handlers, or collects and closes: the parent's stream goes on."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS, f"sqlite:///{tmp_path}/lava.db"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.strip().splitlines()
    assert last.startswith("60 ['settled'] reported 60 ")
    assert Amount.of(last.split()[-1]) > priced(0, 60)


class WorkersLimit(Exception):
    """What a worker's signal handler raises in the middle of a line."""


@pytest.mark.parametrize("error", [WorkersLimit, KeyboardInterrupt])
@pytest.mark.parametrize("ledger", ["memory", "sqlite"])
def test_a_signals_exception_anywhere_before_the_send_leaves_no_hold_open(
    error: type[BaseException], ledger: str, tmp_path: Path
) -> None:
    """T45: it may take the ledger's answer along, so whoever began the call has the hold given back."""
    where = "sqlite:///:memory:" if ledger == "memory" else f"sqlite:///{tmp_path}/lava.db"
    places = ["authorize", "_attempt", "_committed", "_conclude", "resolve", "answer", "departure", "result"]
    places += ["_approved", "decided", "opened", "cap_to_write", "dispatch"]
    met = []

    def at(place: str) -> Callable[[FrameType, str, Any], Any]:
        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if frame.f_code.co_name == place and OURS in frame.f_code.co_filename:
                sys.settrace(None)
                met.append(place)
                raise error

        return trace

    with rigged(ledger=where, credits="500") as rig, httpx2.Client(verify=False) as client:
        for place in places:
            before = sys.gettrace()
            with rig.lava.charge_to(CUSTOMER):
                sys.settrace(at(place))
                try:
                    client.post(rig.chat_url, json=chat())
                except error:
                    pass
                finally:
                    sys.settrace(before)
            eventually(lambda: not rig.lava.ledger.look(CUSTOMER).holds)
        assert len(met) >= len(places) - 1  # `answer` is there where top-ups are
        assert rig.lava.ledger.counters.unposted == 0
        _check_sums(rig)
