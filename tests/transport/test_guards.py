"""What leaves through a library without a meter is refused, once, before anything is sent."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from lava_middleware.transport import guards, imports
from lava_middleware.transport.instrument import uninstrument

from .shell_kit import Provider, Script, provider, script

__all__ = ["provider", "script"]

aiohttp = pytest.importorskip("aiohttp")
requests = pytest.importorskip("requests")
botocore_session = pytest.importorskip("botocore.session")


class Refused(Exception):
    pass


def host_of(provider: Provider) -> str:
    return provider.url.removeprefix("http://")


class Policy:
    """Refuses what its path says, and writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, str]] = []

    def __call__(self, method: str, host: str, path: str, library: str) -> Exception | None:
        self.asked.append((method, host, path, library))
        return Refused(guards.ADVICE[library]) if path.startswith(("/echo", "/model")) else None


@pytest.fixture
def policy() -> Iterator[Policy]:
    policy = Policy()
    uninstrument()  # an aiohttp that is metered, as earlier tests may have left it, is not guarded
    guards.guard(policy)
    yield policy
    guards.unguard()


def test_aiohttp_is_refused_at_once_and_told_how_to_be_metered(provider: Provider, policy: Policy) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(Refused, match="httpx_async_client"):
                await session.post(f"{provider.url}/echo?key=secret", json={})
            async with session.get(f"{provider.url}/status/200") as response:
                assert response.status == 200

    asyncio.run(main())
    assert policy.asked == [
        ("POST", host_of(provider), "/echo", "aiohttp"),
        ("GET", host_of(provider), "/status/200", "aiohttp"),
    ]
    assert [path for _, path, _, _ in provider.requests] == ["/status/200"]


def test_aiohttp_with_a_base_url_is_judged_by_the_whole_url(provider: Provider, policy: Policy) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(base_url=provider.url) as session:
            with pytest.raises(Refused):
                await session.post("/echo")
            with pytest.raises(TypeError):
                await session.request("POST", 7)

    asyncio.run(main())
    assert policy.asked[0] == ("POST", host_of(provider), "/echo", "aiohttp")
    assert provider.requests == []


def test_aiohttps_signature_is_still_its_own(policy: Policy) -> None:
    """google-genai reads it to find the arguments it may pass."""
    parameters = inspect.signature(aiohttp.ClientSession._request).parameters
    assert {"method", "str_or_url", "json", "ssl", "timeout"} <= parameters.keys()


def test_requests_is_refused_and_each_hop_of_a_redirect_is_judged(provider: Provider, policy: Policy) -> None:
    with requests.Session() as session:
        with pytest.raises(Refused):
            session.post(f"{provider.url}/echo", json={})
        with pytest.raises(Refused):
            session.post(f"{provider.url}/redirect", data=b"x")
        assert session.get(f"{provider.url}/status/200").status_code == 200
    assert [path for _, path, _, _ in provider.requests] == ["/redirect", "/status/200"]
    assert {library for _, _, _, library in policy.asked} == {"requests"}


def test_botocore_is_refused_after_one_attempt(provider: Provider, policy: Policy, tmp_path: Any) -> None:
    """It retries what looks like the network three times; a plain exception passes unchanged."""
    session = botocore_session.get_session()
    client = session.create_client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=provider.url,
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    with pytest.raises(Refused):
        client.converse(modelId="some.model", messages=[{"role": "user", "content": [{"text": "hello"}]}])
    assert policy.asked == [("POST", host_of(provider), "/model/some.model/converse", "botocore")]
    assert provider.requests == []
    client.close()


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_what_is_metered_further_out_passes(provider: Provider, policy: Policy, script: Script, library: str) -> None:
    """httpx over aiohttp goes through two patches and is metered once."""
    module: Any = pytest.importorskip(library)

    class OverAiohttp(module.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            async with (
                aiohttp.ClientSession() as session,
                session.request(request.method, str(request.url), data=request.content) as answer,
            ):
                return module.Response(answer.status, content=await answer.read())

    async def main() -> None:
        async with module.AsyncClient(transport=OverAiohttp()) as client:
            response = await client.post(f"{provider.url}/echo", content=b"x")
            assert response.content == b"x"

    asyncio.run(main())
    assert script.flight.ending == "finished"
    assert len(script.flights) == 1
    assert policy.asked == []


def test_guarding_again_changes_nothing_but_the_policy_and_unguarding_restores(policy: Policy) -> None:
    doors = [(aiohttp.ClientSession, "_request"), (requests.Session, "send")]
    guarded = [vars(owner)[name] for owner, name in doors]
    other = Policy()
    guards.guard(other)
    assert [vars(owner)[name] for owner, name in doors] == guarded
    assert [vars(owner)[name].__wrapped__ for owner, name in doors] == [
        original for owner, name, _, original in guards._patched if (owner, name) in doors
    ]
    guards.unguard()
    guards.unguard()
    assert [vars(owner)[name] for owner, name in doors] == [function.__wrapped__ for function in guarded]


def test_a_url_that_is_none_is_left_to_the_librarys_own_error(policy: Policy) -> None:
    with requests.Session() as session, pytest.raises(requests.exceptions.InvalidURL):
        session.get("http://[::1")
    assert policy.asked == []


def test_libraries_imported_later_are_guarded_and_none_is_imported_for_it() -> None:
    code = """
        import sys
        from lava_middleware.transport import guards
        before = {name for name in ("aiohttp", "requests", "botocore") if name in sys.modules}
        def no(method, host, path, library):
            return PermissionError(library)
        guards.guard(no)
        assert {name for name in ("aiohttp", "requests", "botocore") if name in sys.modules} == before
        import requests
        try:
            requests.get("http://api.example.com/v1")
        except PermissionError as error:
            print(error)
        import botocore.httpsession
        from botocore.awsrequest import AWSPreparedRequest
        try:
            botocore.httpsession.URLLib3Session().send(AWSPreparedRequest("POST", "https://x.test/m", {}, b"", False))
        except PermissionError as error:
            print(error)
        import aiohttp, asyncio
        async def main():
            async with aiohttp.ClientSession() as session:
                try:
                    await session.get("http://api.example.com/v1")
                except PermissionError as error:
                    print(error)
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["requests", "botocore", "aiohttp"]
    assert not imports._waiting.get("aiohttp")
