"""This script knows how to merge the two open price catalogues into the snapshot that the package ships.

    pip install genai-prices && pip install --no-deps litellm        # or: the dependency group "prices"
    python scripts/build_prices.py [--as-of 2026-11-24] [--disagreements FILE]

genai-prices is the first source (tiers, variants, dated history); litellm's map fills what it lacks: the most output,
context windows, further units and variants, hosts and models. The same catalogues and date give the same bytes.
Written are prices/snapshot.jsonl and prices/REPORT.md; with --disagreements also the full list of differing prices.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PRICES = HERE.parent / "src" / "lava_middleware" / "prices"
SNAPSHOT_FORMAT = 1

GENAI, LITELLM = "genai-prices", "litellm"
BOTH = f"{GENAI}+{LITELLM}"
"""The source of an entry whose input and output prices are the same in both."""

# Names -----------------------------------------------------------------------------------------------------------

GENAI_PROVIDERS = {
    # genai-prices' name → ours. A missing name: its own, with "-" for "_".
    "aws": "bedrock",
    "azure": "azure-openai",
    "google": "gemini",
    "moonshotai": "moonshot",
    "voyageai": "voyage",
    "x-ai": "xai",
    "zhipuai": "zhipu",
}

LITELLM_PROVIDERS = {
    # litellm's name → ours. A missing name: its own, with "-" for "_".
    "azure": "azure-openai",
    "azure_text": "azure-openai",
    "azure_ai": "azure-foundry",
    "bedrock_converse": "bedrock",
    "codestral": "mistral",
    "text-completion-codestral": "mistral",
    "text-completion-openai": "openai",
    "text-completion-inception": "inception",
    "cohere_chat": "cohere",
    "dashscope": "alibaba",
    "fireworks_ai": "fireworks",
    "fireworks_ai-embedding-models": "fireworks",
    "jina_ai": "jina",
    "lambda_ai": "lambda",
    "meta_llama": "meta",
    "together_ai": "together",
    "vercel_ai_gateway": "vercel-gateway",
}

NAMES_OF_LITELLM = ("bedrock",)
"""Where genai-prices takes plain names for regional models, ten per cent dearer: litellm's prices by name stand."""

FREE = {
    # Explicitly free by the provider's own documentation. Every other zero price counts as unknown.
    ("openai", "omni-moderation-latest"),
    ("openai", "omni-moderation-2024-09-26"),
}
FREE_SUFFIX = ("openrouter", ":free")
"""OpenRouter's own name for "costs nothing"."""

# Units -----------------------------------------------------------------------------------------------------------

MTOK = Decimal(10) ** 10
"""USD per million → ticks per million."""
TOKEN = Decimal(10) ** 16
"""USD per one → ticks per million."""
THOUSAND = Decimal(10) ** 13

GENAI_UNITS = {
    # genai-prices' price key → (our unit, factor). A missing key: a unit that is not metered yet; left out.
    "input_mtok": ("input", MTOK),
    "output_mtok": ("output", MTOK),
    "cache_read_mtok": ("cache_read", MTOK),
    "cache_write_mtok": ("cache_write", MTOK),
    "cache_write_1h_mtok": ("cache_write_1h", MTOK),
    "input_audio_mtok": ("input_audio", MTOK),
    "output_audio_mtok": ("output_audio", MTOK),
    "cache_audio_read_mtok": ("cache_read_audio", MTOK),
    "input_image_mtok": ("input_image", MTOK),
    "output_image_mtok": ("output_image", MTOK),
    "output_reasoning_mtok": ("reasoning", MTOK),
    "web_searches_kcount": ("web_search", THOUSAND),
    "requests_kcount": ("request", THOUSAND),
}

LITELLM_UNITS = {
    # litellm's key without its suffixes → our unit. A missing key: not metered yet; left out.
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "input_cost_per_audio_token": "input_audio",
    "output_cost_per_audio_token": "output_audio",
    "cache_read_input_audio_token_cost": "cache_read_audio",
    "input_cost_per_image_token": "input_image",
    "output_cost_per_image_token": "output_image",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_request": "request",
}
_LITELLM_KEY = re.compile(
    r"^(?P<unit>" + "|".join(LITELLM_UNITS) + r")"
    r"(?P<lifetime>_above_(?:1|12)hr)?(?:_above_(?P<above>\d+)k_tokens)?(?:_(?P<variant>flex|priority|batches|ultrafast))?$"
)
LITELLM_VARIANTS = {"batches": "batch"}
UNIT_ORDER = (
    *("input", "cache_read", "cache_write", "cache_write_1h", "input_audio", "cache_read_audio", "input_image"),
    *("output", "reasoning", "output_audio", "output_image", "web_search", "request"),
)
FALLBACKS = {
    "cache_read": "input",
    "cache_write": "input",
    "input_audio": "input",
    "input_image": "input",
    "reasoning": "output",
    "output_audio": "output",
    "output_image": "output",
}
"""A unit with the rate of the one it falls back to need not be written."""
OUTPUT_UNITS = ("output", "output_audio", "output_image")
NO_OUTPUT = re.compile(
    r"embed|rerank|moderation|voyage|\bbge\b|bge-|\bgte\b|gte-|\be5\b|e5-|m2-bert|similarity|search-(ada|babbage)|retriev|guard"
)
NO_OUTPUT_MODES = ("embedding", "rerank", "moderation")
"""What has no output to price; any other model without an output price is left out: its price is unknown."""
DEAREST = 5_000 * MTOK
"""A rate above this is a slip of the catalogue."""

Rates = dict[str, int]


@dataclass
class Entry:
    """One model at one provider."""

    model: str
    rates: Rates = field(default_factory=dict)
    tiers: dict[int, Rates] = field(default_factory=dict)
    variants: dict[str, Rates] = field(default_factory=dict)
    variant_tiers: dict[str, dict[int, Rates]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    """What the catalogue takes for the beginning of the model's names; only names when nothing says otherwise."""
    output_tokens_max: int | None = None
    context_tokens: int | None = None
    source: str = ""
    mode: str = ""
    free: bool = False

    def put(self, unit: str, rate: int, above: int = 0, variant: str = "") -> None:
        if variant:
            place = self.variant_tiers.setdefault(variant, {}).setdefault(above, {}) if above else self.variants
            place = place if above else self.variants.setdefault(variant, {})
        else:
            place = self.tiers.setdefault(above, {}) if above else self.rates
        place[unit] = rate

    def all_rates(self) -> Iterator[Rates]:
        yield self.rates
        yield from self.tiers.values()
        yield from self.variants.values()
        for tiers in self.variant_tiers.values():
            yield from tiers.values()

    def to_json(self) -> dict[str, Any]:
        written: dict[str, Any] = {"model": self.model}
        if self.names:
            written["also"] = sorted(self.names)
        if self.free:
            written["free"] = True
        written["rates"] = _ordered(self.rates)
        if self.tiers:
            written["tiers"] = _written_tiers(self.tiers)
        if self.variants:
            written["variants"] = {name: _ordered(rates) for name, rates in sorted(self.variants.items())}
        if self.variant_tiers:
            written["variant_tiers"] = {
                name: _written_tiers(tiers) for name, tiers in sorted(self.variant_tiers.items())
            }
        if self.output_tokens_max:
            written["output_tokens_max"] = self.output_tokens_max
        if self.context_tokens:
            written["context_tokens"] = self.context_tokens
        written["source"] = self.source
        return written


def _ordered(rates: Rates) -> Rates:
    return {unit: rates[unit] for unit in UNIT_ORDER if unit in rates}


def _written_tiers(tiers: dict[int, Rates]) -> list[Any]:
    return [[above, _ordered(rates)] for above, rates in sorted(tiers.items())]


def _ticks(value: Decimal, factor: Decimal) -> int:
    """Whole ticks per million; the catalogues' float noise is far below one."""
    return int((value * factor).to_integral_value(ROUND_HALF_EVEN))


@dataclass
class Report:
    """What a reader of the snapshot should know about how it was made."""

    agreed: Counter[str] = field(default_factory=Counter)
    disagreed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)


# genai-prices ----------------------------------------------------------------------------------------------------


class Genai:
    """The genai-prices catalogue, as of one day."""

    def __init__(self, as_of: date, report: Report) -> None:
        from genai_prices.data import providers

        self.version = metadata.version(GENAI)
        self._as_of, self._report = as_of, report
        self.providers = {GENAI_PROVIDERS.get(one.id, one.id.replace("_", "-")): one for one in providers}

    def entries(self, provider: str) -> dict[str, tuple[Entry, Any]]:
        """Lower-case model id → (entry, the catalogue's model)."""
        found: dict[str, tuple[Entry, Any]] = {}
        catalogue = self.providers[provider]
        for model in catalogue.models:
            if model.id.endswith(".ft-") or (model.id.endswith(":free") and provider != FREE_SUFFIX[0]):
                continue  # a way to spell ft:, and names that are another provider's
            entry = Entry(model.id.rstrip("-"), context_tokens=model.context_window, source=GENAI)
            for prices in self._standard(model):
                self._put(entry, prices)
            self._put_variants(entry, model)
            entry.names = [
                name
                for name in dict.fromkeys(literal.lower() for literal in _literals(model.match, "equals"))
                if catalogue.find_model(name) is model and name != entry.model.lower()
            ]
            entry.prefixes = [name.lower() for name in _literals(model.match, "starts_with") if name[-1] not in "-@."]
            found.setdefault(entry.model.lower(), (entry, model))
        return found

    def reached(self, provider: str, name: str) -> Any:
        """The model that the catalogue's own prefix and pattern rules find for a name."""
        catalogue = self.providers.get(provider)
        return catalogue.find_model(name) if catalogue else None

    def _standard(self, model: Any) -> Iterator[Any]:
        """The prices in force. Where they change in the course of a day: all of them, the dearest counts."""
        from genai_prices.types import ModelPrice, StartDateConstraint

        if isinstance(model.prices, ModelPrice):
            yield model.prices
            return
        in_force, by_hour = model.prices[0].prices, []
        for conditional in model.prices:
            if conditional.constraint is None:
                in_force = conditional.prices
            elif isinstance(conditional.constraint, StartDateConstraint):
                if conditional.constraint.start_date <= self._as_of:
                    in_force = conditional.prices
                else:
                    self._report.notes["prices announced for a later day, not yet in the snapshot"] += 1
            else:
                by_hour.append(conditional.prices)
        yield in_force
        yield from by_hour
        if by_hour:
            self._report.notes["models with prices by time of day: the dearest is taken"] += 1

    def _put(self, entry: Entry, prices: Any, variant: str = "") -> None:
        from genai_prices.types import TieredPrices

        for key, value in prices.__dict__.items():
            if value is None or key not in GENAI_UNITS:
                if value is not None:
                    self._report.notes[f"rates left out, unit not metered: {key}"] += 1
                continue
            unit, factor = GENAI_UNITS[key]
            tiered = isinstance(value, TieredPrices)
            steps = [(0, value.base), *((tier.start, tier.price) for tier in value.tiers)] if tiered else [(0, value)]
            for above, price in steps:
                rate = _ticks(price, factor)
                known = entry.rates.get(unit, 0) if not above and not variant else 0
                entry.put(unit, max(rate, known), above, variant)

    def _put_variants(self, entry: Entry, model: Any) -> None:
        from genai_prices.types import StartDateConstraint

        for variant in reversed(model.price_variants or ()):  # the first that names a unit counts: it is put last
            constraint = variant.constraint
            if isinstance(constraint, StartDateConstraint) and constraint.start_date > self._as_of:
                continue
            name = _variant_name(variant.when)
            if name is None:
                self._report.notes[f"variants left out: {json.dumps(variant.when)}"] += 1
            elif name:
                self._put(entry, variant.prices, name)


def _variant_name(when: dict[str, str]) -> str | None:
    """Our name for a request variant; empty for the standard rates, None for one that no answer names."""
    if len(when) != 1:
        return None
    ((key, value),) = when.items()
    if key in ("processing", "service_tier", "speed"):
        return "" if value == "default" else value
    return None


def _literals(clause: Any, kind: str) -> Iterator[str]:
    """The texts that a matching rule spells out in its clauses of one kind."""
    for parts in ("or_", "and_"):
        for part in getattr(clause, parts, ()):
            yield from _literals(part, kind)
    if text := getattr(clause, kind, None):
        yield text


# litellm ---------------------------------------------------------------------------------------------------------


class Litellm:
    """litellm's map: only its JSON file is read, nothing of it is imported."""

    def __init__(self, report: Report) -> None:
        distribution = metadata.distribution(LITELLM)
        self.version, self._report = distribution.version, report
        path = distribution.locate_file("litellm/model_prices_and_context_window_backup.json")
        raw = json.loads(Path(str(path)).read_text(), parse_float=Decimal, parse_int=int)
        self.by_provider: dict[str, dict[str, Entry]] = defaultdict(dict)
        for name, data in raw.items():
            provider = data.get("litellm_provider") or ""
            if name == "sample_spec" or not provider or re.search(r"\d-x-\d|max-x-max", name):
                continue
            ours = "vertex" if provider.startswith("vertex_ai") else provider
            ours = LITELLM_PROVIDERS.get(ours, ours.replace("_", "-"))
            prefix = "vertex_ai" if ours == "vertex" else provider
            model = (
                name.removeprefix(f"{prefix}/")
                .removeprefix("bedrock/")
                .removeprefix("azure/")
                .removeprefix("codestral/")
            )
            self._add(ours, model, data)

    def _add(self, provider: str, model: str, data: dict[str, Any]) -> None:
        entry = Entry(model, source=LITELLM, mode=data.get("mode") or "")
        entry.output_tokens_max = _whole(data.get("max_output_tokens"))
        entry.context_tokens = _whole(data.get("max_input_tokens"))
        for key, value in data.items():
            self._put(entry, key, value)
        for step in data.get("tiered_pricing") or ():
            if "range" in step:
                for key, value in step.items():
                    self._put(entry, key, value, above=int(step["range"][0]))
        searches = data.get("search_context_cost_per_query") or {}
        if isinstance(searches, dict) and (cost := searches.get("search_context_size_medium")):
            entry.put("web_search", _ticks(Decimal(cost), TOKEN))
        if provider == "anthropic":
            _multiply(entry, data.get("provider_specific_entry") or {})
        for rates in entry.all_rates():
            if 0 < rates.get("cache_write", 0) < rates.get("input", 0):
                self._report.notes["litellm cache writes left out, cheaper than input"] += 1
                del rates["cache_write"]
        known = self.by_provider[provider].get(model.lower())
        if known is None or (not known.rates and entry.rates):
            self.by_provider[provider][model.lower()] = entry
        elif entry.rates and known.rates != entry.rates:
            self._report.notes["litellm entries spelled twice with different prices: the first is taken"] += 1

    def _put(self, entry: Entry, key: str, value: Any, above: int = 0) -> None:
        match = _LITELLM_KEY.match(key)
        if match is None or not isinstance(value, int | Decimal) or isinstance(value, bool):
            return
        unit = LITELLM_UNITS[match["unit"]]
        if match["lifetime"]:
            if unit != "cache_write":
                return
            unit = "cache_write_1h"  # the long lifetime, whatever its length
        above = above or int(match["above"] or 0) * 1_000
        variant = match["variant"] or ""
        entry.put(unit, _ticks(Decimal(value), TOKEN), above, LITELLM_VARIANTS.get(variant, variant))


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | Decimal) and 0 < value < 100_000_000 else None


def _multiply(entry: Entry, factors: dict[str, Any]) -> None:
    """Anthropic: prices of a region ("us") or a speed ("fast") are a multiple of the standard ones."""
    for variant, factor in sorted(factors.items()):
        for above, rates in [(0, entry.rates), *entry.tiers.items()]:
            for unit, rate in rates.items():
                if unit not in ("web_search", "request"):
                    entry.put(unit, _ticks(Decimal(rate), Decimal(factor)), above, variant)


# Merging ---------------------------------------------------------------------------------------------------------


def merge(provider: str, genai: Genai, litellm: Litellm, report: Report) -> list[Entry]:
    """All models of one provider."""
    primary = genai.entries(provider) if provider in genai.providers else {}
    exact = {name: entry for entry, _ in primary.values() for name in (entry.model.lower(), *entry.names)}
    by_model = {id(model): entry for entry, model in primary.values()}
    alone: list[Entry] = []
    for name, other in sorted(litellm.by_provider.get(provider, {}).items()):
        if (
            name in exact
            and provider in NAMES_OF_LITELLM
            and name in exact[name].names
            and not _same(exact[name], other)
        ):
            exact[name].names.remove(name)
            alone.append(other)
            continue
        if name in exact:
            _fill(provider, exact[name], other, report)
            continue
        near = by_model.get(id(genai.reached(provider, name)))
        if near is not None and near.rates and _same(near, other):
            near.names.append(name)  # a name of the same model, by rule and by price
            _fill(provider, near, other, report)
        else:
            # By rule it may be a model's name, by price it is not: it stands for itself, never for its sibling.
            alone.append(other)
    taken = {*exact, *(name for name in litellm.by_provider.get(provider, {}))}
    for entry, model in primary.values():
        entry.names += [name for name in entry.prefixes if name not in taken and genai.reached(provider, name) is model]
    entries = [entry for entry, _ in primary.values()] + alone
    return sorted((one for one in entries if _fit(provider, one, report)), key=lambda one: one.model.lower())


def _same(one: Entry, other: Entry) -> bool:
    return all(one.rates.get(unit, 0) == other.rates.get(unit, 0) for unit in ("input", "output"))


def _fill(provider: str, entry: Entry, other: Entry, report: Report) -> None:
    """What the first source lacks. Rates only where both mean the same price."""
    entry.mode = entry.mode or other.mode
    entry.output_tokens_max = entry.output_tokens_max or other.output_tokens_max
    entry.context_tokens = entry.context_tokens or other.context_tokens
    if not any(other.rates.get(unit) for unit in ("input", "output")):
        return
    if not entry.rates:
        entry.rates, entry.tiers = other.rates, other.tiers
        entry.variants, entry.variant_tiers, entry.source = other.variants, other.variant_tiers, LITELLM
        return
    if not _same(entry, other):
        shown = [f"{_usd(one.rates.get('input', 0))} / {_usd(one.rates.get('output', 0))}" for one in (entry, other)]
        report.disagreed[provider].append(f"{entry.model} ({other.model}): {shown[0]} against {shown[1]}")
        return
    report.agreed[provider] += entry.source == GENAI
    entry.source = BOTH
    lacking = {unit for unit in other.rates if unit not in entry.rates}
    if other.tiers and not entry.tiers:
        report.notes[f"long-context tiers that only litellm knows: {provider}/{entry.model}"] += 1
        entry.tiers = other.tiers
    _add_units(entry.rates, other.rates, lacking)
    _add_tiers(entry.tiers, other.tiers, lacking)
    for variant, rates in other.variants.items():
        tiers = other.variant_tiers.get(variant, {})
        if variant not in entry.variants:
            entry.variants[variant], entry.variant_tiers[variant] = rates, tiers
        else:
            _add_units(entry.variants[variant], rates, lacking)
            _add_tiers(entry.variant_tiers.get(variant, {}), tiers, lacking)


def _add_units(rates: Rates, others: Rates, lacking: set[str]) -> None:
    for unit in lacking & others.keys():
        rates.setdefault(unit, others[unit])


def _add_tiers(tiers: dict[int, Rates], others: dict[int, Rates], lacking: set[str]) -> None:
    for above, rates in tiers.items():
        _add_units(rates, others.get(above, {}), lacking)


def _usd(rate: int) -> str:
    return f"{Decimal(rate) / MTOK:f}"


def _fit(provider: str, entry: Entry, report: Report) -> bool:
    """Whether the entry is a price. Zeros are taken out: they are not prices."""
    suffix_provider, suffix = FREE_SUFFIX
    zero = not any(rate for rate in entry.rates.values())
    names = (entry.model.lower(), *entry.names)
    if zero and (
        any((provider, one) in FREE for one in names) or (provider == suffix_provider and entry.model.endswith(suffix))
    ):
        entry.free, entry.rates, entry.tiers, entry.variants, entry.variant_tiers = True, {}, {}, {}, {}
        return True
    for rates in entry.all_rates():
        for unit in [unit for unit, rate in rates.items() if rate == 0]:
            del rates[unit]
        for unit, other in FALLBACKS.items():
            if unit in rates and rates.get(other) == rates[unit] and entry.rates.get(unit) in (None, rates[unit]):
                del rates[unit]
        for unit, rate in list(rates.items()):
            if rate > DEAREST and unit not in ("web_search", "request"):
                report.notes[f"rates left out, absurd: {provider}/{entry.model} {unit} {_usd(rate)}"] += 1
                return False
    _drop_second_name(entry, "fast", "priority")
    entry.tiers = {above: rates for above, rates in entry.tiers.items() if rates}
    entry.variants = {name: rates for name, rates in entry.variants.items() if rates}
    entry.variant_tiers = {
        name: {above: rates for above, rates in tiers.items() if rates}
        for name, tiers in entry.variant_tiers.items()
        if name in entry.variants and any(tiers.values())
    }
    if not any(unit in entry.rates for unit in ("input", "input_audio", "input_image", *OUTPUT_UNITS)):
        report.notes["models left out: no price, or zero, per token"] += 1
        return False
    has_output = any(unit in entry.rates for unit in OUTPUT_UNITS)
    if not has_output and entry.mode not in NO_OUTPUT_MODES and not any(NO_OUTPUT.search(name) for name in names):
        report.notes["models left out: output without a price"] += 1
        return False
    report.models[entry.source] += 1
    return True


def _drop_second_name(entry: Entry, name: str, other: str) -> None:
    """OpenAI calls one tier by two names; core.pricing knows that, so one of them is enough."""
    rates, others = entry.variants.get(name), entry.variants.get(other)
    if rates and others and rates.items() <= others.items():
        del entry.variants[name]
        entry.variant_tiers.pop(name, None)


# Writing ---------------------------------------------------------------------------------------------------------


def write_snapshot(path: Path, books: dict[str, list[Entry]], header: dict[str, Any]) -> int:
    """One line for the header, then one for each model: easy to search, to compare and to read in part."""
    first, lines = {}, []
    for provider, entries in sorted(books.items()):
        first[provider] = [len(lines), len(entries)]
        lines += [_compact(entry.to_json()) for entry in entries]
    text = "\n".join((_compact({**header, "providers": first}), *lines, ""))
    path.write_text(text, encoding="utf-8", newline="\n")
    return len(text)


def _compact(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def report_text(report: Report, books: dict[str, list[Entry]], header: dict[str, Any]) -> str:
    total = sum(map(len, books.values()))
    sources = ", ".join(f"{name} {one['version']}" for name, one in header["catalogues"].items())
    disagreeing = sum(map(len, report.disagreed.values()))
    shown = [
        "# How the price snapshot was made",
        "",
        f"Written by `scripts/build_prices.py` from {sources}, prices in force on {header['as_of']}: "
        f"{total:,} models of {len(books)} providers.",
        "",
        "| source of the entry | models |",
        "|---|---|",
        *(f"| {source} | {count:,} |" for source, count in sorted(report.models.items())),
        "",
        f"Where both catalogues know a model, input and output prices agree for {report.agreed.total():,} models and "
        f"differ for {disagreeing:,} names; there the first catalogue's price stands. By provider:",
        "",
        "| provider | models | agree | differ | for example (USD per million, input / output) |",
        "|---|---|---|---|---|",
    ]
    for provider, entries in sorted(books.items()):
        differ = report.disagreed.get(provider, [])
        if report.agreed[provider] or differ:
            example = differ[0] if differ else ""
            shown.append(f"| {provider} | {len(entries)} | {report.agreed[provider]} | {len(differ)} | {example} |")
    shown += ["", "Also:", "", *(f"- {note}: {count}" for note, count in sorted(report.notes.items())), ""]
    return "\n".join(shown)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--as-of", type=date.fromisoformat, default=datetime.now(UTC).date(), help="day of the prices")
    parser.add_argument("--out", type=Path, default=PRICES, help="directory to write to")
    parser.add_argument("--disagreements", type=Path, help="also write every differing price to this file")
    options = parser.parse_args(list(arguments) if arguments is not None else None)
    report = Report()
    genai, litellm = Genai(options.as_of, report), Litellm(report)
    providers = sorted({*genai.providers, *litellm.by_provider})
    books = {provider: merge(provider, genai, litellm, report) for provider in providers}
    books = {provider: entries for provider, entries in books.items() if entries}
    header = {
        "format": SNAPSHOT_FORMAT,
        "as_of": options.as_of.isoformat(),
        "catalogues": {GENAI: {"version": genai.version}, LITELLM: {"version": litellm.version}},
    }
    size = write_snapshot(options.out / "snapshot.jsonl", books, header)
    (options.out / "REPORT.md").write_text(report_text(report, books, header), encoding="utf-8")
    if options.disagreements:
        lines = [f"{provider}: {one}" for provider, some in sorted(report.disagreed.items()) for one in some]
        options.disagreements.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(f"{sum(map(len, books.values())):,} models of {len(books)} providers, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
