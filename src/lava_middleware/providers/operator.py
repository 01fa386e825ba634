"""This file knows how to read and check the rows that an operator adds: a mapping, or a TOML file of the same shape.

It needs pydantic and is imported only where settings are read and where there are such rows.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ..dialects.dialect import Dialect
from .endpoints import READING, SOCKETS, compatible, free, metered
from .matching import host_key, normal_host
from .row import OPERATOR, Endpoint, Row
from .spoken import (
    CHAT,
    CHAT_COMPATIBLE,
    CHAT_OF_AZURE,
    COMPLETIONS_COMPATIBLE,
    EMBED_CONTENT,
    EMBEDDINGS,
    FIM,
    GENERATE,
    GENERATE_STREAM,
    MESSAGES,
    RESPONSES,
)

EXAMPLE = '{"acme-gateway": {"hosts": ["llm.acme.example"], "dialects": ["openai.chat"]}}'

CAPS = {"max_tokens": CHAT_COMPATIBLE, "max_completion_tokens": CHAT, "by_model": CHAT_OF_AZURE}
"""Field that caps the output of a chat → the dialect that writes it."""

DIALECTS: dict[str, tuple[Dialect, str, tuple[str, ...]]] = {
    # dialect → (how it is spoken, where such APIs usually are, the paths of its POSTs below that)
    "openai.chat": (CHAT_COMPATIBLE, "/v1", ("/chat/completions",)),
    "openai.completions": (COMPLETIONS_COMPATIBLE, "/v1", ("/completions",)),
    "openai.responses": (RESPONSES, "/v1", ("/responses",)),
    "openai.embeddings": (EMBEDDINGS, "/v1", ("/embeddings",)),
    "mistral.fim": (FIM, "/v1", ("/fim/completions",)),
    "anthropic.messages": (MESSAGES, "/v1", ("/messages",)),
    "gemini.generate": (GENERATE, "/v1beta", ("/models/{model}:generateContent",)),
    "gemini.stream": (GENERATE_STREAM, "/v1beta", ("/models/{model}:streamGenerateContent",)),
    "gemini.embeddings": (
        EMBED_CONTENT,
        "/v1beta",
        ("/models/{model}:embedContent", "/models/{model}:batchEmbedContents"),
    ),
}

COUNTERS = {
    # dialect → the paths beside it that count tokens for nothing
    "anthropic.messages": ("/messages/count_tokens",),
    "gemini.generate": ("/models/*:countTokens",),
}


class ProvidersError(ValueError):
    """The operator's rows cannot be right; the message says where and why, never the value."""


# Hosts ---------------------------------------------------------------------------------------------------------------

_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?\.?|\[[0-9a-f:.]+\])(?::(\d{1,5}))?")


def listed_host(value: object) -> str:
    """As requests are looked up: any spelling that a client may be given in a URL means the same host.

    Raises ValueError with what is wrong, to be read after the name of the setting."""
    host = value.strip().lower() if isinstance(value, str) else ""
    if "://" in host or "/" in host or "@" in host:
        raise ValueError("takes host names (host or host:port), not URLs")
    host = _on_the_wire(host)
    found = _HOST.fullmatch(host)
    if not found or not 0 < int(found[1] or 1) < 65_536:
        raise ValueError("has something that is not host or host:port")
    return host_key(*normal_host(host))


def _on_the_wire(host: str) -> str:
    """A name in other letters than ASCII's, as the HTTP libraries send it (xn--...)."""
    if host.isascii():
        return host
    from httpx import URL, InvalidURL

    name, colon, port = host.partition(":")
    try:
        return URL(scheme="http", host=name).raw_host.decode("ascii") + colon + port
    except InvalidURL:
        return host


def _host_or_pattern(value: object) -> str:
    """Also with one star, in front of at least two labels: *.llm.acme.example, eu-*.acme.example:8443."""
    if not isinstance(value, str) or "*" not in value:
        return listed_host(value)
    listed = listed_host(value.strip().replace("*", "x"))
    head, _, tail = value.strip().lower().partition("*")
    if "*" in tail or not tail.startswith((".", "-")) or tail.partition(":")[0].strip(".").count(".") < 1:
        raise ValueError("has a star elsewhere than once, in front of two labels, as in *.acme.example")
    return head + "*" + listed[len(head) + 1 :]


# One row -------------------------------------------------------------------------------------------------------------


def _several(value: object) -> object:
    """One is as good as a list of one."""
    return [value] if isinstance(value, str) else value


_PATH = re.compile(r"(?:/(?:\*\*|\*?[A-Za-z0-9._~:@%+-]+|\*|\{model\}[A-Za-z0-9._~:@%+-]*))+")


def _pattern(value: object) -> str:
    if not isinstance(value, str) or not _PATH.fullmatch(value) or value.count("**") > 1 or value.count("{model}") > 1:
        raise ValueError("must be a path such as /v1/chat/completions; * stands for a segment, ** for any number")
    return value


def _prefix(value: object) -> str:
    path = value.rstrip("/") if isinstance(value, str) else value
    if path == "":
        return ""
    if not isinstance(path, str) or "**" in path or "{model}" in path:
        raise ValueError("must be what stands before the paths, such as /v1, or an empty string")
    return _pattern(path)


_Spoken = Literal[
    "openai.chat",
    "openai.completions",
    "openai.responses",
    "openai.embeddings",
    "mistral.fim",
    "anthropic.messages",
    "gemini.generate",
    "gemini.stream",
    "gemini.embeddings",
]
_Host = Annotated[str, BeforeValidator(_host_or_pattern)]
_Pattern = Annotated[str, BeforeValidator(_pattern)]
_Prefix = Annotated[str, BeforeValidator(_prefix)]
_Name = Annotated[str, Field(strict=True, pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
_Tokens = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
_Flag = Annotated[bool, Field(strict=True)]
_Query = Annotated[str, Field(strict=True, min_length=1, max_length=100)]


class Given(BaseModel):
    """One provider as the operator gives it. The quirks have the names and the meaning that they have in a `Row`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: Annotated[tuple[_Host, ...], BeforeValidator(_several)] = ()
    """Where it is. None: where `hosts` of Lava() says that it is."""
    dialects: Annotated[tuple[_Spoken, ...], BeforeValidator(_several)] = ()
    """What it speaks, at the usual paths below each prefix."""
    prefixes: Annotated[tuple[_Prefix, ...], BeforeValidator(_several)] = ()
    """None: where APIs of that dialect usually are."""
    endpoints: dict[_Pattern, _Spoken] = {}
    """Unusual paths → what is spoken there."""
    free: Annotated[tuple[_Pattern, ...], BeforeValidator(_several)] = ()
    """Paths of POSTs that cost nothing."""
    paths: Annotated[tuple[_Pattern, ...], BeforeValidator(_several)] = ()
    """The paths that are this provider's, on a host that serves other things too; none: all."""
    cap: Literal["max_tokens", "max_completion_tokens", "by_model"] = "max_tokens"
    """The field that caps the output of its chats."""
    family: Literal["openai", "claude", "open"] | None = None
    system: _Name | Literal[""] = ""
    framing: _Tokens = 128
    tools_framing: _Tokens = 640
    soft: _Flag = False
    asks_usage: _Flag = False
    asks_usage_if_query: dict[_Query, _Query] = {}
    reports_cost: _Flag = False
    prices_as: Annotated[tuple[_Name, ...], BeforeValidator(_several)] = ()

    @model_validator(mode="before")
    @classmethod
    def _knows_the_fields(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            raise ValueError(f"must be a table, as in {EXAMPLE}")
        for name in given:
            if name not in cls.model_fields:
                close = difflib.get_close_matches(str(name)[:80], cls.model_fields, n=1, cutoff=0.6)
                meant = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(cls.model_fields)}"
                raise ValueError(f"{str(name)[:40]!r} is not a field of a provider; {meant}")
        return given

    @model_validator(mode="after")
    def _speaks(self) -> Given:
        if not self.dialects and not self.endpoints:
            raise ValueError('needs "dialects" (or "endpoints"): what it speaks, such as ["openai.chat"]')
        return self

    def row(self, name: str) -> Row:
        return Row(
            name=name,
            hosts=self.hosts,
            endpoints=tuple(self._endpoints()),
            paths=self.paths,
            family=self.family or ("claude" if set(self.dialects) == {"anthropic.messages"} else "open"),
            system=self.system,
            framing=self.framing,
            tools_framing=self.tools_framing,
            soft=self.soft,
            asks_usage=self.asks_usage,
            asks_usage_if_query=tuple(self.asks_usage_if_query.items()),
            reports_cost=self.reports_cost,
            prices_as=self.prices_as,
            evidence=OPERATOR,
        )

    def _endpoints(self) -> Iterator[Endpoint]:
        for path, spoken in self.endpoints.items():
            yield metered(path, self._dialect(spoken))
        yield from free("free", *self.free)
        for name in self.dialects:
            for prefix in self._prefixes(name):
                yield from (metered(prefix + path, self._dialect(name)) for path in DIALECTS[name][2])
                yield from free("token counting", *(prefix + path for path in COUNTERS.get(name, ())))
        for prefix in {
            one: None for name in self.dialects if name.startswith("openai.") for one in self._prefixes(name)
        }:
            yield from (one for one in compatible(prefix, CHAT) if one.dialect is None and "GET" not in one.methods)
        yield from (*SOCKETS, *READING)

    def _prefixes(self, dialect: str) -> tuple[str, ...]:
        return self.prefixes or (DIALECTS[dialect][1],)

    def _dialect(self, name: str) -> Dialect:
        return CAPS[self.cap] if name == "openai.chat" else DIALECTS[name][0]


# All of them ---------------------------------------------------------------------------------------------------------

_ALL = TypeAdapter(dict[_Name, Given])


def read(
    providers: Mapping[str, Any] | str | os.PathLike[str],
    *,
    named: Iterable[str] = (),
    price_lists: Iterable[str] = (),
) -> dict[str, Row]:
    """The operator's rows by name. Raises ProvidersError with the provider and the field in it.

    `named`: providers that `hosts` of Lava() places; these need no hosts of their own. `price_lists`: those there are.
    """
    if isinstance(providers, str | os.PathLike):
        where, providers = f"providers file {os.fspath(providers)}: ", _from_file(providers)
    else:
        where = "providers: "
    try:
        given = _ALL.validate_python(dict(providers))
    except ValidationError as error:
        raise ProvidersError(where + _first(error)) from None
    lists = {*price_lists, *given}
    for name, one in given.items():
        if not one.hosts and name not in set(named):
            raise ProvidersError(f"{where}{name}.hosts: is missing, and no host in hosts= speaks as {name}")
        for at, wanted in enumerate(one.prices_as):
            if wanted not in lists:
                close = difflib.get_close_matches(wanted, lists, n=1)
                meant = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(lists))}"
                raise ProvidersError(f"{where}{name}.prices_as.{at}: is no price list{meant}")
    return {name: one.row(name) for name, one in given.items()}


def _from_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ProvidersError(f"providers file {os.fspath(path)} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProvidersError(f"providers file {os.fspath(path)} is not TOML: {error}") from None


def _first(error: ValidationError) -> str:
    """The first complaint, with its place and without the value."""
    one = error.errors(include_url=False, include_input=False)[0]
    parts = one["loc"]
    if parts[-1] == "[key]":  # a key that is wrong is a value of ours, except a provider's name
        parts = parts[:-1] if len(parts) == 2 else parts[:-2]
    place = ".".join(str(part)[:80] for part in parts)
    message = one["msg"].removeprefix("Value error, ")
    if one["type"] == "string_pattern_mismatch":
        message = "must be 1 to 64 of a-z, 0-9 and dash"
    return f"{place}: {message}"
