"""Every way in which a call can end, over real sockets, in both libraries and all colours.

One exchange: one ending in the journal, nothing held afterwards, and the charge that the ending deserves.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from lava_middleware.testing import Script, canned_transport, refusing_port

from .rig import CUSTOMER, Rig, chat, priced, rigged, said_in
from .shell_kit import COLOURS, Kit, cancelled_once

LEFT_AFTER = 20
"""Tokens that are read before a stream is left; the stand-in waits there, so that it has sent no more."""

WAITS = Script(stall_after=LEFT_AFTER)
LONG = Script(output_tokens=60)
ASYNC = frozenset({"asyncio", "trio"})
ALL = ASYNC | {"sync"}

Act = Callable[[Kit, Rig, Any], Awaitable[None]]


@dataclass(frozen=True)
class Ending:
    """One way to end, and what must be in the journal afterwards."""

    act: Act
    script: Script = LONG
    kind: str = "settled"
    how: tuple[str, ...] = ("finished",)
    """What the record calls it."""
    charge: str = "reported"
    """"reported": what the provider said; "counted": what was delivered; "unknown": what the hold said is owed."""
    colours: frozenset[str] = ALL
    options: dict[str, Any] = field(default_factory=dict)
    """Of the client."""
    requests: int = 1
    """That reached the provider."""


async def open_stream(kit: Kit, rig: Rig, client: Any, **more: Any) -> Any:
    return await kit.send(client, rig.chat_url, stream=True, json=chat(stream=True, **more))


async def words(kit: Kit, response: Any) -> AsyncIterator[str]:
    """The tokens of a chat stream as they come."""
    async with aclosing(kit.each(response, "lines")) as lines:
        async for line in lines:
            if said := said_in(line):
                yield said


async def read(kit: Kit, response: Any, number: int) -> None:
    """Read so many tokens, and leave the iterator where it is."""
    response.left = iterator = words(kit, response)
    for _ in range(number):
        await anext(iterator)


async def drained(kit: Kit, rig: Rig, client: Any) -> None:
    response = await open_stream(kit, rig, client)
    assert len([word async for word in words(kit, response)]) == 60


async def unary(kit: Kit, rig: Rig, client: Any) -> None:
    response = await kit.send(client, rig.chat_url, json=chat())
    assert response.json()["usage"]["completion_tokens"] == 60


async def stopped_at_the_terminal_event(kit: Kit, rig: Rig, client: Any) -> None:
    """As SDKs do: they read up to [DONE] and close."""
    response = await open_stream(kit, rig, client)
    async with aclosing(kit.each(response, "lines")) as lines:
        async for line in lines:
            if line == "data: [DONE]":
                break
    await kit.call(response, "close")


async def loop_broken(kit: Kit, rig: Rig, client: Any) -> None:
    response = await open_stream(kit, rig, client)
    read_so_far = 0
    async with aclosing(words(kit, response)) as spoken:
        async for _ in spoken:
            read_so_far += 1
            if read_so_far == LEFT_AFTER:
                break
    del response, spoken
    await collected(rig)


async def closed_early(kit: Kit, rig: Rig, client: Any) -> None:
    response = await open_stream(kit, rig, client)
    await read(kit, response, LEFT_AFTER)
    await kit.call(response, "close")
    await kit.call(response, "close")


async def closed_unread(kit: Kit, rig: Rig, client: Any) -> None:
    response = await open_stream(kit, rig, client)
    await kit.call(response, "close")


async def cancelled_in_a_scope(kit: Kit, rig: Rig, client: Any) -> None:
    response = await open_stream(kit, rig, client)
    with anyio.CancelScope() as scope:
        spoken = 0
        async for _ in words(kit, response):
            spoken += 1
            if spoken == LEFT_AFTER:
                scope.cancel()
    assert scope.cancelled_caught


async def interrupted(kit: Kit, rig: Rig, client: Any) -> None:
    response = await open_stream(kit, rig, client)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C, which is asyncio's here
    try:
        await read(kit, response, LEFT_AFTER)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(KeyboardInterrupt):
            await anext(response.left)
    finally:
        signal.signal(signal.SIGALRM, before)


async def cancelled_while_waiting_for_the_answer(kit: Kit, rig: Rig, client: Any) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_send_unary, kit, rig, client)
        await anyio.to_thread.run_sync(rig.provider.wait_until, lambda provider: provider.count == 1)
        group.cancel_scope.cancel()


async def _send_unary(kit: Kit, rig: Rig, client: Any) -> None:
    with rig.lava.charge_to(CUSTOMER):
        await kit.send(client, rig.chat_url, json=chat())


async def cancelled_before_the_connection(kit: Kit, rig: Rig, client: Any) -> None:
    """The pool's only connection is taken by a call that nobody pays for."""
    with rig.lava.unbilled("a test"):
        taken = await open_stream(kit, rig, client)
    async with cancelled_once(rig.holds):
        await kit.send(client, rig.chat_url, json=chat())
    await kit.call(taken, "close")


async def no_free_connection(kit: Kit, rig: Rig, client: Any) -> None:
    with rig.lava.unbilled("a test"):
        taken = await open_stream(kit, rig, client)
    with pytest.raises(kit.module.PoolTimeout):
        await kit.send(client, rig.chat_url, json=chat(), timeout=kit.module.Timeout(5, pool=0.02))
    await kit.call(taken, "close")


async def nobody_listens(kit: Kit, rig: Rig, client: Any) -> None:
    (port,) = [int(host.rpartition(":")[2]) for host in rig.lava.hosts if host != rig.provider.host]
    with pytest.raises(kit.module.ConnectError):
        await kit.send(client, f"http://127.0.0.1:{port}/v1/chat/completions", json=chat())


async def read_timeout_before_the_answer(kit: Kit, rig: Rig, client: Any) -> None:
    with pytest.raises(kit.module.ReadTimeout):
        await kit.send(client, rig.chat_url, json=chat(), timeout=kit.module.Timeout(5, read=0.1))


async def read_timeout_in_the_stream(kit: Kit, rig: Rig, client: Any) -> None:
    patience = kit.module.Timeout(5, read=0.2)
    request = client.build_request("POST", rig.chat_url, json=chat(stream=True), timeout=patience)
    response = await kit.call(client, "send", request, stream=True)
    with pytest.raises(kit.module.ReadTimeout):
        assert len([word async for word in words(kit, response)]) == LEFT_AFTER


async def broken_off(kit: Kit, rig: Rig, client: Any) -> None:
    response = await open_stream(kit, rig, client)
    with pytest.raises(kit.module.TransportError):
        async for _ in words(kit, response):
            pass


async def broken_before_the_answer(kit: Kit, rig: Rig, client: Any) -> None:
    with pytest.raises(kit.module.TransportError):
        await kit.send(client, rig.chat_url, json=chat())


async def an_error(kit: Kit, rig: Rig, client: Any) -> None:
    response = await kit.send(client, rig.chat_url, json=chat())
    assert response.status_code >= 400
    assert "lava" not in response.text


async def an_error_nobody_reads(kit: Kit, rig: Rig, client: Any) -> None:
    response = await open_stream(kit, rig, client)
    assert response.status_code >= 400
    await kit.call(response, "close")


async def an_error_in_the_stream(kit: Kit, rig: Rig, client: Any) -> None:
    response = await open_stream(kit, rig, client)
    assert [line async for line in kit.each(response, "lines")]


async def never_closed(kit: Kit, rig: Rig, client: Any) -> None:
    async def drop() -> None:
        response = await open_stream(kit, rig, client)
        response.itself = response
        await read(kit, response, LEFT_AFTER)

    await drop()
    await collected(rig)


async def never_read(kit: Kit, rig: Rig, client: Any) -> None:
    await open_stream(kit, rig, client)
    await collected(rig)


async def collected(rig: Rig) -> None:
    """Force the collector until nothing is held. An event loop closes dropped generators in tasks of its own."""
    for _ in range(500):
        gc.collect()
        await anyio.sleep(0.001)
        if not rig.holds():
            return


async def prebuilt(kit: Kit, rig: Rig, client: Any) -> None:
    mock = canned_transport(LONG, library=kit.module.__name__)
    async with kit.opened(transport=mock) as mocked:
        response = await kit.send(mocked, rig.chat_url, json=chat(stream=True))
        assert len([said for line in response.text.splitlines() if (said := said_in(line))]) == 60
        assert '"usage":{' not in response.text


async def inflated(kit: Kit, rig: Rig, client: Any) -> None:
    response = await kit.send(client, rig.chat_url, json=chat(stream=True))
    assert response.headers["content-encoding"] == "gzip"
    assert "[DONE]" in response.text


async def inflated_unary(kit: Kit, rig: Rig, client: Any) -> None:
    response = await kit.send(client, rig.chat_url, json=chat())
    assert response.headers["content-encoding"] == "gzip"
    assert response.json()["usage"]["completion_tokens"] == 60


GZIP = Script(output_tokens=60, compress="always")
GZIP_WAITS = Script(stall_after=LEFT_AFTER, compress="always")
CUT_OFF = Script(truncate_after=LEFT_AFTER)
RESET = Script(truncate_after=LEFT_AFTER, truncate_by="reset")
ONE_CONNECTION = {"limits": 1}

ENDINGS: dict[str, Ending] = {
    "unary": Ending(unary),
    "drained": Ending(drained),
    "stopped at the terminal event": Ending(stopped_at_the_terminal_event),
    "loop broken": Ending(loop_broken, WAITS, how=("closed", "collected"), charge="counted"),
    "closed early": Ending(closed_early, WAITS, how=("closed",), charge="counted"),
    "closed unread": Ending(closed_unread, Script(stall_after=0), how=("closed",), charge="counted"),
    "cancelled in a scope": Ending(cancelled_in_a_scope, WAITS, how=("cancelled",), charge="counted", colours=ASYNC),
    "interrupted": Ending(interrupted, WAITS, how=("interrupted",), charge="counted", colours=frozenset({"sync"})),
    "cancelled while waiting for the answer": Ending(
        cancelled_while_waiting_for_the_answer,
        Script(stall_after=0),
        how=("cancelled",),
        charge="unknown",
        colours=ASYNC,
    ),
    "cancelled before the connection": Ending(
        cancelled_before_the_connection, WAITS, kind="voided", colours=ASYNC, options=ONE_CONNECTION
    ),
    "no free connection": Ending(no_free_connection, WAITS, kind="voided", options=ONE_CONNECTION),
    "connect error": Ending(nobody_listens, kind="voided", requests=0),
    "read time-out before the answer": Ending(
        read_timeout_before_the_answer, Script(stall_after=0), how=("ReadTimeout",), charge="unknown"
    ),
    "read time-out in the stream": Ending(read_timeout_in_the_stream, WAITS, how=("ReadTimeout",), charge="counted"),
    "broken off": Ending(broken_off, CUT_OFF, how=("RemoteProtocolError",), charge="counted"),
    "reset": Ending(broken_off, RESET, how=("ReadError", "RemoteProtocolError"), charge="counted"),
    "broken before the answer": Ending(
        broken_before_the_answer,
        Script(close_before_answer=True),
        how=("RemoteProtocolError", "ReadError"),
        charge="unknown",
    ),
    **{f"status {status}": Ending(an_error, Script(status=status), kind="voided") for status in (400, 401, 404, 429)},
    **{f"status {status}": Ending(an_error, Script(status=status), kind="voided") for status in (500, 503, 529)},
    **{
        f"status {status}": Ending(an_error, Script(status=status), how=(f"status_{status}",), charge="unknown")
        for status in (408, 502, 504)
    },
    "an error nobody reads": Ending(an_error_nobody_reads, Script(status=429), kind="voided"),
    "an error at the start of a stream": Ending(an_error_in_the_stream, Script(error_after=0), kind="voided"),
    "an error in a stream": Ending(
        an_error_in_the_stream, Script(error_after=LEFT_AFTER), how=("incomplete",), charge="counted"
    ),
    "never closed": Ending(never_closed, WAITS, how=("collected", "closed", "cancelled"), charge="counted"),
    "never read": Ending(never_read, Script(stall_after=0), how=("collected",), charge="counted"),
    "prebuilt response": Ending(prebuilt, requests=0),
    "gzip": Ending(inflated, GZIP),
    "gzip unary": Ending(inflated_unary, GZIP),
    "gzip closed early": Ending(closed_early, GZIP_WAITS, how=("closed",), charge="counted"),
}


def _cases() -> Iterator[Any]:
    for library, colour in COLOURS:
        for name, ending in ENDINGS.items():
            if colour in ending.colours:
                yield pytest.param(Kit(library, colour), ending, id=f"{name.replace(' ', '-')}-{library}-{colour}")


@pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")  # says trio
@pytest.mark.parametrize(("kit", "ending"), list(_cases()))
def test_each_ending_is_one_entry_and_the_charge_it_deserves(kit: Kit, ending: Ending) -> None:
    """T9, T10, T16, T17, T18, T30, T35: and nothing is held afterwards."""
    if kit.colour == "trio":
        pytest.importorskip("trio", reason="trio is not installed")
    with refusing_port() as port, rigged(ending.script, hosts={f"127.0.0.1:{port}": "openai"}) as rig:
        kit.run(lambda: _perform(kit, rig, ending))
        assert rig.endings() == [ending.kind]
        assert rig.kinds().count("held") == 1
        if ending.act is not cancelled_before_the_connection and ending.act is not no_free_connection:
            assert rig.provider.count == ending.requests
        if ending.kind == "voided":
            assert rig.records() == []
            assert rig.lava.balance(CUSTOMER).available == rig.lava.balance(CUSTOMER).balance == priced(2_500_000, 0)
        else:
            _check_charge(rig, ending)


async def _perform(kit: Kit, rig: Rig, ending: Ending) -> None:
    options = {"verify": False, **ending.options}  # loading certificates takes longer than all the rest
    if options.pop("limits", None):
        options["limits"] = kit.module.Limits(max_connections=1)
    with rig.lava.charge_to(CUSTOMER):
        async with kit.opened(**options) as client:
            await ending.act(kit, rig, client)
            gc.collect()


def _check_charge(rig: Rig, ending: Ending) -> None:
    record = rig.record
    assert record.facts["ending"] in ending.how
    assert record.overrun_cause is None
    if ending.charge == "unknown":
        assert record.basis == "estimated"
        assert record.charge.ticks == rig.held.expected > 0
        return
    inputs, outputs = record.usage.get("input", 0), record.usage.get("output", 0)
    assert record.charge == priced(inputs, outputs)
    assert rig.lava.balance(CUSTOMER).available == priced(2_500_000, 0) - record.charge
    if ending.charge == "reported":
        assert (record.basis, outputs) == ("reported", 60)
        assert not ending.requests or inputs == rig.served.input_tokens
    else:
        delivered = rig.served.output_tokens
        assert delivered in (0, LEFT_AFTER)
        assert record.basis == ("counted" if delivered else "estimated")
        assert 0.7 * delivered <= outputs <= 1.2 * delivered
        assert 0.7 * rig.served.input_tokens <= inputs <= 1.2 * rig.served.input_tokens
