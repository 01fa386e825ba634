"""The patch is put once, where every client passes, and taken away without a trace."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from functools import wraps
from typing import Any

import pytest

from lava_middleware.errors import InstrumentError
from lava_middleware.transport import imports, instrument
from lava_middleware.transport.instrument import POINT
from lava_middleware.transport.library import library_of

from .shell_kit import Kit, Provider, Script, kit, provider, script

__all__ = ["kit", "provider", "script"]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    instrument.uninstrument()
    assert not instrument.is_instrumented()


def owner(kit: Kit) -> Any:
    return kit.module.AsyncClient if kit.is_async else kit.module.Client


def in_a_new_process(code: str) -> str:
    """What the code prints, where nothing has been imported yet."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_clients_built_before_and_after_are_metered_and_not_after_uninstrumenting(kit: Kit, provider: Provider) -> None:
    script = Script()

    async def main() -> None:
        async with kit.opened() as before:
            instrument.instrument(lambda: script)
            async with kit.opened() as after:
                await kit.send(before, f"{provider.url}/echo")
                await kit.send(after, f"{provider.url}/echo")
            assert [flight.ending for flight in script.flights] == ["finished", "finished"]
            instrument.uninstrument()
            await kit.send(before, f"{provider.url}/echo")
            assert script.opened == 2

    kit.run(main)


def test_instrumenting_again_changes_nothing_but_the_gate(kit: Kit, provider: Provider) -> None:
    first, second = Script(), Script()
    plain = getattr(owner(kit), POINT)
    instrument.instrument(lambda: first)
    patched = getattr(owner(kit), POINT)
    assert patched is not plain
    instrument.instrument(lambda: second)
    assert getattr(owner(kit), POINT) is patched

    async def main() -> None:
        async with kit.opened() as client:
            await kit.send(client, f"{provider.url}/echo")

    kit.run(main)
    assert (first.opened, second.opened) == (0, 1)
    instrument.uninstrument()
    instrument.uninstrument()
    assert getattr(owner(kit), POINT) is plain


def test_the_gate_in_force_is_looked_up_at_each_request(kit: Kit, provider: Provider) -> None:
    gates: list[Script | None] = [None, Script()]
    instrument.instrument(lambda: gates[0])

    async def main() -> None:
        async with kit.opened() as client:
            await kit.send(client, f"{provider.url}/echo")
            gates.reverse()
            await kit.send(client, f"{provider.url}/echo")
            assert gates[0] is not None
            assert gates[0].opened == 1

    kit.run(main)


@pytest.mark.parametrize("tells", [True, False])
def test_a_wrapper_that_others_put_above_ours_stays_and_nothing_is_metered_twice(
    kit: Kit, provider: Provider, tells: bool
) -> None:
    """`tells`: whether the wrapper says what it wraps; if it does not, the guard against re-entry still counts once."""
    script = Script()
    plain = getattr(owner(kit), POINT)
    instrument.instrument(lambda: script)
    ours = getattr(owner(kit), POINT)

    if kit.is_async:

        async def above(self: Any, request: Any) -> Any:
            return await ours(self, request)
    else:

        def above(self: Any, request: Any) -> Any:
            return ours(self, request)

    setattr(owner(kit), POINT, wraps(ours)(above) if tells else above)

    async def main() -> None:
        async with kit.opened() as client:
            instrument.uninstrument()
            await kit.send(client, f"{provider.url}/echo")
            assert script.opened == 0
            instrument.instrument(lambda: script)
            await kit.send(client, f"{provider.url}/echo")
            assert script.opened == 1

    try:
        kit.run(main)
    finally:
        instrument.uninstrument()
        setattr(owner(kit), POINT, plain)
        instrument._patched.clear()


def test_the_wrapped_method_looks_as_before(kit: Kit) -> None:
    import inspect

    plain = getattr(owner(kit), POINT)
    instrument.instrument(lambda: None)
    patched = getattr(owner(kit), POINT)
    assert inspect.signature(patched) == inspect.signature(plain)
    assert inspect.iscoroutinefunction(patched) is kit.is_async
    assert patched.__qualname__ == plain.__qualname__


@pytest.mark.parametrize("fault", ["missing", "signature", "colour"])
def test_a_library_without_the_point_is_refused_by_name_and_the_other_way_is_shown(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "missing":
        monkeypatch.delattr(owner(kit), POINT)
    elif fault == "signature":
        monkeypatch.setattr(owner(kit), POINT, lambda self, request, timeout: None)
    elif kit.is_async:
        monkeypatch.setattr(owner(kit), POINT, lambda self, request: None)
    else:

        async def coloured(self: Any, request: Any) -> None: ...

        monkeypatch.setattr(owner(kit), POINT, coloured)
    with pytest.raises(InstrumentError) as raised:
        instrument.instrument(lambda: None)
    said = str(raised.value)
    assert f"{kit.module.__name__} {kit.module.__version__}" in said
    assert ("AsyncLavaTransport()" if kit.is_async else "LavaTransport()") in said
    assert getattr(kit.module.Client if kit.is_async else kit.module.AsyncClient, POINT, None) is not None


def test_a_library_imported_later_is_patched_by_its_import() -> None:
    printed = in_a_new_process("""
        import sys
        from lava_middleware.transport import imports
        from lava_middleware.transport.instrument import _patch, MARK
        late = [name for name in ("httpx", "httpx2") if name not in sys.modules]
        for name in ("httpx", "httpx2"):
            imports.when_imported(name, _patch)
        assert all(name not in sys.modules for name in late)  # watching imports nothing
        import httpx, httpx2
        for module in (httpx, httpx2):
            for owner in (module.Client, module.AsyncClient):
                assert getattr(owner._send_single_request, MARK)
                assert not hasattr(owner._send_single_request.__wrapped__, MARK)
        assert type(httpx2.__spec__.loader).__module__ != "lava_middleware.transport.imports"
        assert imports._finder not in sys.meta_path  # nothing is left to watch for
        print(sorted(late))
    """)
    assert "httpx2" in printed


def test_a_library_under_two_names_is_patched_once(kit: Kit) -> None:
    """httpx2.alias_httpx() makes the name httpx be httpx2."""
    instrument.instrument(lambda: None)
    patched = getattr(owner(kit), POINT)
    alias = types.ModuleType("httpx")
    vars(alias).update(vars(kit.module))
    instrument._patch(alias)
    assert getattr(owner(kit), POINT) is patched
    assert library_of(alias) is library_of(kit.module)
    assert library_of(alias).name == kit.module.__name__


def test_an_action_runs_once_after_the_import_and_its_error_is_the_imports(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lava_test_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[int] = []

    def action(module: Any) -> None:
        seen.append(module.value)
        if len(seen) == 1:
            raise InstrumentError("no")

    try:
        imports.when_imported("lava_test_module", action)
        imports.when_imported("lava_test_module", action)
        assert seen == []
        with pytest.raises(InstrumentError):
            importlib.import_module("lava_test_module")
        assert "lava_test_module" not in sys.modules
        importlib.import_module("lava_test_module")
        assert seen == [1, 1]
        imports.when_imported("lava_test_module", action)  # imported already: at once
        assert seen == [1, 1, 1]
    finally:
        imports.forget("lava_test_module", action)
        sys.modules.pop("lava_test_module", None)
    assert imports._finder not in sys.meta_path or any(imports._waiting.values())


def test_a_request_to_an_unknown_host_costs_one_question(
    kit: Kit, provider: Provider, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work, not seconds: the gate is asked once and nothing of ours is built."""
    from lava_middleware.transport import shell

    script.knows = lambda seen: False
    monkeypatch.setattr(shell, "_Attempt", None)
    monkeypatch.setattr(shell, "_streams", None)

    async def main() -> None:
        async with kit.opened() as client:
            await kit.send(client, f"{provider.url}/echo")
        assert script.opened == 1

    kit.run(main)
