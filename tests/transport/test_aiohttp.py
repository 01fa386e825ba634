"""Requests through aiohttp are metered: every ending is one entry, and what aiohttp hands out stays what it was."""

from __future__ import annotations

import asyncio
import gc
import os
import types
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest

from lava_middleware import Amount, Refused, StreamCut, StreamStalled, denied
from lava_middleware.testing import Script, count_tokens, refusing_port
from lava_middleware.transport.guards import unguard
from lava_middleware.transport.instrument import uninstrument

from .rig import CUSTOMER, Rig, chat, eventually, priced, rigged, said_in
from .shell_kit import cancelled_once
from .test_endings import CUT_OFF, GZIP, GZIP_WAITS, LEFT_AFTER, RESET, WAITS, Ending, _check_charge

aiohttp = pytest.importorskip("aiohttp")
httpx2 = pytest.importorskip("httpx2")

Act = Callable[[Rig, Any], Awaitable[None]]
STREAM = chat(stream=True)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    unguard()
    uninstrument()


async def words(response: Any) -> list[str]:
    return [said async for line in response.content if (said := said_in(line.decode().strip()))]


async def read(response: Any, number: int) -> None:
    """Read so many tokens."""
    while number:
        number -= bool(said_in((await response.content.readline()).decode().strip()))


async def unary(rig: Rig, session: Any) -> None:
    async with session.post(rig.chat_url, json=chat()) as response:
        assert (await response.json())["usage"]["completion_tokens"] == 60


async def drained(rig: Rig, session: Any) -> None:
    async with session.post(rig.chat_url, json=STREAM) as response:
        assert len(await words(response)) == 60


async def stopped_at_the_terminal_event(rig: Rig, session: Any) -> None:
    response = await session.post(rig.chat_url, json=STREAM)
    while (await response.content.readline()) != b"data: [DONE]\n":
        pass
    response.release()


async def closed_early(rig: Rig, session: Any) -> None:
    response = await session.post(rig.chat_url, json=STREAM)
    await read(response, LEFT_AFTER)
    response.close()
    response.close()


async def released_early(rig: Rig, session: Any) -> None:
    async with session.post(rig.chat_url, json=STREAM) as response:
        await read(response, LEFT_AFTER)


async def closed_unread(rig: Rig, session: Any) -> None:
    (await session.post(rig.chat_url, json=STREAM)).close()


async def cancelled_in_a_scope(rig: Rig, session: Any) -> None:
    response = await session.post(rig.chat_url, json=STREAM)
    with anyio.CancelScope() as scope:
        await read(response, LEFT_AFTER)
        scope.cancel()
        await words(response)
    assert scope.cancelled_caught
    response.release()


async def cancelled_while_waiting_for_the_answer(rig: Rig, session: Any) -> None:
    task = asyncio.create_task(_send(rig, session))
    await asyncio.to_thread(rig.provider.wait_until, lambda provider: provider.count == 1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _send(rig: Rig, session: Any) -> None:
    await session.post(rig.chat_url, json=chat())


async def cancelled_before_the_connection(rig: Rig, session: Any) -> None:
    """The pool's only connection is taken by a call that nobody pays for."""
    with rig.lava.unbilled("a test"):
        taken = await session.post(rig.chat_url, json=STREAM)
    async with cancelled_once(rig.holds):
        await session.post(rig.chat_url, json=chat())
    taken.close()


async def no_free_connection(rig: Rig, session: Any) -> None:
    with rig.lava.unbilled("a test"):
        taken = await session.post(rig.chat_url, json=STREAM)
    with pytest.raises(aiohttp.ConnectionTimeoutError):
        await session.post(rig.chat_url, json=chat(), timeout=aiohttp.ClientTimeout(connect=0.02))
    taken.close()


async def nobody_listens(rig: Rig, session: Any) -> None:
    (host,) = [host for host in rig.lava.hosts if host != rig.provider.host]
    with pytest.raises(aiohttp.ClientConnectorError):
        await session.post(f"http://{host}/v1/chat/completions", json=chat())


async def timeout_before_the_answer(rig: Rig, session: Any) -> None:
    with pytest.raises(TimeoutError):
        await session.post(rig.chat_url, json=chat(), timeout=aiohttp.ClientTimeout(total=0.05))


async def timeout_in_the_stream(rig: Rig, session: Any) -> None:
    async with session.post(rig.chat_url, json=STREAM, timeout=aiohttp.ClientTimeout(sock_read=0.1)) as response:
        with pytest.raises(TimeoutError):
            await words(response)


async def broken_off(rig: Rig, session: Any) -> None:
    async with session.post(rig.chat_url, json=STREAM) as response:
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await words(response)


async def broken_before_the_answer(rig: Rig, session: Any) -> None:
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await session.post(rig.chat_url, json=chat())


async def an_error(rig: Rig, session: Any) -> None:
    async with session.post(rig.chat_url, json=chat()) as response:
        assert response.status >= 400
        assert "lava" not in await response.text()


async def an_error_that_is_raised(rig: Rig, session: Any) -> None:
    with pytest.raises(aiohttp.ClientResponseError) as raised:
        await session.post(rig.chat_url, json=chat(), raise_for_status=True)
    assert denied(raised.value) is None


async def an_error_in_the_stream(rig: Rig, session: Any) -> None:
    async with session.post(rig.chat_url, json=STREAM) as response:
        assert await response.read()


async def its_session_closed(rig: Rig, session: Any) -> None:
    """And then collected: aiohttp itself keeps a response alive until its connection is gone."""
    response = await session.post(rig.chat_url, json=STREAM)
    await read(response, LEFT_AFTER)
    del response
    await session.close()
    for _ in range(500):
        gc.collect()
        await asyncio.sleep(0.001)
        if not rig.holds():
            return


async def inflated(rig: Rig, session: Any) -> None:
    async with session.post(rig.chat_url, json=STREAM) as response:
        assert response.headers["content-encoding"] == "gzip"
        assert "[DONE]" in await response.text()


async def raw(rig: Rig, session: Any) -> None:
    async with session.post(rig.chat_url, json=STREAM, auto_decompress=False) as response:
        assert (await response.read())[:2] == b"\x1f\x8b"


LONG = Script(output_tokens=60)
ENDINGS = {
    "unary": Ending(unary),
    "drained": Ending(drained),
    "stopped at the terminal event": Ending(stopped_at_the_terminal_event),
    "closed early": Ending(closed_early, WAITS, how=("closed",), charge="counted"),
    "released early": Ending(released_early, WAITS, how=("closed",), charge="counted"),
    "closed unread": Ending(closed_unread, Script(stall_after=0), how=("closed",), charge="counted"),
    "cancelled in a scope": Ending(cancelled_in_a_scope, WAITS, how=("cancelled",), charge="counted"),
    "cancelled while waiting for the answer": Ending(
        cancelled_while_waiting_for_the_answer, Script(stall_after=0), how=("cancelled",), charge="unknown"
    ),
    "cancelled before the connection": Ending(cancelled_before_the_connection, WAITS, kind="voided"),
    "no free connection": Ending(no_free_connection, WAITS, kind="voided"),
    "connect error": Ending(nobody_listens, kind="voided", requests=0),
    "time-out before the answer": Ending(
        timeout_before_the_answer, Script(stall_after=0), how=("TimeoutError", "cancelled"), charge="unknown"
    ),
    "time-out in the stream": Ending(timeout_in_the_stream, WAITS, how=("SocketTimeoutError",), charge="counted"),
    "broken off": Ending(broken_off, CUT_OFF, how=("ClientPayloadError",), charge="counted"),
    "reset": Ending(broken_off, RESET, how=("ClientPayloadError", "ClientOSError"), charge="counted"),
    "broken before the answer": Ending(
        broken_before_the_answer,
        Script(close_before_answer=True),
        how=("ServerDisconnectedError", "ClientOSError"),
        charge="unknown",
    ),
    **{f"status {status}": Ending(an_error, Script(status=status), kind="voided") for status in (400, 429, 500, 529)},
    "status 504": Ending(an_error, Script(status=504), how=("status_504",), charge="unknown"),
    "an error that is raised": Ending(an_error_that_is_raised, Script(status=429), kind="voided"),
    "an error at the start of a stream": Ending(an_error_in_the_stream, Script(error_after=0), kind="voided"),
    "an error in a stream": Ending(
        an_error_in_the_stream, Script(error_after=LEFT_AFTER), how=("incomplete",), charge="counted"
    ),
    "its session closed": Ending(its_session_closed, WAITS, how=("collected",), charge="counted"),
    "gzip": Ending(inflated, GZIP),
    "gzip as it came": Ending(raw, GZIP),
    "gzip closed early": Ending(closed_early, GZIP_WAITS, how=("closed",), charge="counted"),
}
ONE_CONNECTION = (cancelled_before_the_connection, no_free_connection)


@pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")  # says aiohttp of a response that is dropped
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=[name.replace(" ", "-") for name in ENDINGS])
def test_each_ending_is_one_entry_and_the_charge_it_deserves(ending: Ending) -> None:
    """T9, T10, T16, T17, T18, T30, T35: and nothing is held afterwards."""

    async def main() -> None:
        connector = aiohttp.TCPConnector(limit=1 if ending.act in ONE_CONNECTION else 100)
        with rig.lava.charge_to(CUSTOMER):
            async with aiohttp.ClientSession(connector=connector) as session:
                act: Any = ending.act
                await act(rig, session)

    with refusing_port() as port, rigged(ending.script, hosts={f"127.0.0.1:{port}": "openai"}) as rig:
        asyncio.run(main())
        assert rig.endings() == [ending.kind]
        assert rig.kinds().count("held") == 1
        if ending.act not in ONE_CONNECTION:
            assert rig.provider.count == ending.requests
        if ending.kind == "voided":
            assert rig.records() == []
            assert rig.lava.balance(CUSTOMER).available == priced(2_500_000, 0)
        else:
            _check_charge(rig, ending)


def run(act: Act, script: Script | None = None, customer: str = CUSTOMER, **settings: Any) -> Rig:
    """What a session did on the account of a customer, to be looked at when it is over."""

    async def main(rig: Rig) -> None:
        async with aiohttp.ClientSession() as session:
            with rig.lava.charge_to(customer):
                await act(rig, session)

    with rigged(script, **settings) as rig:
        asyncio.run(main(rig))
        return types.SimpleNamespace(  # type: ignore[return-value]  # the ledger of a closed Lava cannot be read
            records=rig.records(customer),
            kinds=rig.kinds(customer),
            requests=rig.provider.requests,
            count=rig.provider.count,
        )


def test_a_refusal_is_the_providers_402_and_nothing_is_sent() -> None:
    """T13: as a response, and as aiohttp's own error, which leads to the decision."""

    async def act(rig: Rig, session: Any) -> None:
        async with session.post(rig.chat_url, json=chat()) as response:
            assert (response.status, response.reason, response.content_type) == (
                402,
                "Payment Required",
                "application/json",
            )
            assert (await response.json())["error"]["code"] == "insufficient_quota"
            assert response.extensions["lava"].available == Amount(0)
        with pytest.raises(aiohttp.ClientResponseError) as raised:
            await session.post(rig.chat_url, json=chat(), raise_for_status=True)
        decision = denied(raised.value)
        assert decision is not None
        assert decision.reason == "insufficient_credit"

    done = run(act, customer="poor")
    assert (done.count, done.kinds) == (0, [])


def test_a_body_that_is_never_all_in_memory_is_refused() -> None:
    """T4: what cannot be read cannot be bounded."""

    async def bits() -> Any:
        yield b"{}"

    async def act(rig: Rig, session: Any) -> None:
        form = aiohttp.FormData({"model": "gpt-4o-mini"})
        form.add_field("file", b"x", filename="x.json")
        for data in (bits(), form):
            async with session.post(rig.chat_url, data=data) as response:
                assert response.status == 400
                assert response.extensions["lava"].reason == "request_unreadable"

    assert run(act).count == 0


def test_a_websocket_to_a_provider_is_a_door_without_a_meter() -> None:
    """T4."""

    async def act(rig: Rig, session: Any) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            await session.ws_connect(f"ws://{rig.provider.host}/v1/realtime?model=gpt-4o-mini")
        assert raised.value.status == 403

    assert run(act).count == 0


def test_each_hop_of_a_redirect_authorizes_itself_with_the_applications_own_body() -> None:
    """T7: our edits of the first hop are not the second one's request."""

    async def act(rig: Rig, session: Any) -> None:
        rig.provider.queue(Script(status=307), Script())
        async with session.post(rig.chat_url, json=STREAM) as response:
            text = await response.text()
        assert '"usage":{' not in text  # asked for by us, and hidden: the application did not ask

    done = run(act)
    assert [kind for kind in done.kinds if kind != "extended"] == ["held", "voided", "held", "settled"]
    assert all(request.asks_usage for request in done.requests)


def test_the_applications_own_middlewares_and_base_url_go_on_working() -> None:
    seen: list[str] = []

    async def of_the_session(request: Any, handler: Any) -> Any:
        seen.append("session")
        return await handler(request)

    async def of_the_request(request: Any, handler: Any) -> Any:
        seen.append("request")
        return await handler(request)

    async def main(rig: Rig) -> None:
        async with aiohttp.ClientSession(f"{rig.provider.url}/v1/", middlewares=[of_the_session]) as session:
            with rig.lava.charge_to(CUSTOMER):
                for given in (None, [of_the_request]):
                    async with session.post("chat/completions", json=chat(), middlewares=given) as response:
                        assert response.status == 200

    with rigged() as rig:
        asyncio.run(main(rig))
        assert rig.endings() == ["settled", "settled"]
    assert seen == ["session", "request"]


READERS: dict[str, Callable[[Any], Awaitable[bytes]]] = {
    "read": lambda response: response.read(),
    "lines": lambda response: _join(response.content),
    "any": lambda response: _join(response.content.iter_any()),
    "chunked": lambda response: _join(response.content.iter_chunked(7)),
    "chunks": lambda response: _join(_first(response.content.iter_chunks())),
    "until": lambda response: _join(_until(response.content)),
    "waited for": lambda response: _waited(response.content),
}


async def _join(parts: Any) -> bytes:
    return b"".join([part async for part in parts])


async def _first(pairs: Any) -> Any:
    async for data, _ in pairs:
        yield data


async def _until(content: Any) -> Any:
    while not content.at_eof():
        yield await content.readuntil(b"\n\n")


async def _waited(content: Any) -> bytes:
    await content.wait_eof()
    whole: bytes = content.read_nowait()
    return whole


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize("split", [None, 11])
def test_whatever_way_it_is_read_the_bytes_are_the_providers(how: str, split: int | None) -> None:
    """T30, and G7: byte for byte."""
    body = chat(stream=True, stream_options={"include_usage": True})
    got: list[bytes] = []

    async def act(rig: Rig, session: Any) -> None:
        rig.provider.reset()
        with rig.lava.unbilled("the bytes without us"):
            async with session.post(rig.chat_url, json=body) as response:
                got.append(await response.read())
        rig.provider.reset()
        async with session.post(rig.chat_url, json=body) as response:
            got.append(await READERS[how](response))

    done = run(act, Script(split_bytes=split))
    without, metered = ([line for line in one.split(b"\n") if b'"created"' not in line] for one in got)
    assert without == metered
    assert [len(one) for one in got] == [len(got[0])] * 2
    assert done.records[0].basis == "reported"


def test_the_ends_of_chunks_are_still_told() -> None:
    async def act(rig: Rig, session: Any) -> None:
        async with session.post(rig.chat_url, json=STREAM) as response:
            ends = [end async for data, end in response.content.iter_chunks() if data]
        assert len(ends) > 40
        assert all(ends)

    run(act)


def test_two_readers_at_once_are_aiohttps_own_error_and_no_ending() -> None:
    async def act(rig: Rig, session: Any) -> None:
        async with session.post(rig.chat_url, json=STREAM) as response:
            await read(response, LEFT_AFTER)
            while response.content._buffer:
                await response.content.readany()
            first = asyncio.create_task(response.content.readany())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another coroutine"):
                await response.content.readany()
            assert rig.holds() == 1
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first

    run(act, WAITS)


def test_a_read_that_is_given_up_is_no_ending() -> None:
    """aiohttp's readers may be polled with a time-out: what comes afterwards is metered like all the rest."""

    async def act(rig: Rig, session: Any) -> None:
        async with session.post(rig.chat_url, json=STREAM) as response:
            got, late = b"", 0
            while not response.content.at_eof():
                try:
                    got += await asyncio.wait_for(response.content.readany(), 0.002)
                except TimeoutError:
                    late += 1
            assert late
            assert b"[DONE]" in got

    done = run(act, Script(chunk_delay_s=0.005))
    assert (done.records[0].basis, done.records[0].usage["output"]) == ("reported", 40)


@pytest.mark.parametrize("how", ["end", "raise"])
def test_a_stream_whose_money_ends_is_cut_and_closed_upstream(how: str) -> None:
    """T3."""

    async def main(rig: Rig) -> None:
        async with aiohttp.ClientSession() as session:
            with rig.lava.charge_to("nearly"):
                async with session.post(rig.chat_url, json=STREAM) as response:
                    if how == "raise":
                        with pytest.raises(StreamCut) as raised:
                            await words(response)
                        assert denied(raised.value) is not None
                        return
                    text = (await response.read()).decode()
        said = "".join(map(said_in, text.splitlines()))
        assert '"finish_reason":"length"' in text
        assert "data: [DONE]" in text
        assert 0 < count_tokens(said) < 200
        assert response.extensions["lava"].reason == "insufficient_credit"

    settings = {"on_exhausted": how} if how == "raise" else {}
    with rigged(Script(ignores_cap=True, chunk_delay_s=0.0005), **settings) as rig:
        rig.lava.grant("nearly", "0.0014")
        asyncio.run(main(rig))
        (record,) = rig.records("nearly")
        assert record.facts["ending"] == "cut"
        assert record.charge <= Amount.of("0.0014")
        rig.provider.wait_idle()
        assert rig.served.state == "aborted"


def test_a_stream_nobody_reads_is_closed_upstream_and_reading_again_raises() -> None:
    """T10, T17."""

    async def main(rig: Rig) -> None:
        async with aiohttp.ClientSession() as session:
            with rig.lava.charge_to(CUSTOMER):
                response = await session.post(rig.chat_url, json=STREAM)
                await read(response, 5)
                real = rig.lava.monotonic
                rig.lava.monotonic = lambda: real() + 601
                rig.lava._do_chores()
                await asyncio.to_thread(eventually, lambda: not rig.holds())
                await asyncio.to_thread(rig.provider.wait_idle)
                with pytest.raises(StreamStalled):
                    await response.read()

    with rigged(Script(stall_after=LEFT_AFTER), stall_s=600) as rig:
        asyncio.run(main(rig))
        assert rig.record.facts["ending"] == "stalled"
        assert rig.served.state == "aborted"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_open_stream_is_its_own_process_s() -> None:
    """T36: a forked child that drops it ends nothing."""

    async def act(rig: Rig, session: Any) -> None:
        response = await session.post(rig.chat_url, json=STREAM)
        await read(response, LEFT_AFTER)
        child = os.fork()
        if not child:
            del response
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        assert rig.holds() == 1
        response.close()

    assert run(act, WAITS).records[0].facts["ending"] == "closed"


def test_httpx_over_aiohttp_is_metered_once() -> None:
    """The SDKs' own aiohttp transports pass through two meters."""

    class Transport(httpx2.AsyncBaseTransport):  # type: ignore[misc,name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            async with aiohttp.ClientSession() as session:
                headers = {name: value for name, value in request.headers.items() if name != "host"}
                sent = await session.request(request.method, str(request.url), data=request.content, headers=headers)
                return httpx2.Response(sent.status, headers=list(sent.headers.items()), content=await sent.read())

    async def act(rig: Rig, session: Any) -> None:
        async with httpx2.AsyncClient(transport=Transport()) as client:
            (await client.post(rig.chat_url, json=chat())).raise_for_status()

    assert run(act).kinds == ["held", "settled"]


def test_who_pays_is_nobodys_business_where_nobody_pays_or_nobody_provides() -> None:
    async def act(rig: Rig, session: Any) -> None:
        async with session.get(f"{rig.provider.openai_base_url}/models") as response:
            assert response.status == 200
            assert not hasattr(response, "extensions")
        with rig.lava.unbilled("a health check"):
            async with session.post(rig.chat_url, json=chat()) as response:
                assert response.status == 200

    assert run(act).kinds == []


def test_an_aiohttp_without_middlewares_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """T4: what cannot be metered does not leave."""
    from lava_middleware.transport import aiohttp as driver

    monkeypatch.setattr(driver, "fault", lambda module: "ClientSession._request takes no middlewares")

    async def act(rig: Rig, session: Any) -> None:
        with pytest.raises(Refused, match=r"install aiohttp 3\.12"):
            await session.post(rig.chat_url, json=chat())

    assert run(act).count == 0


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        ("ClientSession", "_request", "middlewares"),
        ("ClientSession", "ATTRS", "_middlewares"),
        ("ClientRequest", "update_body", "update_body"),
        ("StreamReader", "_wait", "_wait"),
    ],
)
def test_each_private_name_that_is_used_is_looked_for_first(owner: str, name: str, said: str) -> None:
    from lava_middleware.transport.aiohttp import fault

    assert fault(aiohttp) is None
    other = types.SimpleNamespace(**vars(aiohttp))
    setattr(other, owner, type(owner, (), {n: v for n, v in vars(getattr(aiohttp, owner)).items() if n == "nothing"}))
    if owner == "ClientSession" and name == "ATTRS":
        other.ClientSession._request = aiohttp.ClientSession._request
    assert said in (fault(other) or "")


def test_taking_the_meter_away_leaves_aiohttp_as_it_was() -> None:
    before = aiohttp.ClientSession._request
    with rigged():
        assert aiohttp.ClientSession._request is not before
    unguard()
    uninstrument()
    assert aiohttp.ClientSession._request is before
