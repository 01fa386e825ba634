"""Where the knowledge of each provider comes from, and which of its quirks its row must have.

A row ships with a recorded exchange or a page or release of its vendor that is dated within the year; a row that has
neither is listed as unverified, and its calls are refused until an operator who has tried it names the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from lava_middleware.providers.row import RECORDED
from lava_middleware.providers.table import ROWS, UNVERIFIED, find, how_to_allow
from lava_middleware.testing import FakeProvider

from ..transport.rig import MODEL, chat, rigged

UNVERIFIED_ROW = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What a row must say."""

    source: str
    """RECORDED, or a page or release of the vendor; UNVERIFIED_ROW: neither is known."""
    url: str
    """Where its chats go."""
    asks: bool = False
    """Usage in a stream is asked for. False: it comes unasked, or asking is refused or was never tried."""
    cap: str = "max_tokens"
    """The field that a cap is written into."""
    reports_cost: bool = False
    soft: bool = False
    """It adds text of its own to prompts."""
    recorded_as: tuple[str, ...] = ()
    """Under which names it was recorded, where not under its own."""


KNOWN: dict[str, Known] = {
    # provider → what is known of it (facts of recorded traffic; `source` says where from)
    # Its streams carry x_groq.usage in the chunk with the finish reason, asked or not.
    "groq": Known(RECORDED, "https://api.groq.com/openai/v1/chat/completions", cap="max_completion_tokens"),
    # Usage in the chunk with the finish reason, unasked.
    "together": Known(RECORDED, "https://api.together.xyz/v1/chat/completions"),
    "fireworks": Known("fireworks-ai 1.2.30", "https://api.fireworks.ai/inference/v1/chat/completions", asks=True),
    "deepseek": Known(RECORDED, "https://api.deepseek.com/chat/completions", asks=True),
    # Reasoning outside completion_tokens in chat; cost_in_usd_ticks.
    "xai": Known(
        RECORDED,
        "https://api.x.ai/v1/chat/completions",
        asks=True,
        cap="max_completion_tokens",
        reports_cost=True,
        soft=True,
    ),
    # Usage and cost always, in a chunk after the finish reason.
    "openrouter": Known(RECORDED, "https://openrouter.ai/api/v1/chat/completions", reports_cost=True, soft=True),
    # No [DONE].
    "cerebras": Known(RECORDED, "https://api.cerebras.ai/v1/chat/completions", asks=True, cap="max_completion_tokens"),
    # Usage in every chunk, running up; cost whole only in the last one; reasoning outside.
    "perplexity": Known(RECORDED, "https://api.perplexity.ai/chat/completions", reports_cost=True, soft=True),
    "deepinfra": Known(UNVERIFIED_ROW, "https://api.deepinfra.com/v1/openai/chat/completions"),
    "nebius": Known(UNVERIFIED_ROW, "https://api.studio.nebius.com/v1/chat/completions", asks=True),
    "novita": Known("novitalabs/novita-skills", "https://api.novita.ai/v3/openai/chat/completions", asks=True),
    "sambanova": Known("sambanova 1.4.0", "https://api.sambanova.ai/v1/chat/completions", asks=True),
    "hyperbolic": Known(UNVERIFIED_ROW, "https://api.hyperbolic.xyz/v1/chat/completions"),
    # Usage in the choice of the last chunk, unasked.
    "moonshot": Known("https://platform.kimi.ai/docs/", "https://api.moonshot.ai/v1/chat/completions"),
    "zai": Known(RECORDED, "https://api.z.ai/api/paas/v4/chat/completions", asks=True),
    "alibaba": Known(RECORDED, "https://dashscope-intl.aliyuncs.com/compatible-mode/v1/chat/completions"),
    "huggingface": Known(RECORDED, "https://router.huggingface.co/v1/chat/completions", asks=True),
    "github-models": Known(UNVERIFIED_ROW, "https://models.github.ai/inference/chat/completions", cap="by_model"),
    # Usage in every chunk, running up.
    "databricks": Known(RECORDED, "https://dbc-1.cloud.databricks.com/serving-endpoints/chat/completions"),
    # A system prompt of its own, of up to 1,555 tokens.
    "venice": Known(RECORDED, "https://api.venice.ai/api/v1/chat/completions", asks=True, soft=True),
    "ollama": Known(RECORDED, "http://localhost:11434/v1/chat/completions", asks=True),
    "vllm": Known(
        RECORDED,
        "http://localhost:8000/v1/chat/completions",
        asks=True,
        recorded_as=("openai-compatible-local",),
    ),
    # What was recorded at its port names itself mistral.rs, which speaks the same.
    "lmstudio": Known(RECORDED, "http://localhost:1234/v1/chat/completions", asks=True),
}


@pytest.mark.parametrize("name", KNOWN)
def test_each_row_names_its_source_or_is_not_verified(name: str, corpus: Callable[[], list[dict[str, Any]]]) -> None:
    row, known = ROWS[name], KNOWN[name]
    if known.source == UNVERIFIED_ROW:
        assert row.evidence == ""
        assert name in UNVERIFIED
    elif known.source == RECORDED:
        assert row.evidence == RECORDED
        recorded = {one["provider"] for one in corpus() if one["expected"]}
        assert recorded & {name, *known.recorded_as}
    else:
        assert known.source in row.evidence
        assert "2026" in row.evidence


@pytest.mark.parametrize("name", KNOWN)
def test_each_row_has_the_quirks_that_its_traffic_shows(name: str) -> None:
    row, known = ROWS[name], KNOWN[name]
    said = (row.asks_usage, row.reports_cost, row.soft)
    assert said == (known.asks, known.reports_cost, known.soft)
    url = urlsplit(known.url)
    match = find("POST", url.netloc, url.path, {url.netloc: (row,)})
    assert match is not None
    assert match.endpoint is not None
    assert match.endpoint.dialect is not None
    field = "max_tokens" if known.cap == "by_model" else known.cap
    assert (
        match.endpoint.dialect.with_cap({"model": "m"} if known.cap != "by_model" else {"model": "phi-4"}, 9)[field]
        == 9
    )


@pytest.mark.parametrize("name", KNOWN)
def test_its_own_host_is_metered_only_if_it_is_verified(name: str) -> None:
    """T4. Servers that people run themselves have no host of their own."""
    url = urlsplit(KNOWN[name].url)
    match = find("POST", url.netloc, url.path)
    if url.hostname == "localhost":
        assert match is None
        return
    assert match is not None
    assert match.row.name == name
    assert match.endpoint is not None
    assert (match.endpoint.dialect is None) is (name in UNVERIFIED)


@pytest.mark.parametrize("name", UNVERIFIED)
def test_the_refusal_says_how_to_allow_it_and_that_works(name: str) -> None:
    """By the host that was called, not by another one of the same provider."""
    url = urlsplit(KNOWN[name].url)
    match = find("POST", url.netloc, url.path)
    assert match is not None
    advice = how_to_allow(match, url.netloc)
    assert f'hosts={{"{url.netloc}": "{name}"}}' in advice
    assert f"LAVA_HOSTS={url.netloc}={name}" in advice
    allowed = find("POST", url.netloc, url.path, {url.netloc: (ROWS[name],)})
    assert allowed is not None
    assert how_to_allow(allowed, url.netloc) == ""


def test_a_provider_that_is_not_verified_is_refused_before_anything_is_sent_and_metered_once_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """T4, through the real transport: the host is the provider's, the socket the stand-in's."""
    import httpx

    from .here import resolve_here

    resolve_here(monkeypatch, "api.hyperbolic.xyz")
    with FakeProvider() as provider:
        at = f"api.hyperbolic.xyz:{provider.host.rpartition(':')[2]}"
        url = f"http://{at}/v1/chat/completions"
        with rigged(provider=provider, hosts={}) as rig, rig.lava.charge_to("acme"), httpx.Client() as client:
            refused = client.post(url, json=chat())
        assert refused.status_code == 403
        assert "LAVA_HOSTS=api.hyperbolic.xyz=hyperbolic" in refused.json()["error"]["message"]
        assert provider.count == 0
        allowed = rigged(provider=provider, hosts={"api.hyperbolic.xyz": "hyperbolic"})
        with allowed as rig, rig.lava.charge_to("acme"), httpx.Client() as client:
            assert client.post(url, json=chat(max_tokens=20)).status_code == 200
            assert (rig.record.provider, rig.record.model) == ("hyperbolic", MODEL)
            assert rig.record.charge.ticks > 0
