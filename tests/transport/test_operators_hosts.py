"""A host that the operator named is met however a client spells it: none goes out silently unmetered (T4)."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lava_middleware import Lava, denied
from lava_middleware.errors import LavaError
from lava_middleware.transport.guards import _ask

from .rig import chat

SPELLINGS = [
    # as the operator wrote it, as a client does
    ("[::1]:8811", "http://[::1]:8811"),
    ("[::1]", "http://[::1]:8811"),
    ("[::1]:80", "http://[::1]"),
    ("[0:0:0:0:0:0:0:1]:8811", "http://[::1]:8811"),
    ("[::1]:8811", "http://[0:0::1]:8811"),
    ("gw.local:443", "https://gw.local"),
    ("gw.local:443", "https://gw.local:443"),
    ("gw.local:80", "http://gw.local"),
    ("gw.local.:80", "http://GW.local."),
    ("gw.local", "https://gw.local:8443"),
    ("xn--mnchen-3ya.de", "http://xn--mnchen-3ya.de"),
    ("xn--mnchen-3ya.de", "http://münchen.de"),
    ("api.xn--mnchen-3ya.de:443", "https://api.münchen.de"),
    ("München.de:8811", "http://xn--mnchen-3ya.de:8811"),
    ("straße.de", "http://straße.de"),
]


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
@pytest.mark.parametrize(("named", "url"), SPELLINGS)
def test_a_host_that_was_named_is_gated_however_it_is_spelled(library: str, named: str, url: str) -> None:
    http = pytest.importorskip(library)
    with Lava("memory://", hosts={named: "openai"}) as lava, http.Client(transport=nowhere(http)) as client:
        lava.instrument()
        assert client.post(f"{url}/v1/chat/completions", json=chat()).status_code == 403  # nobody is bound


@pytest.mark.parametrize(("named", "url"), [pair for pair in SPELLINGS if pair[1].isascii()])
def test_it_is_refused_through_libraries_without_a_meter_too(named: str, url: str) -> None:
    with Lava("memory://", hosts={named: "openai"}) as lava:
        lava.instrument()
        with pytest.raises(LavaError) as refused:
            _ask("POST", f"{url}/v1/chat/completions", "requests")
    decision = denied(refused.value)
    assert decision is not None
    assert decision.reason == "endpoint_unmetered"


@pytest.mark.parametrize("url", ["http://gw.local", "https://gw.local:8443", "http://[::1]:8812", "http://other.local"])
def test_another_port_is_another_host(url: str) -> None:
    http = importlib.import_module("httpx")
    hosts = {"gw.local:443": "openai", "[::1]:8811": "openai"}
    with Lava("memory://", hosts=hosts) as lava, http.Client(transport=nowhere(http)) as client:
        lava.instrument()
        assert client.post(f"{url}/v1/chat/completions", json=chat()).status_code == 200


def nowhere(http: Any) -> Any:
    """A transport that takes everything."""
    return http.MockTransport(lambda request: http.Response(200, json={}))
