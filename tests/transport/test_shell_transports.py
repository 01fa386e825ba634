"""The explicit transports do what the patch does, and both together meter once."""

from __future__ import annotations

import importlib
from contextvars import Context, copy_context
from typing import Any

import pytest

from lava_middleware.errors import ConfigurationError
from lava_middleware.transport.shell import is_under_way

from .shell_kit import BODY, Kit, Provider, Script, kit, provider, script, skit

__all__ = ["kit", "provider", "script", "skit"]


def explicit(kit: Kit, gate: Any, inner: Any = None) -> Any:
    module = importlib.import_module(f"lava_middleware.transport.{kit.module.__name__}")
    transport = (module.AsyncLavaTransport if kit.is_async else module.LavaTransport)(inner)
    if gate is not None:
        transport._gate = gate
    return transport


def test_an_explicit_transport_gates_and_meters(kit: Kit, provider: Provider) -> None:
    gate = Script()

    async def main() -> None:
        async with kit.opened(transport=explicit(kit, gate)) as client:
            response = await kit.send(client, f"{provider.url}/cut/7", content=b"x")
            assert response.content == BODY
            assert response.elapsed.total_seconds() > 0
            assert gate.flight.ending == "finished"
            assert gate.flight.told.count("dispatched") == 1
            gate.refuse()
            assert (await kit.send(client, f"{provider.url}/echo")).status_code == 402
            assert len(provider.requests) == 1

    kit.run(main)


def test_a_client_closes_the_inner_transport_and_enters_it(kit: Kit, provider: Provider) -> None:
    told: list[str] = []
    base = kit.module.AsyncHTTPTransport if kit.is_async else kit.module.HTTPTransport
    names = ("aclose", "__aenter__", "__aexit__") if kit.is_async else ("close", "__enter__", "__exit__")

    def telling(name: str) -> Any:
        def tell(self: Any, *args: Any) -> Any:
            told.append(name.strip("_"))
            return getattr(base, name)(self, *args)

        return tell

    inner = type("Inner", (base,), {name: telling(name) for name in names})()

    async def main() -> None:
        client = kit.client(transport=explicit(kit, Script(), inner))
        if kit.is_async:
            async with client:
                await client.get(f"{provider.url}/echo")
            await client.aclose()
            assert told[:2] == ["aenter", "aexit"]
        else:
            with client:
                client.get(f"{provider.url}/echo")
            assert told[:2] == ["enter", "exit"]

    kit.run(main)


def test_in_an_instrumented_process_the_explicit_transport_meters_and_nobody_else(
    kit: Kit, provider: Provider, script: Script
) -> None:
    outer, inner = Script(), Script()

    async def main() -> None:
        async with kit.opened(transport=explicit(kit, outer, explicit(kit, inner))) as client:
            assert (await kit.send(client, f"{provider.url}/cut/7")).content == BODY
        assert script.opened == 0
        assert outer.opened + inner.opened == 1

    kit.run(main)


def test_an_explicit_transport_below_a_custom_one_is_passed_when_the_patch_meters_above(
    kit: Kit, provider: Provider, script: Script
) -> None:
    gate = Script()
    below = explicit(kit, gate)
    module = kit.module
    if kit.is_async:

        class Custom(module.AsyncBaseTransport):  # type: ignore[misc, name-defined]
            async def handle_async_request(self, request: Any) -> Any:
                return await below.handle_async_request(request)

            async def aclose(self) -> None:
                await below.aclose()
    else:

        class Custom(module.BaseTransport):  # type: ignore[misc, name-defined, no-redef]
            def handle_request(self, request: Any) -> Any:
                return below.handle_request(request)

            def close(self) -> None:
                below.close()

    async def main() -> None:
        async with kit.opened(transport=Custom()) as client:
            assert (await kit.send(client, f"{provider.url}/echo", content=b"x")).content == b"x"
        assert (script.opened, gate.opened) == (1, 0)

    kit.run(main)


def test_a_transport_that_hands_over_to_another_thread_is_not_metered_again(
    skit: Kit, provider: Provider, script: Script
) -> None:
    """A thread has no context; the mark on the request says that it is metered."""
    from concurrent.futures import ThreadPoolExecutor

    kit, gate = skit, Script()
    below = explicit(kit, gate)

    class Threaded(kit.module.BaseTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(below.handle_request, request).result()

        def close(self) -> None:
            below.close()

    async def main() -> None:
        async with kit.opened(transport=Threaded()) as client:
            assert (await kit.send(client, f"{provider.url}/echo", content=b"x")).content == b"x"
        assert (script.opened, gate.opened) == (1, 0)

    kit.run(main)


def test_a_transport_without_any_lava_says_so_instead_of_letting_everything_through(
    kit: Kit, provider: Provider
) -> None:
    async def main() -> None:
        async with kit.opened(transport=explicit(kit, None)) as client:
            with pytest.raises(ConfigurationError, match="lava="):
                await kit.send(client, f"{provider.url}/echo")
        assert provider.requests == []

    kit.run(main)


def test_what_a_transport_spawned_is_gated_once_the_attempt_is_over(
    kit: Kit, provider: Provider, script: Script
) -> None:
    """T4: a spawned task or thread inherits the context of the send, and outlives it."""
    base = kit.module.AsyncHTTPTransport if kit.is_async else kit.module.HTTPTransport
    inherited: list[Context] = []

    def spawn() -> None:
        inherited.append(copy_context())  # as tasks, to_thread() and callbacks of the loop do

    if kit.is_async:

        class Spawning(base):  # type: ignore[misc, valid-type]
            async def handle_async_request(self, request: Any) -> Any:
                spawn()
                return await super().handle_async_request(request)
    else:

        class Spawning(base):  # type: ignore[misc, valid-type, no-redef]
            def handle_request(self, request: Any) -> Any:
                spawn()
                return super().handle_request(request)

    async def main() -> None:
        async with kit.opened(transport=Spawning()) as client:
            await kit.send(client, f"{provider.url}/echo", content=b"x")
        (late,) = inherited
        assert late.run(is_under_way) is False
        script.refuse()
        with kit.module.Client() as other:
            assert late.run(other.post, f"{provider.url}/echo").status_code == 402
        assert len(provider.requests) == 1

    kit.run(main)
