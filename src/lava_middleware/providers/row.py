"""This file knows what there is to know about one provider."""

from __future__ import annotations

from dataclasses import dataclass

from ..dialects.dialect import Dialect

RECORDED = "recorded"
"""Real exchanges with it are in the recorded traffic that the tests read."""

OPERATOR = "operator"
"""An operator added it and vouches for it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of a provider, and what it means for money."""

    methods: tuple[str, ...]
    path: str
    """A pattern: literal segments, `*` for one segment, `{model}` for one that names the model (either may have a
    literal end: `{model}:generateContent`), `**` for any number."""
    dialect: Dialect | None = None
    """How it is metered. None with `free`: nothing to bill. None without: not metered yet, refused by a money gate."""
    free: bool = False
    """Management, retrieval, token counting: passes ungated and is never billed."""
    door: str = ""
    """What it is, for errors and counts: "images", "batches", ..."""


@dataclass(frozen=True, slots=True)
class Row:
    """One provider. A new provider that speaks a known dialect is one of these."""

    name: str
    """As records and prices name it: "openai", "azure-openai", "anthropic", "groq"."""
    hosts: tuple[str, ...]
    """Host names; a leading `*.` matches one or more labels before it, a `*` elsewhere (one a name) part of a label."""
    endpoints: tuple[Endpoint, ...]
    """The first that matches counts. A path none matches is an unknown door: refused under a money gate."""
    paths: tuple[str, ...] = ()
    """Patterns of the paths that are this provider's on hosts it shares with other services; empty: all paths."""
    family: str = "openai"
    """Tokenizer family, for factors in core.bound: "openai", "claude", "open"; a model name may override it."""
    system: str = ""
    """gen_ai.provider.name, where it differs from `name`."""
    framing: int = 64
    """Tokens the provider adds to any request."""
    tools_framing: int = 512
    """Tokens the provider adds when functions are declared."""
    soft: bool = False
    """The provider injects text of its own: bounds are not hard, the record says so."""
    asks_usage: bool = False
    """include_usage may be injected into its streams (an allowlist: elsewhere it breaks or is needless)."""
    asks_usage_if_query: tuple[tuple[str, str], ...] = ()
    """Azure: (query name, least value) pairs that must hold for it; a path of /v1/ needs none."""
    reports_cost: bool = False
    """The cost it reports is believed."""
    prices_as: tuple[str, ...] = ()
    """Other providers' price lists to try, in order, after its own."""
    evidence: str = ""
    """How its format is known: RECORDED, OPERATOR, or a page or release of the vendor with its date. Empty: it is not
    verified. Its own hosts are then refused like any door that is not metered; an operator who has tried it names it
    in `hosts`, and it is metered."""


@dataclass(frozen=True, slots=True)
class Match:
    """What a request's URL means."""

    row: Row
    endpoint: Endpoint | None
    """None: a path we do not know on a host we do."""
    path_model: str | None = None
    """The model (or deployment) that the path names, percent-decoded."""
