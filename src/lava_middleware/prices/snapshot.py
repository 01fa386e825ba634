"""This file knows how to read the shipped price snapshot, one provider at a time and only when first asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from ..core.pricing import Price, Rates
from ..forks import renew_in_child
from .names import date_of, spellings, undated

FORMAT = 1


class PriceList:
    """One provider's part of the snapshot."""

    def __init__(self, provider: str, lines: list[str], as_of: str) -> None:
        self._provider, self._as_of = provider, as_of
        self.entries: list[dict[str, Any]] = json.loads(f"[{','.join(lines)}]")
        self._undated: dict[str, dict[str, Any]] | None = None
        self._by_name: dict[str, dict[str, Any]] = {
            name: entry for entry in reversed(self.entries) for name in _names(entry)
        }

    def find(self, model: str) -> Price | None:
        """The price of the model, by one of its names; never that of a sibling."""
        entry = self._entry(model)
        return None if entry is None else self.price(entry)

    def names_of(self, model: str) -> tuple[str, ...]:
        """All names of the entry that the model is found in: the list's own first."""
        entry = self._entry(model)
        return () if entry is None else tuple(_names(entry))

    def _entry(self, model: str) -> dict[str, Any] | None:
        names = tuple(spellings(self._provider, model))
        bare = tuple(undated(name) for name in names)
        exact = next((self._by_name[name] for name in (*names, *bare) if name in self._by_name), None)
        if exact is not None:
            return exact
        known = self._without_dates()
        return next((known[name] for name in bare if name in known), None)

    def _without_dates(self) -> dict[str, dict[str, Any]]:
        """Names that the list has with dates only → the entry, where all dates have one price.

        Made once; twice at worst. (Python 3.11's cached_property has a lock that a forked child may find taken.)
        """
        if self._undated is None:
            self._undated = self._find_undated()
        return self._undated

    def _find_undated(self) -> dict[str, dict[str, Any]]:
        found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for name, entry in self._by_name.items():
            if date := date_of(name):
                found.setdefault(undated(name), []).append((date, entry))
        return {
            name: max(dated, key=lambda one: one[0])[1]
            for name, dated in found.items()
            if name not in self._by_name and all(_same_price(entry, dated[0][1]) for _, entry in dated)
        }

    def price(self, entry: dict[str, Any]) -> Price:
        return Price(
            provider=self._provider,
            model=entry["model"],
            rates=entry["rates"],
            tiers=_tiers(entry.get("tiers", ())),
            variants=entry.get("variants", {}),
            variant_tiers={name: _tiers(tiers) for name, tiers in entry.get("variant_tiers", {}).items()},
            output_tokens_max=entry.get("output_tokens_max"),
            context_tokens=entry.get("context_tokens"),
            free=entry.get("free", False),
            source=entry["source"],
            as_of=self._as_of,
        )


def _names(entry: dict[str, Any]) -> Iterator[str]:
    yield entry["model"].lower()
    yield from entry.get("also", ())


def _same_price(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(part) == other.get(part) for part in ("rates", "tiers", "variants", "variant_tiers", "free"))


def _tiers(written: Any) -> tuple[tuple[int, Rates], ...]:
    return tuple((above, rates) for above, rates in written)


class Snapshot:
    """The shipped prices: a header line, then a line for each model, grouped by provider."""

    def __init__(self, text: str) -> None:
        head, *self._lines = text.splitlines()
        header = json.loads(head)
        if header["format"] != FORMAT:
            raise ValueError(f"the price snapshot has format {header['format']}, this release reads format {FORMAT}")
        self.as_of: str = header["as_of"]
        self.version = f"{self.as_of}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self._where: dict[str, list[int]] = header["providers"]
        self._lists: dict[str, PriceList] = {}
        self._lock = threading.Lock()
        renew_in_child(self, _lock=threading.Lock)

    @property
    def providers(self) -> tuple[str, ...]:
        return tuple(self._where)

    def list_of(self, provider: str) -> PriceList | None:
        """The provider's list, parsed when first asked for; None if the snapshot has none."""
        found = self._lists.get(provider)
        if found is None and provider in self._where:
            with self._lock:
                first, count = self._where[provider]
                found = self._lists.setdefault(
                    provider, PriceList(provider, self._lines[first : first + count], self.as_of)
                )
        return found


@cache
def shipped() -> Snapshot:
    """The snapshot of this release, read once."""
    return Snapshot((resources.files(__package__) / "snapshot.jsonl").read_text(encoding="utf-8"))
