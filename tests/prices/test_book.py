"""The price book finds the price of exactly the model that was asked for, the operator's own first, and else none."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.core.money import ticks_of
from lava_middleware.core.pricing import Price, PriceBook
from lava_middleware.prices.book import Book
from lava_middleware.prices.overlay import PricesError
from lava_middleware.prices.snapshot import Snapshot, shipped

OPENAI, ANTHROPIC = ("openai",), ("anthropic",)


@pytest.fixture(scope="module")
def book() -> Book:
    return Book()


def found(book: Book, providers: tuple[str, ...], model: str) -> Price:
    price = book.find(providers, model)
    assert price is not None, model
    return price


def rates(price: Price) -> dict[str, str]:
    """Rates of token units as dollars per million."""
    return {unit: str(rate / 10**10) for unit, rate in price.rates.items() if unit not in ("web_search", "request")}


def small_snapshot(**models: dict[str, Any]) -> Snapshot:
    """A snapshot of one provider, "openai"."""
    lines = [json.dumps({"model": name.replace("_", "-"), "source": "test", **entry}) for name, entry in models.items()]
    header = {"format": 1, "as_of": "2026-01-01", "providers": {"openai": [0, len(lines)], "other": [len(lines), 0]}}
    return Snapshot("\n".join([json.dumps(header), *lines, ""]))


# The shipped snapshot --------------------------------------------------------------------------------------------

KNOWN = [
    # Checked by hand against both catalogues: provider, model, dollars per million.
    ("openai", "gpt-4o", {"input": "2.5", "cache_read": "1.25", "output": "10.0"}),
    ("openai", "gpt-4o-mini", {"input": "0.15", "cache_read": "0.075", "output": "0.6"}),
    ("openai", "gpt-5", {"input": "1.25", "cache_read": "0.125", "output": "10.0"}),
    ("openai", "o3", {"input": "2.0", "cache_read": "0.5", "output": "8.0"}),
    ("openai", "text-embedding-3-small", {"input": "0.02"}),
    (
        "anthropic",
        "claude-sonnet-4-5",
        {"input": "3.0", "cache_read": "0.3", "cache_write": "3.75", "cache_write_1h": "6.0", "output": "15.0"},
    ),
    (
        "anthropic",
        "claude-opus-4-6",
        {"input": "5.0", "cache_read": "0.5", "cache_write": "6.25", "cache_write_1h": "10.0", "output": "25.0"},
    ),
    ("gemini", "gemini-2.5-pro", {"input": "1.25", "cache_read": "0.125", "output": "10.0"}),
]


@pytest.mark.parametrize(("provider", "model", "expected"), KNOWN, ids=[model for _, model, _ in KNOWN])
def test_known_prices_are_as_published(book: Book, provider: str, model: str, expected: dict[str, str]) -> None:
    price = found(book, (provider,), model)
    assert rates(price) == expected
    assert (price.provider, price.model, price.source) == (provider, model, "genai-prices+litellm")
    assert price.as_of == shipped().as_of


def test_tiers_variants_and_limits_are_in_it(book: Book) -> None:
    """T2, T25"""
    sonnet = found(book, ANTHROPIC, "claude-sonnet-4-5")
    ((above, tier),) = sonnet.tiers
    assert (above, tier["input"], tier["output"]) == (200_000, ticks_of("6"), ticks_of("22.5"))
    assert sonnet.variants["batch"]["input"] == ticks_of("1.5")
    assert sonnet.output_tokens_max == 64_000
    o3 = found(book, OPENAI, "o3")
    assert [o3.variants[tier]["input"] for tier in ("flex", "priority", "batch")] == list(
        map(ticks_of, ("1", "3.5", "1"))
    )
    assert found(book, ANTHROPIC, "claude-opus-5").variants["us"]["input"] == ticks_of("5.5")


def test_searches_are_priced_each(book: Book) -> None:
    assert found(book, ANTHROPIC, "claude-sonnet-4-5").rates["web_search"] == ticks_of("0.01") * 1_000_000


def test_every_price_in_it_is_whole_positive_and_complete() -> None:
    """T5, T24: no zero, no float; only what is marked free has no price, only embeddings and the like no output."""
    snapshot = shipped()
    count = 0
    for provider in snapshot.providers:
        prices = snapshot.list_of(provider)
        assert prices is not None
        for entry in prices.entries:
            price = prices.price(entry)
            tiers = [rates for _, rates in price.tiers]
            further = [rates for tiers in price.variant_tiers.values() for _, rates in tiers]
            for some in (price.rates, *tiers, *price.variants.values(), *further):
                assert all(type(rate) is int and rate > 0 for rate in some.values()), entry
            assert bool(price.rates) != price.free, entry
            assert list(price.tiers) == sorted(price.tiers, key=lambda tier: tier[0])
            assert price.variant_tiers.keys() <= price.variants.keys()
            assert price.source
            assert price.as_of
            count += 1
    assert count > 4_000


def test_every_name_in_it_finds_its_own_entry() -> None:
    snapshot = shipped()
    for provider in ("openai", "azure-openai", "anthropic", "groq", "gemini"):
        prices = snapshot.list_of(provider)
        assert prices is not None
        for entry in prices.entries:
            price = prices.find(entry["model"])
            assert price is not None
            assert price.model == entry["model"]


def test_the_openai_and_anthropic_names_of_recorded_traffic_have_a_price(book: Book) -> None:
    corpus = Path(__file__).parents[3] / "shared" / "corpus" / "provider-traffic.jsonl.gz"
    if not corpus.exists():
        pytest.skip("the recorded traffic (../shared/corpus) is not here")
    endpoints = ("chat.completions", "responses", "messages", "embeddings")
    with gzip.open(corpus, "rt") as lines:
        exchanges = [json.loads(line) for line in lines]
    asked = {
        (one["provider"], one["expected"]["model"])
        for one in exchanges
        if one["provider"] in ("openai", "anthropic") and one["kind"] == "generation" and one["endpoint"] in endpoints
    }
    missing = {model for provider, model in asked if model and book.find((provider,), model) is None}
    assert missing <= {"claude-2.1", "llama-cpp-reasoning-model"}


# Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("providers", "asked", "model"),
    [
        (OPENAI, "gpt-4o-2024-08-06", "gpt-4o"),
        (OPENAI, "gpt-4o-20240806", "gpt-4o"),
        (OPENAI, "GPT-4o", "gpt-4o"),
        (OPENAI, "gpt-4o-latest", "gpt-4o"),
        (OPENAI, "openai/gpt-4o", "gpt-4o"),
        (OPENAI, "gpt-3.5-turbo-instruct:20230824-v2", "gpt-3.5-turbo-instruct"),
        (ANTHROPIC, "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        (ANTHROPIC, "claude-3-5-haiku-20241022", "claude-3-5-haiku-latest"),
        (ANTHROPIC, "anthropic/claude-opus-4-1", "claude-opus-4-1"),
        (ANTHROPIC, "claude-sonnet-4@20250514", "claude-sonnet-4-0"),
        (("gemini",), "models/gemini-2.5-pro", "gemini-2.5-pro"),
        (("azure-openai", "openai"), "chatgpt-4o-latest", "chatgpt-4o-latest"),
        (("nobody", "openai"), "gpt-4o", "gpt-4o"),
    ],
)
def test_a_model_is_found_under_its_other_names(book: Book, providers: tuple[str, ...], asked: str, model: str) -> None:
    """T25"""
    assert found(book, providers, asked).model == model


@pytest.mark.parametrize("spelling", ["gpt-4o-2024-05-13", "gpt-4o-20240513", "openai/gpt-4o-2024-05-13"])
def test_a_snapshot_with_another_price_is_not_its_sibling(book: Book, spelling: str) -> None:
    assert rates(found(book, OPENAI, spelling)) == {"input": "5.0", "output": "15.0"}


@pytest.mark.parametrize(
    "model",
    [
        *("gpt-4o-mini-turbo", "gpt-4", "gpt-4o-", "gpt", "", "-latest", "2024-08-06", "prod-chat-eu", "x" * 201),
        *("anthropic/claude-sonnet-4-5", "ft:gpt-9:acme::1", "ft:", "gpt-4o:free", "gpt-4o\n", "/", "openai/"),
    ],
)
def test_a_name_that_is_no_models_finds_nothing(book: Book, model: str) -> None:
    """T5: Azure deployments, neighbours and typing errors have no price; nothing is guessed."""
    if model == "gpt-4":
        assert found(book, OPENAI, model).model == "gpt-4"  # not gpt-4o
    else:
        assert book.find(OPENAI, model) is None


@pytest.mark.parametrize(
    "model", ["ft:gpt-4o-mini-2024-07-18:acme::a1", "ft:gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18.ft-0a1"]
)
def test_a_fine_tune_has_the_price_of_its_family_of_fine_tunes(book: Book, model: str) -> None:
    assert rates(found(book, OPENAI, model)) == {"input": "0.3", "cache_read": "0.15", "output": "1.2"}


def test_an_undated_name_stands_for_dated_ones_only_if_they_have_one_price() -> None:
    same, other = {"rates": {"input": 1, "output": 2}}, {"rates": {"input": 1, "output": 3}}
    book = Book(
        snapshot=small_snapshot(
            **{"a-2025-01-01": same, "a-2025-02-01": same, "b-2025-01-01": same, "b-2025-02-01": other}
        )
    )
    assert found(book, OPENAI, "a").model == "a-2025-02-01"
    assert found(book, OPENAI, "a-latest").model == "a-2025-02-01"
    assert found(book, OPENAI, "a-2025-03-01").model == "a-2025-02-01"
    assert book.find(OPENAI, "b") is None
    assert book.find(OPENAI, "b-2025-03-01") is None


# The operator's prices -------------------------------------------------------------------------------------------


def test_the_operators_price_takes_the_place_of_the_listed_one() -> None:
    book = Book({"gpt-4o": {"input": "3.00", "output": "12.00"}})
    price = found(book, OPENAI, "gpt-4o")
    assert rates(price) == {"input": "3.0", "output": "12.0"}
    assert (price.source, price.tiers, price.variants) == ("operator", (), {})
    assert price.output_tokens_max == 16_384, "limits stay"
    assert price.rates["web_search"] == ticks_of("0.01") * 1_000_000, "what is no token stays"


def test_it_holds_for_the_models_other_names_but_not_for_its_siblings() -> None:
    book = Book({"gpt-4o": {"input": "3.00", "output": "12.00"}})
    for name in ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20", "GPT-4o", "openai/gpt-4o", "gpt-4o-latest"):
        assert found(book, OPENAI, name).source == "operator", name
    for name in ("gpt-4o-2024-05-13", "gpt-4o-mini", "ft:gpt-4o-2024-08-06:acme::1"):
        assert found(book, OPENAI, name).source != "operator", name
    dated = Book({"gpt-4o-2024-08-06": {"input": "3.00", "output": "12.00"}})
    assert found(dated, OPENAI, "gpt-4o").source == "operator"
    assert found(dated, OPENAI, "gpt-4o-2024-08-06").source == "operator"
    assert found(dated, OPENAI, "gpt-4o-2024-11-20").source != "operator"


def test_it_can_be_for_one_provider_only() -> None:
    price = {"input": "3.00", "output": "12.00"}
    azure = Book({"azure-openai/gpt-4o": price})
    assert found(azure, ("azure-openai", "openai"), "gpt-4o").source == "operator"
    assert found(azure, OPENAI, "gpt-4o").source != "operator"
    assert found(Book({"openai/gpt-4o": price}), ("openrouter",), "openai/gpt-4o").source != "operator"
    assert found(Book({"openrouter/openai/gpt-4o": price}), ("openrouter",), "openai/gpt-4o").source == "operator"
    assert found(Book({"gpt-4o": price}), ("azure-openai", "openai"), "gpt-4o").source == "operator"


def test_an_unlisted_model_or_deployment_is_priced_by_the_operator() -> None:
    book = Book({"prod-chat-eu": {"input": "2.50", "output": "10.00"}, "acme/llama": {"input": "1", "output": "1"}})
    assert found(book, ("azure-openai", "openai"), "prod-chat-eu").model == "prod-chat-eu"
    assert found(book, ("no-list",), "acme/llama").rates["input"] == ticks_of("1")
    assert found(book, ("acme",), "llama").rates["input"] == ticks_of("1")


def test_an_explicitly_free_model_is_free() -> None:
    """T5"""
    price = found(Book({"llama3": {"free": True}}), ("ollama",), "llama3")
    assert (price.free, dict(price.rates)) == (True, {})


def test_tiers_variants_searches_and_limits_can_be_given() -> None:
    book = Book(
        {
            "m": {
                "input": "1",
                "output": 2,
                "web_search": "0.01",
                "tiers": {"272000": {"input": "2", "output": "4"}, 1000: {"input": "1.5"}},
                "variants": {"priority": {"input": "3"}},
                "output_tokens_max": 4096,
                "context_tokens": 8192,
            }
        }
    )
    price = found(book, OPENAI, "m")
    assert price.rates == {"input": ticks_of(1), "output": ticks_of(2), "web_search": ticks_of("0.01") * 1_000_000}
    assert [above for above, _ in price.tiers] == [1_000, 272_000]
    assert price.variants == {"priority": {"input": ticks_of("3")}}
    assert (price.output_tokens_max, price.context_tokens) == (4_096, 8_192)


def test_prices_can_be_a_toml_file(tmp_path: Path) -> None:
    """T24: a number in the file is read as the decimal it is written as."""
    file = tmp_path / "prices.toml"
    file.write_text('["gpt-4o"]\ninput = "2.50"\noutput = 0.1\n["ollama/llama3"]\nfree = true\n')
    for path in (file, str(file)):
        book = Book(path)
        assert rates(found(book, OPENAI, "gpt-4o")) == {"input": "2.5", "output": "0.1"}
        assert found(book, ("ollama",), "llama3").free
        assert book.find(OPENAI, "llama3") is None


@pytest.mark.parametrize(
    ("prices", "says"),
    [
        ({"m": {"input": 2.5, "output": "10"}}, "m: a price must be a string"),
        ({"m": {"input": "-1", "output": "10"}}, "m: a price must be at least 0"),
        ({"m": {"input": "NaN", "output": "10"}}, "m: a price must be a finite number"),
        ({"m": {"input": "1e400", "output": "10"}}, "m: a price must be a finite number"),
        ({"m": {"input": "1.00000000001", "output": "10"}}, "m: a price has more than ten decimal digits"),
        ({"m": {"input": "a lot", "output": "10"}}, "m: a price is not a decimal number"),
        ({"m": {"input": True, "output": "10"}}, "m: a price must be a string"),
        ({"m": {"inputs": "1", "output": "10"}}, "m: 'inputs' is not a unit; the units are input,"),
        ({"m": {"input": "1"}}, 'm: needs "input" and "output"'),
        ({"m": {}}, 'm: needs "input" and "output"'),
        ({"m": {"input": "0", "output": "0"}}, 'm: prices are all zero: say {"free": true}'),
        ({"m": {"free": True, "input": "1", "output": "1"}}, 'm: "free" stands alone'),
        ({"m": {"free": "yes"}}, "m.free: "),
        ({"m": {"free": False}}, 'm: needs "input" and "output"'),
        ({"m": "2.50"}, "m: must be a table of prices"),
        ({"m": {"input": "1", "output": "1", "output_tokens_max": "many"}}, "m.output_tokens_max: "),
        ({"m": {"input": "1", "output": "1", "tiers": {"-1": {"input": "1"}}}}, "m.tiers.-1"),
        ({"m": {"input": "1", "output": "1", "tiers": {"1": {"input": 0.5}}}}, "m.tiers.1: a price must be a string"),
        ({"m": {"input": "1", "output": "1", "variants": {"flex": "1"}}}, "m.variants.flex: must be a table"),
        ({"": {"input": "1", "output": "1"}}, "a model's name must be"),
        ({"m\n": {"input": "1", "output": "1"}}, "a model's name must be"),
        ({7: {"input": "1", "output": "1"}}, "a model's name must be"),
        ({"m": {"free": True}, "M": {"free": True}}, "a model is named twice"),
        (["m"], "prices must be a mapping or the path of a TOML file"),
        (7, "prices must be a mapping or the path of a TOML file"),
        ("no/such/file.toml", "prices file no/such/file.toml cannot be read"),
    ],
)
def test_prices_that_cannot_be_right_are_refused_with_the_place(prices: Any, says: str) -> None:
    """T5, T24"""
    with pytest.raises(PricesError) as refused:
        Book(prices)
    assert says in str(refused.value)


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    for content in (b"= 1", b"\xff\xfe"):
        (tmp_path / "prices.toml").write_bytes(content)
        with pytest.raises(PricesError, match="is not TOML"):
            Book(tmp_path / "prices.toml")


# The rest --------------------------------------------------------------------------------------------------------


def test_the_version_names_the_snapshot_and_what_lies_over_it(book: Book) -> None:
    one, other = Book({"m": {"free": True}}), Book({"m": {"input": "1", "output": "1"}})
    assert book.version == Book({}).version == shipped().version
    assert book.version.startswith(shipped().as_of)
    assert len({book.version, one.version, other.version}) == 3
    assert one.version == Book({"m": {"free": True}}).version
    assert repr(one) == f"<Book {one.version}>"


def test_it_is_a_price_book(book: Book) -> None:
    as_protocol: PriceBook = book
    assert as_protocol.find(OPENAI, "gpt-4o") is book.find(OPENAI, "gpt-4o"), "cached"


def test_search_lists_a_model_at_all_its_providers(book: Book) -> None:
    listed = book.search("gpt-4o", limit=5)
    assert [price.model for price in listed[:2]] == ["gpt-4o", "gpt-4o"]
    assert {"openai", "azure-openai"} <= {price.provider for price in listed}
    assert len(listed) == 5
    assert [price.provider for price in book.search("anthropic/claude-sonnet-4-5", limit=1)] == ["anthropic"]
    assert book.search("no such model at all") == []


def test_search_knows_the_operators_prices() -> None:
    book = Book({"gpt-4o": {"input": "3", "output": "12"}, "groq/llama-own": {"free": True}, "house": {"free": True}})
    assert {price.source for price in book.search("gpt-4o", limit=2)} == {"operator"}
    assert [(price.provider, price.free) for price in book.search("llama-own")] == [("groq", True)]
    assert [(price.provider, price.model) for price in book.search("house")][:1] == [("any", "house")]


def test_the_cache_is_bounded_whatever_names_requests_send(book: Book) -> None:
    """T29"""
    for number in range(5_000):
        book.find(OPENAI, f"model-{number}")
    assert len(book._cache) <= 2_048


def test_many_threads_get_the_same_prices() -> None:
    book = Book(
        snapshot=Snapshot((Path(__file__).parents[2] / "src/lava_middleware/prices/snapshot.jsonl").read_text())
    )
    wrong: list[str] = []

    def look() -> None:
        for number in range(300):
            if found(book, OPENAI, "gpt-4o").model != "gpt-4o" or book.find(OPENAI, f"none-{number}") is not None:
                wrong.append("gpt-4o")
            found(book, ("groq",), "llama-3.3-70b-versatile")

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_snapshot_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 2"):
        Snapshot('{"format": 2}\n')


def test_the_code_that_checks_operators_prices_is_loaded_only_where_there_are_some() -> None:
    """Design §3: pydantic's models are built only when they are needed."""
    code = (
        "import sys\nfrom lava_middleware.prices.book import Book\n"
        "assert Book().find(('openai',), 'gpt-4o')\n"
        "print('lava_middleware.prices.overlay' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
