"""This file knows what every SDK must show of itself: passed, refused, cut, cancelled, whole and streamed.

Without pytest, so that an interpreter with other releases can run it (older.py).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import certifi

from lava_middleware import Amount, denied
from lava_middleware.testing import Script

from ..transport.rig import PRICES, Rig, eventually, priced, rigged
from .colours import stepped
from .drivers import PRICED, Driver

PIECES = 20
"""Tokens that are read before a stream is left; the stand-in waits there, so that it has sent no more."""
PAYS_FOR_SOME = "0.0014"
_customers = itertools.count(1)


@dataclass
class Stage:
    """One SDK in front of a stand-in, and a Lava that sees what it does."""

    driver: Driver
    rig: Rig
    customer: str = ""

    def fresh(self, credits: str | None = "5.00", script: Script | None = None) -> None:
        """Another customer, an empty log, this answer."""
        self.customer = f"customer-{next(_customers)}"
        self.rig.provider.reset()
        self.rig.provider.default = script or Script()
        if credits is not None:
            self.rig.lava.grant(self.customer, credits)

    @property
    def record(self) -> Any:
        eventually(self._over)
        (record,) = self.rig.records(self.customer)
        return record

    def _over(self) -> bool:
        """An SDK that closes nothing leaves it to the collector, when threads of its own are done with it."""
        if self.rig.holds(self.customer):
            gc.collect()
        return not self.rig.holds(self.customer)

    def paying(self) -> Any:
        return self.rig.lava.charge_to(self.customer)

    @contextlib.asynccontextmanager
    async def pieces(self, client: Any) -> AsyncIterator[Any]:
        """A stream on the customer's account."""
        driver: Any = self.driver
        with self.paying():
            async with aclosing(driver.stream(client)) as pieces:
                yield pieces

    @contextlib.contextmanager
    def refusals(self) -> Iterator[list[str]]:
        """The reason of each refusal meanwhile: one an attempt."""
        found: list[str] = []
        lava: Any = self.rig.lava
        lava.refused = lambda decision, *rest: found.append(decision.reason)
        try:
            yield found
        finally:
            del lava.refused


@contextlib.contextmanager
def one_certificate() -> Iterator[None]:
    """Clients that load one certificate authority instead of all: 3 ms instead of 155, in google-genai's case."""
    bundle = Path(certifi.where()).read_text(encoding="utf-8")
    end = "-----END CERTIFICATE-----\n"
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "one.pem")
        alone.write_text(bundle[bundle.index("-----BEGIN") : bundle.index(end) + len(end)], encoding="utf-8")
        before = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = str(alone)
        try:
            yield
        finally:
            del os.environ["SSL_CERT_FILE"]
            if before is not None:
                os.environ["SSL_CERT_FILE"] = before


@contextlib.contextmanager
def staged(make: type[Driver]) -> Iterator[Stage]:
    with one_certificate(), rigged(speaks=(make.speaks,), prices={**PRICES, **PRICED}) as rig:
        yield Stage(make(rig.provider), rig)
        rig.provider.release()


async def _whole(stage: Stage, client: Any) -> str:
    with stage.paying():
        return await stage.driver.ask(client)


async def _streamed(stage: Stage, client: Any) -> str:
    async with stage.pieces(client) as pieces:
        return "".join([text async for text, _ in pieces])


WAYS: dict[str, Callable[[Stage, Any], Awaitable[str]]] = {"whole": _whole, "streamed": _streamed}


async def passes(stage: Stage, client: Any, is_async: bool) -> None:
    """One call, one exchange, one record: what the provider reported."""
    for way in WAYS.values():
        stage.fresh()
        assert len(await way(stage, client)) > 100
        served, record = stage.rig.served, stage.record
        reported = served.reported
        assert reported is not None
        assert (served.status, record.basis) == (200, "reported")
        assert (record.usage.input_tokens, record.usage.output_tokens) == (reported.input_tokens, 40)
        assert record.charge == priced(reported.input_tokens, 40)
        assert record.provider == stage.driver.speaks


async def refused(stage: Stage, client: Any, is_async: bool) -> None:
    """The SDK's own error with the decision behind it, after one attempt, and nothing sent."""
    for way in WAYS.values():
        stage.fresh(credits=None)
        with stage.refusals() as attempts:
            error = await _raised(way(stage, client))
        assert attempts == ["insufficient_credit"], attempts
        assert stage.driver.status(error) == stage.driver.refusal
        decision = denied(error)
        assert decision is not None
        assert decision.reason == "insufficient_credit"
        assert stage.rig.provider.count == 0
        assert stage.rig.kinds(stage.customer) == []


async def refused_by_the_provider(stage: Stage, client: Any, is_async: bool) -> None:
    """The provider's 402 is final too: the stand-in counts one attempt, which costs nothing."""
    for way in WAYS.values():
        stage.fresh(script=Script(status=402))
        error = await _raised(way(stage, client))
        assert stage.driver.status(error) == stage.driver.refusal
        assert denied(error) is None
        assert stage.rig.provider.count == 1
        assert stage.rig.endings(stage.customer) == ["voided"]


async def _raised(work: Awaitable[Any]) -> BaseException:
    try:
        await work
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


async def cut(stage: Stage, client: Any, is_async: bool) -> None:
    """The money ends in mid-stream: an end that the SDK takes for the provider's own, and upstream is closed."""
    stage.fresh(PAYS_FOR_SOME, Script(ignores_cap=True, output_tokens=4_000, chunk_delay_s=0.0005))
    said, why = "", None
    async with stage.pieces(client) as pieces:
        async for text, reason in pieces:
            said, why = said + text, reason or why
    assert why == stage.driver.cut_short
    assert 0 < len(said) < 1_000
    record = stage.record
    assert (record.facts["ending"], record.overrun) == ("cut", Amount(0))
    assert record.charge <= Amount.of(PAYS_FOR_SOME)
    if stage.driver.closes or not is_async:
        await _closed_upstream(stage, is_async)


async def _closed_upstream(stage: Stage, is_async: bool) -> None:
    """As the stand-in sees it. An event loop needs its turn to close a connection."""
    wait = stage.rig.provider.wait_idle
    if is_async:
        await anyio.to_thread.run_sync(wait)
    else:
        wait()
    assert stage.rig.served.state == "aborted"


async def cancelled(stage: Stage, client: Any, is_async: bool) -> None:
    """Left in mid-stream, by a cancel where there is one: charged for what came, and upstream is closed."""
    stage.fresh(script=Script(stall_after=PIECES))
    with anyio.CancelScope() if is_async else contextlib.nullcontext() as scope:
        await _read_some(stage, client, scope)
    record = stage.record
    assert record.basis == "counted"
    assert 0.7 * PIECES <= record.usage["output"] <= 1.3 * PIECES
    if stage.driver.closes or not is_async:
        await _closed_upstream(stage, is_async)
        assert stage.rig.served.aborted_after == PIECES


async def _read_some(stage: Stage, client: Any, scope: Any) -> None:
    spoken = 0
    async with stage.pieces(client) as pieces:
        async for text, _ in pieces:
            spoken += bool(text)
            if spoken == PIECES:
                if scope is None:
                    return
                scope.cancel()


async def cancelled_while_waiting(stage: Stage, client: Any, is_async: bool) -> None:
    """Sent, and no answer yet: the outcome is unknown, and charged as the hold said."""
    if not is_async:
        return
    stage.fresh(script=Script(stall_after=0))
    async with anyio.create_task_group() as group:
        group.start_soon(_whole, stage, client)
        await anyio.to_thread.run_sync(stage.rig.provider.wait_until, lambda provider: provider.count == 1)
        group.cancel_scope.cancel()
    assert stage.record.basis == "estimated"
    assert stage.rig.provider.count == 1


Scene = Callable[[Stage, Any, bool], Awaitable[None]]
SCENES: dict[str, Scene] = {
    "passes": passes,
    "refused": refused,
    "refused by the provider": refused_by_the_provider,
    "cut": cut,
    "cancelled": cancelled,
    "cancelled while waiting": cancelled_while_waiting,
}


def cases(drivers: dict[str, type[Driver]]) -> Iterator[tuple[str, str, str]]:
    """(SDK, colour, scene)"""
    for name, driver in drivers.items():
        for colour in ("sync", "asyncio", *(("trio",) if driver.trio else ())):
            for scene in SCENES:
                if colour != "sync" or scene != "cancelled while waiting":
                    yield name, colour, scene


def play(stage: Stage, colour: str, scene: str) -> None:
    """One scene. Raises AssertionError where the SDK does not do as it must."""

    async def main() -> None:
        async with stage.driver.client(colour != "sync") as client:
            await SCENES[scene](stage, client, colour != "sync")

    if colour == "sync":
        stepped(main())
    else:
        anyio.run(main, backend=colour)
