"""The shell passes bytes unchanged and ends each exchange exactly once, in both libraries and all colours."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from typing import Any

import anyio
import pytest

from lava_middleware.transport.seen import Departure, Item, Seen, Stop

from .shell_kit import (
    BODY,
    EVENTS,
    FakeFlight,
    Kit,
    Provider,
    Script,
    Ticket,
    akit,
    cancelled_once,
    kit,
    provider,
    script,
    skit,
)

__all__ = ["akit", "kit", "provider", "script", "skit"]

# trio's own, and the libraries' own: without us too they leave their generators to the collector when a body is left.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


def only_ending(script: Script) -> str | None:
    (flight,) = script.flights
    assert len(flight.endings) == 1
    return flight.ending


# What passes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
@pytest.mark.parametrize("how", ["raw", "bytes", "text", "lines", "stream"])
def test_every_reading_path_gives_the_same_bytes_however_they_were_cut(
    kit: Kit, provider: Provider, script: Script, size: int, how: str
) -> None:
    """T30: the bytes pass unchanged, and the flight has seen them all."""

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/cut/{size}", stream=True)
            pieces = [piece async for piece in kit.each(response, how)]
            if how == "stream":
                await kit.call(response, "close")
        if how == "lines":
            assert pieces == BODY.decode().splitlines()
        else:
            assert "".join(pieces).encode() == BODY if how == "text" else b"".join(pieces) == BODY
        assert script.flight.raw == BODY
        assert only_ending(script) == "finished"

    kit.run(main)


def test_a_call_that_reads_at_once_is_finished_at_once(kit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/cut/7", json={"q": 1})
            assert response.content == BODY
            assert response.text == BODY.decode()
            assert only_ending(script) == "finished"
            assert script.flight.told[:4] == ["authorize", "departure", "dispatched", "answered"]
            assert response.extensions["lava_record_id"] == "r1"
            assert response.request.url == f"{provider.url}/cut/7"

    kit.run(main)


def test_the_flight_sees_the_bytes_still_compressed_and_the_application_sees_them_inflated(
    kit: Kit, provider: Provider, script: Script
) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/gzip")
            assert response.content == BODY
            assert gzip.decompress(script.flight.raw) == BODY
            assert dict(script.flight.headers)[b"content-encoding"] == b"gzip"

    kit.run(main)


def test_elapsed_can_be_asked_for_after_the_end(kit: Kit, provider: Provider, script: Script) -> None:
    """httpx2 asks the stream for it: unknown attributes are those of the library's own stream."""

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/echo", content=b"hello")
            assert response.elapsed.total_seconds() > 0
            with pytest.raises(AttributeError):
                _ = response.stream.nothing_of_the_kind

    kit.run(main)


def test_events_may_be_hidden(kit: Kit, provider: Provider, script: Script) -> None:
    def hide(flight: FakeFlight, data: bytes) -> list[Item]:
        return [event for event in EVENTS if event in data and b'"n": 3' not in event]

    script.on_push = hide

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/cut/{len(EVENTS[0])}", stream=True)
            assert b"".join([piece async for piece in kit.each(response)]) == BODY.replace(EVENTS[3], b"")

    kit.run(main)


def test_what_the_flight_still_has_at_the_end_is_passed_on(kit: Kit, provider: Provider, script: Script) -> None:
    script.on_push = lambda flight, data: []
    script.on_end = lambda flight: [flight.raw, b"tail"]

    async def main() -> None:
        async with kit.opened() as client:
            assert (await kit.send(client, f"{provider.url}/cut/7")).content == BODY + b"tail"

    kit.run(main)


def test_a_stream_waits_for_the_ledger_where_the_flight_says_so(kit: Kit, provider: Provider, script: Script) -> None:
    tickets = []

    def pay(flight: FakeFlight, data: bytes) -> list[Item]:
        tickets.append(Ticket())
        return [tickets[-1], data]

    script.on_push = pay
    script.ticket = Ticket()

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/cut/200", stream=True)
            assert b"".join([piece async for piece in kit.each(response)]) == BODY
        assert script.ticket is not None
        assert script.ticket.waits == 1
        assert all(ticket.waits == 1 for ticket in tickets)

    kit.run(main)


def test_a_ticket_that_is_done_is_not_waited_for(kit: Kit, provider: Provider, script: Script) -> None:
    script.ticket = Ticket(comes=False)
    script.ticket.done = True

    async def main() -> None:
        async with kit.opened() as client:
            await kit.send(client, f"{provider.url}/echo", content=b"x")
        assert script.ticket is not None
        assert script.ticket.waits == 0

    kit.run(main)


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_an_error_of_the_provider_passes_as_it_is(kit: Kit, provider: Provider, script: Script, status: int) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/status/{status}")
            assert response.status_code == script.flight.status == status
            assert response.json() == {"error": "no"}
            assert only_ending(script) == "finished"

    kit.run(main)


def test_an_answer_with_nothing_to_meter_is_not_wrapped(kit: Kit, provider: Provider, script: Script) -> None:
    script.wants = False

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/cut/7")
            assert response.content == BODY
            assert "Metered" not in type(response.stream).__name__
            assert script.flight.raw == b""

    kit.run(main)


def test_a_host_that_the_gate_does_not_know_gets_the_librarys_own_objects(
    kit: Kit, provider: Provider, script: Script
) -> None:
    script.knows = lambda seen: False

    async def main() -> None:
        async with kit.opened() as client:
            request = client.build_request("POST", f"{provider.url}/cut/7")
            response = await kit.call(client, "send", request)
            assert response.content == BODY
            assert response.request is request
            assert request.extensions.keys() == {"timeout"}
            assert "Metered" not in type(response.stream).__name__
            assert script.opened == 1

    kit.run(main)


# What the gate sees -------------------------------------------------------------------------------------------------


def test_the_gate_sees_the_url_taken_apart_and_the_bytes(kit: Kit, provider: Provider, script: Script) -> None:
    seen: list[tuple[Seen, bytes | None]] = []
    script.knows = lambda request: bool(seen.append((request, request.content())))

    async def main() -> None:
        async with kit.opened(transport=kit.mock(lambda request: kit.module.Response(200))) as client:
            await kit.send(client, "https://USER:secret@API.Example.com:8443/v1/a%20b?x=1&y=2#stream", json={"a": 1})
            await kit.send(client, "http://api.example.com./v1", files={"file": b"x" * 10})

    kit.run(main)
    (first, content), (second, multipart) = seen
    assert (first.method, first.scheme, first.host, first.port) == ("POST", "https", "api.example.com", 8443)
    assert (first.path, first.query) == ("/v1/a%20b", b"x=1&y=2")
    assert json.loads(content or b"") == {"a": 1}
    assert first.headers.get("content-type") == "application/json"
    assert first.headers.get("nothing") is None
    assert first.headers.get_list("content-type") == ["application/json"]
    assert "secret" not in repr(first)
    assert "x=1" not in repr(first)
    assert (second.host, second.port, multipart) == ("api.example.com.", 80, None)


def test_bodies_that_are_no_bytes_are_never_read(kit: Kit, provider: Provider, script: Script) -> None:
    """T29: files, multipart and generators go through as they are."""
    seen: list[bytes | None] = []
    script.knows = lambda request: bool(seen.append(request.content())) or True

    async def pieces() -> Any:
        yield b"one"
        yield b"two"

    async def main() -> None:
        async with kit.opened() as client:
            body = pieces() if kit.is_async else iter([b"one", b"two"])
            response = await kit.send(client, f"{provider.url}/echo", content=body)
            assert response.content == b"onetwo"
            await kit.send(client, f"{provider.url}/echo", files={"file": b"x"})
            assert seen == [None, None]

    kit.run(main)


# Edits and refusals -------------------------------------------------------------------------------------------------


def test_a_replaced_body_goes_out_with_its_own_length_and_the_applications_request_stays_as_it_was(
    kit: Kit, provider: Provider, script: Script
) -> None:
    script.departure = Departure(content=b'{"longer": true}', headers={"accept-encoding": "identity", "x-gone": None})

    async def main() -> None:
        async with kit.opened() as client:
            request = client.build_request(
                "POST", f"{provider.url}/echo?q=1", json={}, headers={"x-gone": "1", "x-kept": "1"}
            )
            before = (request.content, list(request.headers.raw), dict(request.extensions))
            response = await kit.call(client, "send", request)
            assert response.content == b'{"longer": true}'
            ((_, path, headers, body),) = provider.requests
            assert (path, body, headers["content-length"]) == ("/echo?q=1", b'{"longer": true}', "16")
            assert headers["accept-encoding"] == "identity"
            assert "x-gone" not in headers
            assert headers["x-kept"] == "1"
            assert (request.content, list(request.headers.raw), dict(request.extensions)) == before
            assert response.request.content == b'{"longer": true}'
            # sent again as it stands, it is an exchange of its own
            await kit.call(client, "send", response.request)
            assert [flight.ending for flight in script.flights] == ["finished", "finished"]
            assert script.flights[1].told.count("dispatched") == 1

    kit.run(main)


def test_without_edits_the_response_names_the_applications_own_request(
    kit: Kit, provider: Provider, script: Script
) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            request = client.build_request("POST", f"{provider.url}/echo", content=b"x")
            response = await kit.call(client, "send", request)
            assert response.request is request

    kit.run(main)


def test_a_refusal_is_an_answer_and_nothing_is_sent(kit: Kit, provider: Provider, script: Script) -> None:
    script.refuse()
    hooked: list[int] = []

    def hook(response: Any) -> None:
        hooked.append(response.status_code)

    async def ahook(response: Any) -> None:
        hook(response)

    async def main() -> None:
        async with kit.opened(event_hooks={"response": [ahook if kit.is_async else hook]}) as client:
            for stream in (False, True):
                response = await kit.send(client, f"{provider.url}/echo", content=b"x", stream=stream)
                assert type(response) is kit.module.Response
                assert await kit.call(response, "read") == b'{"error": {"code": "insufficient_credit"}}'
                assert response.json()["error"]["code"] == "insufficient_credit"
                assert [piece async for piece in kit.each(response)]
                assert response.extensions["lava"] == "why"
                assert response.extensions["lava_record_id"] == "r1"
                assert response.elapsed.total_seconds() == 0
                assert response.http_version == "HTTP/1.1"
                with pytest.raises(kit.module.HTTPStatusError):
                    response.raise_for_status()
                await kit.call(response, "close")
        assert hooked == [402, 402]
        assert provider.requests == []
        assert [flight.endings for flight in script.flights] == [["denied"], ["denied"]]
        assert "dispatched" not in script.flights[0].told

    kit.run(main)


@pytest.mark.parametrize("how", ["raw", "bytes", "text", "lines", "stream"])
def test_a_refusal_can_be_read_in_every_way_that_a_providers_error_can(
    kit: Kit, provider: Provider, script: Script, how: str
) -> None:
    """T13: iter_raw() too, which a response that is built with its content does not give."""
    script.refuse()

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/echo", content=b"x", stream=True)
            assert (response.is_closed, response.is_stream_consumed) == (False, False)
            pieces = [piece async for piece in kit.each(response, how)]
            body = "".join(pieces) if how in ("text", "lines") else b"".join(pieces).decode()
            assert body == '{"error": {"code": "insufficient_credit"}}'
            assert response.headers["content-length"] == str(len(body))
            await kit.call(response, "close")
            assert response.is_closed

    kit.run(main)


def test_each_hop_of_a_redirect_is_an_exchange(kit: Kit, provider: Provider, script: Script) -> None:
    """T7: the second hop authorizes itself, with the application's body, not with the edited one of the first."""
    script.departure = Departure(content=b"edited")

    async def main() -> None:
        async with kit.opened(follow_redirects=True) as client:
            response = await kit.send(client, f"{provider.url}/redirect", content=b"mine")
            assert response.content == b"edited"
            assert [flight.seen.path for flight in script.flights] == ["/redirect", "/echo"]
            assert [flight.seen.content() for flight in script.flights] == [b"mine", b"mine"]
            assert [flight.endings for flight in script.flights] == [["finished"], ["finished"]]

    kit.run(main)


def test_an_error_of_configuration_propagates_and_nothing_is_sent(kit: Kit, provider: Provider, script: Script) -> None:
    def misconfigured(seen: Seen) -> bool:
        raise LookupError("no ledger")

    script.knows = misconfigured

    async def main() -> None:
        async with kit.opened() as client:
            with pytest.raises(LookupError, match="no ledger"):
                await kit.send(client, f"{provider.url}/echo")
        assert provider.requests == []

    kit.run(main)


# Endings: the reader stops --------------------------------------------------------------------------------------------


def test_leaving_the_loop_and_closing_ends_once_and_closes_upstream(
    kit: Kit, provider: Provider, script: Script
) -> None:
    """T17, T18: what was read is what the flight has seen."""

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/endless", stream=True)
            async for piece in kit.each(response):
                assert piece
                break
            await kit.call(response, "close")
            assert (only_ending(script) or "").startswith("abandoned c")
            assert await anyio.to_thread.run_sync(provider.gone.wait, 5)

    kit.run(main)


def test_closing_before_reading_ends_as_closed(kit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/endless", stream=True)
            await kit.call(response, "close")
            await kit.call(response, "close")
            assert only_ending(script) == "abandoned closed"
            assert await anyio.to_thread.run_sync(provider.gone.wait, 5)

    kit.run(main)


def test_a_stream_that_nobody_closes_ends_when_it_is_collected(kit: Kit, provider: Provider, script: Script) -> None:
    """T18, T35: broken off and dropped, with and without a cycle around it."""

    async def main() -> None:
        async with kit.opened() as client:

            async def drop() -> None:
                response = await kit.send(client, f"{provider.url}/endless", stream=True)
                response.itself = response
                if kit.is_async:
                    iterator = response.aiter_bytes()
                    await anext(iterator)
                else:
                    next(response.iter_bytes())

            await drop()
            for _ in range(50):
                gc.collect()
                if script.flight.ended:
                    break
                await anyio.sleep(0.01)
            assert (only_ending(script) or "").split()[0] == "abandoned"

    kit.run(main)


def test_a_response_that_nobody_reads_ends_when_it_is_collected(kit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            await kit.send(client, f"{provider.url}/endless", stream=True)
            gc.collect()
            assert only_ending(script) == "abandoned collected"

    kit.run(main)


@pytest.mark.parametrize("path", ["one", "endless"])
def test_a_cancelled_scope_ends_the_stream_and_closes_upstream(
    akit: Kit, provider: Provider, script: Script, path: str
) -> None:
    """T17: level cancellation, while waiting for bytes and between them."""

    async def main() -> None:
        async with akit.opened() as client:
            with anyio.CancelScope() as scope:
                async with client.stream("POST", f"{provider.url}/{path}") as response:
                    async for _ in akit.each(response):
                        if path == "endless":
                            scope.cancel()
                        else:
                            scope.deadline = anyio.current_time() + 0.05
            assert scope.cancelled_caught
            assert (only_ending(script) or "").split()[0] == "abandoned"
            assert await anyio.to_thread.run_sync(provider.gone.wait, 5)

    akit.run(main)


def test_a_cancelled_task_ends_the_stream(akit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        async with akit.opened() as client, anyio.create_task_group() as group:
            got = anyio.Event()

            async def read() -> None:
                async with client.stream("POST", f"{provider.url}/one") as response:
                    async for _ in akit.each(response):
                        got.set()

            group.start_soon(read)
            await got.wait()
            group.cancel_scope.cancel()
        assert only_ending(script) == "abandoned cancelled"

    akit.run(main)


def test_cancelled_while_the_stream_waits_for_the_ledger(akit: Kit, provider: Provider, script: Script) -> None:
    script.on_push = lambda flight, data: [Ticket(comes=False), data]

    async def main() -> None:
        async with akit.opened() as client:
            async with (
                cancelled_once(lambda: script.flights and script.flight.raw),
                client.stream("POST", f"{provider.url}/endless") as response,
            ):
                async for _ in akit.each(response):
                    raise AssertionError("nothing was paid for")
            assert only_ending(script) == "abandoned cancelled"
            assert await anyio.to_thread.run_sync(provider.gone.wait, 5)

    akit.run(main)


def test_an_interrupt_ends_the_stream(skit: Kit, provider: Provider, script: Script) -> None:
    def interrupt(flight: FakeFlight, data: bytes) -> list[Item]:
        raise KeyboardInterrupt

    script.on_push = interrupt
    client = skit.client()
    with pytest.raises(KeyboardInterrupt), client.stream("POST", f"{provider.url}/endless") as response:
        list(response.iter_bytes())
    assert only_ending(script) == "abandoned interrupted"
    assert provider.gone.wait(5)
    client.close()


def test_dropping_the_iterator_closes_upstream_as_it_does_without_us(
    kit: Kit, provider: Provider, script: Script
) -> None:
    """Although the response, which nobody has closed, is still there."""

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/endless", stream=True)
            if kit.is_async:
                iterator = response.stream.__aiter__()
                await anext(iterator)
                await iterator.aclose()
            else:
                next(iter(response.stream))
            assert await anyio.to_thread.run_sync(provider.gone.wait, 5)
            assert (only_ending(script) or "").startswith("abandoned c")
            await kit.call(response, "close")

    kit.run(main)


# Endings: before the answer -------------------------------------------------------------------------------------------


def test_cancelled_while_the_authorize_is_on_its_way(akit: Kit, provider: Provider, script: Script) -> None:
    """T45"""
    script.ticket = Ticket(comes=False)

    async def main() -> None:
        async with akit.opened() as client:
            async with cancelled_once(lambda: script.ticket.waits):
                await akit.send(client, f"{provider.url}/echo")
            assert only_ending(script) == "withdrawn"
            assert provider.requests == []

    akit.run(main)


def test_cancelled_while_waiting_for_a_pooled_connection_nothing_was_sent(
    akit: Kit, provider: Provider, script: Script
) -> None:
    async def main() -> None:
        async with akit.opened(limits=akit.module.Limits(max_connections=1)) as client:
            async with (
                client.stream("POST", f"{provider.url}/one"),
                cancelled_once(lambda: len(script.flights) == 2 and "departure" in script.flights[1].told),
            ):
                await akit.send(client, f"{provider.url}/echo")
            first, second = script.flights
            assert "dispatched" in first.told
            assert second.told[:2] == ["authorize", "departure"]
            assert second.endings[0].startswith("unsent Cancelled")
            assert "dispatched" not in second.told

    akit.run(main)


def test_no_free_connection_in_time_is_unsent(kit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        limits, timeout = kit.module.Limits(max_connections=1), kit.module.Timeout(5, pool=0.05)
        async with kit.opened(limits=limits, timeout=timeout) as client:
            response = await kit.send(client, f"{provider.url}/one", stream=True)
            with pytest.raises(kit.module.PoolTimeout):
                await kit.send(client, f"{provider.url}/echo")
            await kit.call(response, "close")
            assert script.flights[1].endings == ["unsent PoolTimeout"]
            assert "dispatched" not in script.flights[1].told

    kit.run(main)


def test_nobody_listening_is_unsent(kit: Kit, script: Script) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]

    async def main() -> None:
        async with kit.opened() as client:
            with pytest.raises(kit.module.ConnectError):
                await kit.send(client, f"http://127.0.0.1:{port}/echo")
            assert only_ending(script) == "unsent ConnectError"
            assert "dispatched" not in script.flight.told

    kit.run(main)


def test_a_proxy_that_does_not_connect_is_unsent(kit: Kit, provider: Provider, script: Script) -> None:
    """The CONNECT is announced like any request, but it is not ours."""

    async def main() -> None:
        async with kit.opened(proxy=provider.url) as client:
            with pytest.raises(kit.module.ProxyError):
                await kit.send(client, "https://api.example.com/v1")
            assert provider.requests[0][0] == "CONNECT"
            assert only_ending(script) == "unsent ProxyError"
            assert "dispatched" not in script.flight.told

    kit.run(main)


def test_a_header_that_cannot_be_sent_is_unsent(kit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            with pytest.raises(kit.module.LocalProtocolError):
                await kit.send(client, f"{provider.url}/echo", headers={"x-bad": "a\nb"})
            assert only_ending(script) == "unsent LocalProtocolError"

    kit.run(main)


def test_cancelled_while_waiting_for_the_answer(akit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        async with akit.opened() as client:
            async with cancelled_once(lambda: script.flights and "dispatched" in script.flight.told):
                await akit.send(client, f"{provider.url}/silent")
            assert only_ending(script) == "abandoned cancelled"
            assert "dispatched" in script.flight.told

    akit.run(main)


def test_a_read_timeout_before_the_answer_is_lost(kit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        async with kit.opened(timeout=kit.module.Timeout(10, read=0.1)) as client:
            with pytest.raises(kit.module.ReadTimeout):
                await kit.send(client, f"{provider.url}/silent")
            assert only_ending(script) == "lost ReadTimeout"

    kit.run(main)


def test_a_read_timeout_in_mid_stream_is_lost(kit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        async with kit.opened(timeout=kit.module.Timeout(10, read=0.1)) as client:
            response = await kit.send(client, f"{provider.url}/one", stream=True)
            with pytest.raises(kit.module.ReadTimeout):
                _ = [piece async for piece in kit.each(response)]
            await kit.call(response, "close")
            assert script.flight.raw == EVENTS[0]
            assert only_ending(script) == "lost ReadTimeout"

    kit.run(main)


def test_a_connection_that_breaks_in_mid_stream_is_lost(kit: Kit, provider: Provider, script: Script) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            with pytest.raises(kit.module.RemoteProtocolError):
                await kit.send(client, f"{provider.url}/break")
            assert script.flight.raw == EVENTS[0] + b"half"
            assert only_ending(script) == "lost RemoteProtocolError"

    kit.run(main)


# Cuts -----------------------------------------------------------------------------------------------------------------


def cut_after(count: int, stop: Stop) -> Any:
    def on_push(flight: FakeFlight, data: bytes) -> list[Item]:
        return [data] if len(flight.raw) < count * len(EVENTS[0]) else [stop]

    return on_push


def test_a_cut_passes_the_last_bytes_on_and_closes_upstream(kit: Kit, provider: Provider, script: Script) -> None:
    script.on_push = cut_after(3, Stop(b"data: [DONE]\n\n"))

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/endless", stream=True)
            pieces = []
            async for piece in kit.each(response, "stream"):
                pieces.append(piece)
                if piece.startswith(b"data: [DONE]"):
                    script.flight.extensions["lava"] = "too late for the answer's head"
                    assert await anyio.to_thread.run_sync(provider.gone.wait, 5)
            assert b"".join(pieces) == b"".join(EVENTS[:2]) + b"data: [DONE]\n\n"
            assert [piece async for piece in kit.each(response, "stream")] == []
            await kit.call(response, "close")
            assert only_ending(script) == "cut"

    kit.run(main)


def test_why_it_was_cut_is_on_the_response(kit: Kit, provider: Provider, script: Script) -> None:
    def cut(flight: FakeFlight, data: bytes) -> list[Item]:
        flight.extensions["lava"] = "why"
        return [Stop(b"end")]

    script.on_push = cut

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/endless")
            assert response.content == b"end"
            assert response.extensions["lava"] == "why"

    kit.run(main)


def test_a_cut_with_an_error_reaches_the_application_unchanged(kit: Kit, provider: Provider, script: Script) -> None:
    class Cut(Exception):
        pass

    error = Cut("no more credit")
    script.on_push = cut_after(2, Stop(None, error))

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/endless", stream=True)
            for _ in range(2):  # reading on raises it again
                with pytest.raises(Cut) as raised:
                    _ = [piece async for piece in kit.each(response, "stream")]
                assert raised.value is error
            await kit.call(response, "close")
            assert only_ending(script) == "cut"
            assert await anyio.to_thread.run_sync(provider.gone.wait, 5)

    kit.run(main)


def test_a_stream_that_the_watcher_has_ended_raises_when_it_is_pulled_again(
    kit: Kit, provider: Provider, script: Script
) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/endless", stream=True)
            reader = kit.each(response)
            await anext(reader)
            assert not script.flight.reading
            assert time.monotonic() - script.flight.last_read < 1
            script.flight.stalled = True
            script.flight._ends("stalled")
            with pytest.raises(TimeoutError, match="nobody read"):
                await anext(reader)
            await kit.call(response, "close")
            assert only_ending(script) == "stalled"
            assert await anyio.to_thread.run_sync(provider.gone.wait, 5)

    kit.run(main)


def test_a_stream_that_nobody_reads_is_closed_upstream_by_another_thread(
    kit: Kit, provider: Provider, script: Script
) -> None:
    """The provider stops at once, and the connection's place is free; whoever comes back is told."""

    async def main() -> None:
        options = {"limits": kit.module.Limits(max_connections=1), "timeout": 5}
        async with kit.opened(**options) as client:
            response = await kit.send(client, f"{provider.url}/endless", stream=True)
            reader = kit.each(response)
            await anext(reader)
            flight = script.flight
            flight.stalled = True
            flight._ends("stalled")
            assert flight.hang_up is not None
            await anyio.to_thread.run_sync(flight.hang_up)
            assert await anyio.to_thread.run_sync(provider.gone.wait, 5)
            await kit.send(client, f"{provider.url}/echo", content=b"next")
            with pytest.raises(TimeoutError, match="nobody read"):
                await anext(reader)
            await kit.call(response, "close")
            assert flight.ending == "stalled"
            # sent while another response of the client's was still open
            assert script.flights[1].ending == "finished"

    kit.run(main)


def test_a_stream_that_is_being_read_is_not_closed_from_outside(akit: Kit, provider: Provider, script: Script) -> None:
    """Hidden reasoning is minutes of silence."""
    kit = akit

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/one", stream=True)
            got: list[bytes] = []

            async def read() -> None:
                async for piece in kit.each(response):
                    got.append(piece)

            with contextlib.suppress(kit.module.RemoteProtocolError):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    while not (got and script.flight.reading):
                        await anyio.sleep(0.001)
                    assert script.flight.hang_up is not None
                    script.flight.hang_up()
                    await anyio.sleep(0.05)
                    assert not provider.gone.is_set()
                    tasks.cancel_scope.cancel()

    kit.run(main)


def test_hanging_up_a_stream_that_is_gone_or_in_a_closed_loop_changes_nothing(
    kit: Kit, provider: Provider, script: Script
) -> None:
    kept: list[Any] = []

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/cut/7", stream=True)
            kept.append(response)

    kit.run(main)
    assert script.flight.hang_up is not None
    script.flight.hang_up()
    kept.clear()
    gc.collect()
    script.flight.hang_up()


def test_the_flight_knows_of_a_pending_read_in_a_thread_too(skit: Kit, script: Script) -> None:
    seen = []

    class Body(skit.module.SyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Any:
            for event in EVENTS[:2]:
                seen.append(script.flight.reading)
                yield event

    def answer(request: Any) -> Any:
        seen.append(script.flight.reading)
        return skit.module.Response(200, stream=Body())

    with skit.client(transport=skit.mock(answer)) as client, client.stream("POST", "https://x.test") as response:
        seen.append(script.flight.reading)
        for _ in response.iter_raw():
            seen.append(script.flight.reading)
    assert seen == [True, False, True, False, True, False]
    assert not script.flight.reading


def test_while_a_send_or_a_read_is_pending_the_flight_knows(akit: Kit, provider: Provider, script: Script) -> None:
    """No patience of ours runs out in minutes of hidden reasoning."""

    async def main() -> None:
        async with akit.opened() as client, anyio.create_task_group() as group:

            async def read() -> None:
                async with client.stream("POST", f"{provider.url}/one") as response:
                    async for _ in akit.each(response):
                        pass

            async def silent() -> None:
                await akit.send(client, f"{provider.url}/silent")

            group.start_soon(read)
            while not script.flights or not script.flights[0].raw:
                await anyio.sleep(0.005)
            await anyio.sleep(0.02)
            assert script.flights[0].reading
            group.start_soon(silent)
            await anyio.sleep(0.05)
            assert script.flights[1].reading
            group.cancel_scope.cancel()

    akit.run(main)


# Iterating twice ------------------------------------------------------------------------------------------------------


def test_a_second_iterator_continues_where_the_first_stands(kit: Kit, provider: Provider, script: Script) -> None:
    """As openai drains response.stream after [DONE] while its first iterator is suspended."""

    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/cut/5", stream=True)
            first = kit.each(response, "stream")
            got = [await anext(first), await anext(first)]
            got += [piece async for piece in kit.each(response, "stream")]
            await first.aclose()  # type: ignore[attr-defined]
            assert b"".join(got) == script.flight.raw == BODY
            assert [piece async for piece in kit.each(response, "stream")] == []
            await kit.call(response, "close")
            assert only_ending(script) == "finished"

    kit.run(main)


def test_an_older_iterator_that_is_dropped_does_not_end_what_a_newer_one_reads(
    kit: Kit, provider: Provider, script: Script
) -> None:
    async def main() -> None:
        async with kit.opened() as client:
            response = await kit.send(client, f"{provider.url}/cut/50", stream=True)
            if kit.is_async:
                first, second = response.stream.__aiter__(), response.stream.__aiter__()
                got = [await anext(first), await anext(second)]
                await first.aclose()
                got += [piece async for piece in second]
            else:
                first, second = iter(response.stream), iter(response.stream)
                got = [next(first), next(second)]
                first.close()
                got += list(second)
            assert b"".join(got) == BODY
            await kit.call(response, "close")
            assert only_ending(script) == "finished"

    kit.run(main)


# Responses that are there already -------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_prebuilt_response_is_fed_at_once_and_passes_as_it_is(kit: Kit, script: Script, packed: bool) -> None:
    def handler(request: Any) -> Any:
        if packed:
            return kit.module.Response(200, headers={"content-encoding": "gzip"}, content=gzip.compress(BODY))
        return kit.module.Response(200, content=BODY, headers={"x-mine": "1"})

    async def main() -> None:
        async with kit.opened(transport=kit.mock(handler)) as client:
            response = await kit.send(client, "https://api.example.com/v1", stream=True)
            assert only_ending(script) == "finished"
            assert script.flight.raw == BODY
            assert b"content-encoding" not in dict(script.flight.headers)
            assert await kit.call(response, "read") == BODY
            assert b"".join([piece async for piece in kit.each(response)]) == BODY
            await kit.call(response, "close")
            assert only_ending(script) == "finished"

    kit.run(main)


@pytest.mark.parametrize("packed", [False, True])
def test_a_prebuilt_response_is_rebuilt_where_it_is_cut(kit: Kit, script: Script, packed: bool) -> None:
    script.on_push = lambda flight, data: [data[:10], Stop(b"end")]
    headers = {"x-mine": "1", **({"content-encoding": "gzip"} if packed else {})}

    def handler(request: Any) -> Any:
        return kit.module.Response(200, content=gzip.compress(BODY) if packed else BODY, headers=headers)

    async def main() -> None:
        async with kit.opened(transport=kit.mock(handler)) as client:
            response = await kit.send(client, "https://api.example.com/v1")
            assert response.content == BODY[:10] + b"end"
            assert response.headers["content-length"] == "13"
            assert "content-encoding" not in response.headers
            assert response.headers["x-mine"] == "1"
            assert response.request.url == "https://api.example.com/v1"
            assert only_ending(script) == "cut"

    kit.run(main)


def test_a_prebuilt_response_that_is_cut_with_an_error_raises(kit: Kit, script: Script) -> None:
    script.on_push = lambda flight, data: [Stop(None, LookupError("cut"))]

    async def main() -> None:
        async with kit.opened(transport=kit.mock(lambda request: kit.module.Response(200, content=BODY))) as client:
            with pytest.raises(LookupError, match="cut"):
                await kit.send(client, "https://api.example.com/v1")
            assert only_ending(script) == "cut"

    kit.run(main)


# Transports of all kinds ----------------------------------------------------------------------------------------------


def transport(kit: Kit, act: Any) -> Any:
    """A transport that tells nobody when it sends."""
    if kit.is_async:

        class Custom(kit.module.AsyncBaseTransport):  # type: ignore[misc, name-defined]
            async def handle_async_request(self, request: Any) -> Any:
                return await act(request)

    else:

        class Custom(kit.module.BaseTransport):  # type: ignore[misc, name-defined, no-redef]
            def handle_request(self, request: Any) -> Any:
                return anyio.run(act, request)

    return Custom()


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        ("ConnectError", "unsent"),
        ("ConnectTimeout", "unsent"),
        ("PoolTimeout", "unsent"),
        ("ReadError", "lost"),
        ("WriteError", "lost"),
        ("ReadTimeout", "lost"),
        (ConnectionRefusedError, "unsent"),
        (ValueError, "lost"),
    ],
)
def test_a_transport_that_traces_nothing_is_believed_by_the_class_of_its_error(
    kit: Kit, script: Script, error: Any, ending: str
) -> None:
    kind = getattr(kit.module, error) if isinstance(error, str) else error

    async def act(request: Any) -> Any:
        assert script.flight.told[-1] == "dispatched"
        raise kind("broken")

    async def main() -> None:
        async with kit.opened(transport=transport(kit, act)) as client:
            with pytest.raises(kind):
                await kit.send(client, "https://api.example.com/v1")
            assert only_ending(script) == f"{ending} {kind.__name__}"

    if kit.is_async:
        kit.run(main)
    else:
        client = kit.client(transport=transport(kit, act))
        with pytest.raises(kind):
            client.post("https://api.example.com/v1")
        assert only_ending(script) == f"{ending} {kind.__name__}"


def test_a_transport_that_tries_again_after_a_send_is_not_unsent(kit: Kit, provider: Provider, script: Script) -> None:
    """The first attempt has left, whatever the second one says."""

    module = kit.module
    if kit.is_async:

        class Retrying(module.AsyncHTTPTransport):  # type: ignore[misc, name-defined]
            async def handle_async_request(self, request: Any) -> Any:
                response = await super().handle_async_request(request)
                await response.aread()
                await response.aclose()
                raise module.ConnectError("the second attempt")

    else:

        class Retrying(module.HTTPTransport):  # type: ignore[misc, name-defined, no-redef]
            def handle_request(self, request: Any) -> Any:
                super().handle_request(request).read()
                raise module.ConnectError("the second attempt")

    async def main() -> None:
        async with kit.opened(transport=Retrying()) as client:
            with pytest.raises(module.ConnectError):
                await kit.send(client, f"{provider.url}/echo", content=b"x")
            assert only_ending(script) == "lost ConnectError"

    kit.run(main)


def test_mounted_transports_are_metered_like_any_other(kit: Kit, script: Script) -> None:
    mounted = kit.mock(lambda request: kit.module.Response(200, content=b"mounted"))

    async def main() -> None:
        async with kit.opened(mounts={"all://api.example.com": mounted}) as client:
            assert (await kit.send(client, "https://api.example.com/v1")).content == b"mounted"
            assert only_ending(script) == "finished"

    kit.run(main)


def test_the_applications_own_trace_is_still_called(kit: Kit, provider: Provider, script: Script) -> None:
    names: list[str] = []

    def trace(name: str, info: Any) -> None:
        if name == "http11.send_request_headers.started":
            assert "dispatched" not in script.flight.told
        names.append(name)

    async def atrace(name: str, info: Any) -> None:
        trace(name, info)

    async def main() -> None:
        async with kit.opened() as client:
            extensions = {"trace": atrace if kit.is_async else trace}
            response = await kit.send(client, f"{provider.url}/echo", content=b"x", extensions=extensions)
            assert response.content == b"x"
            assert "http11.send_request_headers.started" in names
            assert "http11.response_closed.complete" in names
            assert script.flight.told.count("dispatched") == 1

    kit.run(main)


def test_the_transport_is_asked_to_trace_no_longer_than_needed(
    kit: Kit, provider: Provider, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event costs a call, or a coroutine."""
    from lava_middleware.transport import shell

    names: list[str] = []
    monkeypatch.setattr(shell._Attempt, "_heard", _listening(shell._Attempt._heard, names))

    async def main() -> None:
        async with kit.opened() as client:
            for _ in range(2):
                names.clear()
                await kit.send(client, f"{provider.url}/echo")
        assert names == ["http11.send_request_headers.started", "http11.send_request_headers.complete"]

    kit.run(main)


def _listening(heard: Any, names: list[str]) -> Any:
    def listen(self: Any, name: str, info: Any) -> None:
        names.append(name)
        heard(self, name, info)

    return listen


def test_an_error_in_the_applications_trace_keeps_the_request_here(
    kit: Kit, provider: Provider, script: Script
) -> None:
    def trace(name: str, info: Any) -> None:
        if name == "http11.send_request_headers.started":
            raise LookupError(name)

    async def atrace(name: str, info: Any) -> None:
        trace(name, info)

    async def main() -> None:
        async with kit.opened() as client:
            with pytest.raises(LookupError):
                await kit.send(client, f"{provider.url}/echo", extensions={"trace": atrace if kit.is_async else trace})
            assert only_ending(script) == "unsent LookupError"
            assert provider.requests == []

    kit.run(main)


def test_a_client_inside_a_transport_is_not_metered_again(kit: Kit, provider: Provider, script: Script) -> None:
    """One attempt on the wire is metered once, however many patched layers it passes."""
    module = kit.module
    if kit.is_async:

        class Forwarding(module.AsyncBaseTransport):  # type: ignore[misc, name-defined]
            async def handle_async_request(self, request: Any) -> Any:
                async with module.AsyncClient() as inner:
                    answer = await inner.post(request.url, content=request.content)
                return module.Response(answer.status_code, stream=module.ByteStream(answer.content))

    else:

        class Forwarding(module.BaseTransport):  # type: ignore[misc, name-defined, no-redef]
            def handle_request(self, request: Any) -> Any:
                with module.Client() as inner:
                    answer = inner.post(request.url, content=request.content)
                return module.Response(answer.status_code, stream=module.ByteStream(answer.content))

    async def main() -> None:
        async with kit.opened(transport=Forwarding()) as client:
            assert (await kit.send(client, f"{provider.url}/echo", content=b"x")).content == b"x"
            assert script.opened == 1
            assert only_ending(script) == "finished"
            # and afterwards nothing is let through by mistake
            await kit.send(client, f"{provider.url}/echo", content=b"x")
            assert script.opened == 2

    kit.run(main)


def test_a_sync_body_on_an_async_client_is_left_to_the_librarys_own_error(akit: Kit, script: Script) -> None:
    async def main() -> None:
        async with akit.opened() as client:
            with pytest.raises(RuntimeError):
                await akit.send(client, "https://api.example.com/v1", content=iter([b"x"]))
            assert script.opened == 0

    akit.run(main)


# Processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("how", ["exit", "collect", "close", "read"])
def test_a_forked_child_ends_nothing_of_its_parents(skit: Kit, provider: Provider, script: Script, how: str) -> None:
    """T36: the child's exit, its collector and its close() are none of the exchange's business."""
    client = skit.client()
    response = skit.run(lambda: skit.send(client, f"{provider.url}/cut/50", stream=True))
    iterator = response.iter_bytes()
    next(iterator)
    told = len(script.flight.told)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # what the flight was told in the child is written to the pipe
        try:
            if how == "close":
                response.close()
            elif how == "read":
                next(iterator, None)
            if how != "exit":
                del response, iterator
                gc.collect()
            import atexit

            atexit._run_exitfuncs()
            os.write(write, repr(script.flight.told[told:]).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "[]"
    assert script.flight.ending is None
    response.close()
    client.close()
    assert only_ending(script) == "abandoned closed"


def test_nothing_is_ended_at_exit() -> None:
    """T36: what is open at exit is resolved by recovery, not by a half-dismantled interpreter."""
    code = """
        import os
        import httpx
        from lava_middleware.transport import instrument
        class Flight:
            extensions, ended = {}, False
            def authorize(self): return None
            def departure(self):
                from lava_middleware.transport.seen import Departure
                return Departure()
            def dispatched(self): pass
            def answered(self, status, headers): return True
            def abandoned(self, how, write=os.write): write(1, how.encode())
            def push(self, data): self.data = data
            def pull(self): data, self.data = getattr(self, "data", None), None; return data
            def end(self): pass
        class Gate:
            def open(self, request): return Flight()
        class Body(httpx.SyncByteStream):
            def __iter__(self):
                yield b"one"
                yield b"two"
        instrument.instrument(Gate)
        transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Body()))
        client = httpx.Client(transport=transport)
        response = client.send(client.build_request("POST", "http://x.test"), stream=True)
        iterator = iter(response.stream)
        assert next(iterator) == b"one"
        cycle = [response]
        cycle.append(cycle)
        kept = client.send(client.build_request("POST", "http://x.test"), stream=True)
        print("read", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("read\n", "")
