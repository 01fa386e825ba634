"""However an answer is cut on its way, the same usage is metered and the same bytes reach the application (T30, G7).

The bodies are recorded ones (../shared/corpus). Each arrives one byte at a time, and in two pieces: cut at every byte
of its first 4 kB, at 200 seeded places behind them, and at every byte around every event's border. `make soak` takes
all of these cuts, about 830,000 on either library; `make test` takes every single byte of most bodies, and a seeded
sample of the cuts in two that is as large as its time allows.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from lava_middleware import Lava
from tests.conftest import SOAK

from .carried import CUSTOMER, LIBRARIES, Recorded
from .kit import TOTALS, in_two, near_borders, one_by_one, read
from .test_recorded_traffic import Corpus, answers, disagreement

PROVIDERS = {"openai", "azure-openai", "anthropic", "gemini", "mistral", "groq", "deepseek", "xai", "openrouter"}
PROVIDERS |= {"cerebras", "together", "perplexity"}
METERED = {"chat.completions": 170, "responses": 70, "messages": 40, "generateContent": 20, "streamGenerateContent": 20}
METERED |= {"embeddings": 10, "completions": 5}
"""What is scored by name, and how many records it makes at least; the meters alone read all the other answers too."""

EVERY_BYTE_TO = 4_096
SEEDED_CUTS = 200
ONE_IN_METERS, ONE_IN_TRANSPORTS = 80, 300
"""Of so many cuts in two `make test` takes one."""
LARGE = 4_096
"""Bytes; of larger bodies `make test` feeds one in ten byte by byte."""
ASYNC_ONE_IN = 4


def cuts(raw: bytes, streamed: bool, rng: random.Random) -> list[int]:
    """Where a body is cut in two."""
    chosen = set(range(1, min(len(raw), EVERY_BYTE_TO + 1)))
    behind = range(EVERY_BYTE_TO + 1, len(raw))
    chosen.update(rng.sample(behind, min(len(behind), SEEDED_CUTS)))
    if streamed:
        chosen.update(at for at in near_borders(raw) if 0 < at < len(raw))
    return sorted(chosen)


def ways(raw: bytes, streamed: bool, rng: random.Random, one_in: int) -> Iterator[tuple[str, list[bytes]]]:
    """(name, pieces) of each way in which a body arrives."""
    if SOAK or len(raw) <= LARGE or rng.random() < 0.1:
        yield "byte by byte", one_by_one(raw)
    chosen = cuts(raw, streamed, rng)
    if not SOAK:
        chosen = rng.sample(chosen, -(-len(chosen) // one_in))
    for at in chosen:
        yield f"cut at {at}", in_two(raw, at)


def scored(corpus: Corpus, endpoint: str) -> list[tuple[dict[str, Any], Any, bytes, bool]]:
    return [
        found for found in answers(corpus) if found[0]["provider"] in PROVIDERS and found[0]["endpoint"] == endpoint
    ]


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_the_meters_read_the_same_however_it_is_cut(corpus: Corpus, rng: random.Random) -> None:
    """T30: every figure of every dialect, of all recorded answers."""
    for one, dialect, raw, streamed in answers(corpus):
        whole = read(dialect, raw, streamed=streamed)
        for way, pieces in ways(raw, streamed, rng, ONE_IN_METERS):
            assert read(dialect, raw, streamed=streamed, pieces=pieces) == whole, (one["id"], way)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("endpoint", METERED)
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_the_application_gets_the_same_bytes_however_it_is_cut(
    library: ModuleType, endpoint: str, corpus: Corpus, rng: random.Random
) -> None:
    """T30, G7: through the real transport, with a hold that is extended while it streams, sync and async."""
    metered = 0
    with asyncio.Runner() as loop:
        for one, _, raw, streamed in scored(corpus, endpoint):
            with Lava("sqlite:///:memory:", mode="observe", tracing=False) as lava:
                lava.grant(CUSTOMER, "1000000", key="first")
                recorded = Recorded(library, lava, one)
                whole, received = recorded.send([raw])
                assert received == raw, one["id"]
                assert disagreement(one["expected"], _totals(whole)) is None, one["id"]
                metered += whole is not None
                for number, (way, pieces) in enumerate(ways(raw, streamed, rng, ONE_IN_TRANSPORTS)):
                    assert recorded.send(pieces) == (whole, raw), (one["id"], way)
                    if number % ASYNC_ONE_IN == 0:
                        assert loop.run(recorded.asend(pieces)) == (whole, raw), (one["id"], way, "async")
    assert metered >= METERED[endpoint]


def _totals(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the provider reported, as the record has it; None where it reported nothing."""
    if record is None or record["basis"] != "reported":
        return None
    return {name: record.get("totals", {}).get(name) for name in TOTALS}
