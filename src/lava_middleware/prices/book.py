"""This file knows which price a model has: the operator's own, else the shipped snapshot's, else none."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from ..core.pricing import Price
from ..core.usage import OTHER_UNITS
from ..forks import renew_in_child
from .names import date_of, spellings, undated
from .snapshot import Snapshot, shipped

if TYPE_CHECKING:
    from .overlay import Given

MODEL_LENGTH_MOST = 200
"""Model names come from requests; longer ones are nobody's and are not looked up."""
CACHED_MODELS = 2_048
ANY_PROVIDER = "any"
"""How a price that the operator gives for a model, wherever it runs, is listed."""


def _nothing_found() -> LRUCache[tuple[tuple[str, ...], str], Price | None]:
    return LRUCache(CACHED_MODELS)


class Book:
    """A core.pricing.PriceBook. Thread-safe; raises overlay.PricesError (a ValueError) for prices that cannot be right.

    `prices`: a mapping of "model" or "provider/model" to prices (credits per million tokens, as strings; searches and
    requests each), {"free": true} for an explicitly free model, or the path of a TOML file of that shape. They take
    the place of the snapshot's prices; limits, and prices of units that are not tokens, stay unless they are given.
    """

    def __init__(
        self, prices: Mapping[str, Any] | str | os.PathLike[str] | None = None, *, snapshot: Snapshot | None = None
    ) -> None:
        self._snapshot = snapshot or shipped()
        self._given: dict[str, Given] = {}
        self.version = self._snapshot.version
        if prices:
            from .overlay import read

            self._given = read(prices)
            self.version += f"+operator-{_fingerprint(self._given)}"
        self._cache = _nothing_found()
        self._lock = threading.Lock()
        renew_in_child(self, _lock=threading.Lock, _cache=_nothing_found)

    def __repr__(self) -> str:
        return f"<Book {self.version}>"

    @property
    def providers(self) -> tuple[str, ...]:
        """Whose price lists there are."""
        return self._snapshot.providers

    def find(self, providers: tuple[str, ...], model: str) -> Price | None:
        """The price in the first of these providers' lists that knows the model or the alias it is of, else None."""
        if len(model) > MODEL_LENGTH_MOST:
            return None
        key = (providers, model)
        with self._lock:
            try:
                return self._cache[key]
            except KeyError:
                pass
        found = next((price for one in providers if (price := self._price(one, model)) is not None), None)
        with self._lock:
            self._cache[key] = found
        return found

    def search(self, text: str, limit: int = 20) -> list[Price]:
        """Prices of the models whose name contains the text, in all lists: exact names first, then the shortest."""
        wanted = text.lower().strip()
        found: dict[tuple[str, str], Price] = {}
        for provider, model in self._listed(wanted):
            price = self._price(provider, model)
            if price is not None:
                found.setdefault((price.provider, price.model), price)

        def rank(price: Price) -> tuple[bool, bool, int, str, str]:
            names = (price.model.lower(), f"{price.provider}/{price.model}".lower())
            return wanted not in names, price.source != "operator", len(price.model), price.provider, price.model

        return sorted(found.values(), key=rank)[:limit]

    def _listed(self, wanted: str) -> Iterator[tuple[str, str]]:
        """(provider, model) of everything whose name contains this, the operator's own first."""
        for key in self._given:
            if wanted in key:
                provider, _, model = key.partition("/")
                yield (provider, model) if model and self._is_provider(provider) else (ANY_PROVIDER, key)
        for provider in self._snapshot.providers:
            prices = self._snapshot.list_of(provider)
            for entry in prices.entries if prices else ():
                names = (entry["model"].lower(), *entry.get("also", ()), f"{provider}/{entry['model']}".lower())
                if any(wanted in name for name in names):
                    yield provider, entry["model"]

    def _price(self, provider: str, model: str) -> Price | None:
        prices = self._snapshot.list_of(provider)
        listed = prices.find(model) if prices else None
        if not self._given:
            return listed
        key = self._given_key(provider, model, prices.names_of(model) if prices else ())
        return listed if key is None else _laid_over(self._given[key], provider, key, listed)

    def _given_key(self, provider: str, model: str, names: tuple[str, ...]) -> str | None:
        """Under which key the operator priced this model. `names`: all that the snapshot knows the same model by."""
        own = list(spellings(provider, model))
        bare = [undated(name) for name in own]
        same = [name for name in bare if not names or name in names]
        for name in (*own, *same, *names[:1]):
            for key in (f"{provider}/{name}", name):
                if key in self._given and not self._is_of_another(key, provider):
                    return key
        if any(map(date_of, own)):
            return None
        dated = [key for key in self._given if date_of(key) and self._names(key, provider) in names]
        return dated[0] if len(dated) == 1 and undated(self._names(dated[0], provider)) in bare else None

    def _names(self, key: str, provider: str) -> str:
        """The model that a key names where this provider serves it."""
        return "" if self._is_of_another(key, provider) else key.removeprefix(f"{provider}/")

    def _is_of_another(self, key: str, provider: str) -> bool:
        first, slash, _ = key.partition("/")
        return bool(slash) and first != provider and self._is_provider(first)

    def _is_provider(self, name: str) -> bool:
        return name in self._snapshot.providers


def _laid_over(given: Given, provider: str, key: str, listed: Price | None) -> Price:
    """The operator's price, with what it leaves open from the list: limits, searches, flat fees."""
    base = listed or Price(provider, key.removeprefix(f"{provider}/"), {})
    kept = {} if given.free else {unit: rate for unit, rate in base.rates.items() if unit in OTHER_UNITS}
    return replace(
        base,
        rates={**kept, **given.rates},
        tiers=tuple(sorted(given.tiers.items())),
        variants=given.variants,
        variant_tiers={},
        output_tokens_max=given.output_tokens_max or base.output_tokens_max,
        context_tokens=given.context_tokens or base.context_tokens,
        free=given.free,
        source="operator",
        as_of="",
    )


def _fingerprint(given: Mapping[str, Given]) -> str:
    text = "\n".join(f"{name} {one.model_dump_json()}" for name, one in sorted(given.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
