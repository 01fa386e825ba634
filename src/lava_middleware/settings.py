"""This file knows how to read what an operator may set, from keywords and LAVA_* variables, and to say what is wrong.

It is imported when a Lava is configured, and by nothing on the way of a call: what it gives is a plain frozen object.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from .errors import ConfigurationError, logger, say_once
from .export.signing import Signer
from .export.webhook_secret import Secrets
from .offers.catalogue import SECTIONS, Catalogue, CatalogueError
from .offers.catalogue import read as read_catalogue
from .providers.operator import listed_host

PREFIX = "LAVA_"


def _ledger(value: object) -> Path | str | None:
    """A file's path, the URL of a PostgreSQL database, or None for memory."""
    if not isinstance(value, str):
        raise ValueError("must be a URL such as sqlite:///lava.db")
    scheme, separator, rest = value.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        return _postgres_url(value)
    if value in ("memory://", "sqlite:///:memory:"):
        return None
    if not separator or scheme != "sqlite":
        raise ValueError("must be a URL such as sqlite:///lava.db (a relative path) or sqlite:////var/lib/app/lava.db")
    if not rest.startswith("/") or rest == "/":
        raise ValueError("needs three slashes and a file name, as in sqlite:///lava.db")
    if "?" in rest or "#" in rest or "\0" in rest:
        raise ValueError("takes a path and nothing after it, as in sqlite:///lava.db")
    # Absolute from here on: a later chdir() must not mean another ledger.
    return Path(os.path.abspath(rest[1:]))


def _postgres_url(value: str) -> str:
    """What can be seen without the driver; it says the rest when it connects."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if not parts.path.strip("/") or "/" in parts.path[1:] or port == 0 or parts.fragment or "\0" in value:
        raise ValueError(
            "must be like postgresql://user:password@host:5432/database, special characters percent-encoded"
        )
    return value


def _markup(value: object) -> Decimal:
    if isinstance(value, float | bool) or not isinstance(value, str | int | Decimal):
        raise ValueError('must be a string such as "1.20", not a float')
    try:
        markup = Decimal(value)
    except InvalidOperation:
        raise ValueError('must be a decimal number such as "1.20"') from None
    if not markup.is_finite() or not 0 < markup <= 1_000_000:
        raise ValueError("must be above 0 (1 sells at cost, 1.20 at cost plus a fifth)")
    if markup != round(markup, 6):
        raise ValueError("has at most six decimals")
    return markup


def _existing_file(value: object) -> object:
    if isinstance(value, Mapping):
        return value
    path = _path(value)
    if not path.is_file():
        raise ValueError("names a file that does not exist")
    return path


def _catalogue(value: object) -> Catalogue:
    if isinstance(value, Catalogue):
        return value
    if isinstance(value, Mapping):
        return read_catalogue(value)
    path = _path(value)
    if not path.is_file():
        raise ValueError("names a file that does not exist")
    try:
        return read_catalogue(path)
    except CatalogueError as error:
        raise ValueError(f"cannot be right: {error}") from None


def _path(value: object) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError("must be the path of a file")
    return Path(os.path.abspath(os.fspath(value)))


def _writable_file(value: object) -> Path:
    path = _path(value)
    if path.is_dir():
        raise ValueError("names a directory, not a file")
    if not path.parent.is_dir():
        raise ValueError("names a file in a directory that does not exist")
    return path


def _hosts(value: object) -> dict[str, tuple[str, ...]]:
    """ "127.0.0.1:8811=openai,anthropic;gateway.local=openai", or a mapping of the same."""
    if isinstance(value, str):
        pairs = [one.partition("=")[::2] for one in value.split(";") if one.strip()]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise ValueError("must map hosts to providers")
    found: dict[str, tuple[str, ...]] = {}
    for host, providers in pairs:
        name = listed_host(host)
        if name in found:
            raise ValueError(f"names host number {len(found) + 1} twice; list its providers together")
        found[name] = _providers(providers)
    return found


def _providers(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, tuple | list):
        raise ValueError("must name one provider, or several, for each host")
    found = tuple(str(name).strip().lower() for name in names)
    if not found or not all(re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name) for name in found):
        raise ValueError("must name a provider such as openai for each host")
    return found


def _share(value: object) -> object:
    return value.strip().removeprefix("1/") if isinstance(value, str) else value


def _web_address(value: object) -> str:
    parts = urlsplit(value) if isinstance(value, str) else urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or len(str(value)) > 2_000:
        raise ValueError("must be a web address without user name or password")
    if not str(value).isascii() or not str(value).isprintable() or " " in str(value):
        raise ValueError("must be a web address in ASCII; write other characters percent-encoded")
    return str(value)


def _other_ledger(value: object) -> Path | str:
    ledger = _ledger(value)
    if ledger is None:
        raise ValueError("must be a ledger that stays")
    return ledger


def _webhook_secret(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    Secrets(value)
    return value


def _span_key(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    Signer(value)
    return value


Seconds: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Each field `x` is a keyword of Lava() and a variable LAVA_X; keywords win."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    ledger: Annotated[Path | str | None, BeforeValidator(_ledger)] = field(default=Path("lava.db"), repr=False)
    """Absolute path of the SQLite file; None (memory://, sqlite:///:memory:): in memory, for tests."""
    mode: Literal["enforce", "observe"] = "enforce"
    """"observe" meters and records, and never refuses, clamps or cuts."""
    markup: Annotated[Decimal, BeforeValidator(_markup)] = Decimal(1)
    """Charge = cost × this, where no meter says otherwise."""
    prices: Annotated[Path | Mapping[str, Any] | None, BeforeValidator(_existing_file)] = field(
        default=None, repr=False
    )
    """The operator's own prices over the shipped ones: a TOML file, or a mapping."""
    meters: Annotated[Path | Mapping[str, Any] | None, BeforeValidator(_existing_file)] = field(
        default=None, repr=False
    )
    """What customers are charged, where it is not cost × markup: a TOML file, or a mapping."""
    catalogue: Annotated[Catalogue | None, BeforeValidator(_catalogue)] = field(default=None, repr=False)
    """All that is sold: plans, limits, meters, prices and rows of providers in one TOML file, or a mapping."""
    hosts: Annotated[Mapping[str, tuple[str, ...]], BeforeValidator(_hosts)] = field(default_factory=dict)
    """Further hosts that speak as these providers do."""
    providers: Annotated[Path | Mapping[str, Any] | None, BeforeValidator(_existing_file)] = field(
        default=None, repr=False
    )
    """The operator's own rows of providers beside the shipped ones: a TOML file, or a mapping."""
    unlisted: Literal["pass", "by_path"] = "pass"
    """What happens to calls to hosts that nobody listed: they pass, or are metered where path and body are those of a
    known format."""
    on_unknown_customer: Literal["refuse", "unbilled"] = "refuse"
    """What happens to a call for which nobody was named."""
    unknown_accounts: Literal["create", "refuse"] = "create"
    """Whether a customer whom the ledger never saw gets an account at first sight (without credit)."""
    on_unknown_outcome: Literal["expected", "input", "bound", "void"] = "expected"
    """What a call is charged that was sent and never answered."""
    on_exhausted: Literal["end", "raise"] = "end"
    """How a stream stops when the money does."""
    clamp: Literal["missing", "never", "always"] = "missing"
    """Whether an affordable cap is written into requests: where they have none, never, or lower theirs too."""
    hold_share: Annotated[int, BeforeValidator(_share), Field(ge=1, le=1_000)] = 3
    """A call without a cap holds at most one part in so many of what is available."""
    hold_wait_s: Annotated[Seconds, Field(ge=0, le=600)] = 2.0
    """How long a call waits for open calls to give credit back."""
    top_up_wait_s: Annotated[Seconds, Field(ge=0, le=600)] = 10.0
    """How long a call that lacks credit waits for the customer's automatic top-up."""
    min_output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """A call without a cap is refused if credit pays for fewer."""
    stall_s: Annotated[Seconds, Field(ge=1, le=604_800)] = 600.0
    """A stream that nobody reads for so long is closed."""
    overrun: Literal["debt", "absorb"] = "debt"
    """Who bears what a settlement exceeds its hold by: the customer, or the operator."""
    on_ledger_outage: Literal["closed", "open"] = "closed"
    """Whether calls go out while the ledger cannot be asked (they are recorded in `pending`)."""
    pending: Annotated[Path | None, BeforeValidator(_writable_file)] = field(default=None, repr=False)
    """Where; None: `<ledger>.pending`."""
    durability: Literal["power_loss", "process_crash"] = "power_loss"
    """What an acknowledged entry survives."""
    unmetered: Literal["refuse", "pass"] = "refuse"
    """What happens to calls through doors that have no meter."""
    after_request: Literal["allow", "refuse"] = "allow"
    """What happens to calls that are made when their request has been answered."""
    disclose_amounts: bool = False
    """Whether clients see amounts of credit in refusals."""
    upgrade_url: Annotated[str | None, BeforeValidator(_web_address)] = None
    """Where clients who run out are sent."""
    export_jsonl: Annotated[Path | None, BeforeValidator(_writable_file)] = field(default=None, repr=False)
    """Usage records are appended to this file, a JSON object a line."""
    post_to: Annotated[Path | str | None, BeforeValidator(_other_ledger)] = field(default=None, repr=False)
    """Usage records are also posted into this ledger, the ledger of record."""
    webhook_url: Annotated[str | None, BeforeValidator(_web_address)] = field(default=None, repr=False)
    """What happens to customers is posted here, signed: thresholds, cycles, top-ups, suspensions, debt."""
    webhook_secret: Annotated[str | None, BeforeValidator(_webhook_secret)] = field(default=None, repr=False)
    """It is signed with this secret, by Standard Webhooks. Several, with commas: with each of them."""
    webhook_records: bool = False
    """Whether every usage record is posted there too."""
    span_key: Annotated[str | None, BeforeValidator(_span_key)] = field(default=None, repr=False)
    """Billing spans carry their whole record, signed with this key. Several: the first one signs."""
    tracing: bool = True
    """Whether billing spans are made (they go nowhere without an OpenTelemetry SDK)."""


EXAMPLES: dict[str, tuple[str, str]] = {
    # setting → (what it must be, an example). A setting that is missing here cannot be set.
    "ledger": ("the URL of a SQLite file or a PostgreSQL database", "sqlite:///lava.db"),
    "mode": ("enforce or observe", "observe"),
    "markup": ("a decimal number above 0", "1.20"),
    "prices": ("the path of a TOML file", "prices.toml"),
    "meters": ("the path of a TOML file", "meters.toml"),
    "catalogue": ("the path of a TOML file", "lava.toml"),
    "hosts": ("hosts and the providers they speak as", "127.0.0.1:8811=openai,anthropic;gateway.local=openai"),
    "providers": ("the path of a TOML file", "providers.toml"),
    "unlisted": ("pass or by_path", "by_path"),
    "on_unknown_customer": ("refuse or unbilled", "refuse"),
    "unknown_accounts": ("create or refuse", "create"),
    "on_unknown_outcome": ("expected, input, bound or void", "expected"),
    "on_exhausted": ("end or raise", "end"),
    "clamp": ("missing, never or always", "missing"),
    "hold_share": ("a whole number from 1 to 1000 (3: a third)", "3"),
    "hold_wait_s": ("seconds from 0 to 600", "2"),
    "top_up_wait_s": ("seconds from 0 to 600", "10"),
    "min_output_tokens": ("a whole number from 1 to 1000000", "256"),
    "stall_s": ("seconds from 1 to 604800", "600"),
    "overrun": ("debt or absorb", "debt"),
    "on_ledger_outage": ("closed or open", "closed"),
    "pending": ("the path of a file", "/var/lib/app/lava.pending"),
    "durability": ("power_loss or process_crash", "power_loss"),
    "unmetered": ("refuse or pass", "refuse"),
    "after_request": ("allow or refuse", "allow"),
    "disclose_amounts": ("true or false", "true"),
    "upgrade_url": ("a web address", "https://example.com/billing"),
    "export_jsonl": ("the path of a file", "/var/lib/app/usage.jsonl"),
    "post_to": ("the URL of a SQLite file or a PostgreSQL database", "sqlite:////var/lib/app/record.db"),
    "webhook_url": ("a web address", "https://example.com/lava"),
    "webhook_secret": ("whsec_ and the base64 of 24 to 64 random bytes", "whsec_bWFrZS1vbmUtd2l0aDpvcGVuc3NsLXJhbmQ="),
    "webhook_records": ("true or false", "true"),
    "span_key": ("a secret of at least 32 characters", "make-one-with:openssl-rand-hex-32"),
    "tracing": ("true or false", "true"),
}


def configure(ledger: str | None, keywords: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in force: keywords over LAVA_* variables over defaults.

    Raises ConfigurationError naming every setting that cannot work, with the reason and an example, never the value:
    it may be a secret that landed in the wrong place. None as a keyword's value means: not given.
    """
    environ = os.environ if environ is None else environ
    given = _from_environment(environ)
    given.update({name: (name, value) for name, value in keywords.items() if value is not None})
    if ledger is not None:
        given["ledger"] = ("ledger", ledger)
    by_default = "ledger" not in given
    given.setdefault("ledger", ("ledger", "sqlite:///lava.db"))
    problems = [_unknown(name) for name in given if name not in EXAMPLES]
    values = {name: value for name, (_, value) in given.items() if name in EXAMPLES}
    try:
        settings = _adapter().validate_python(values)
    except ValidationError as error:
        problems += _explained(error, given)
    else:
        if (settings.webhook_url is None) != (settings.webhook_secret is None):
            problems.append("webhook_url and webhook_secret belong together: give both, or neither")
        if isinstance(settings.ledger, str) and settings.on_ledger_outage == "open" and settings.pending is None:
            problems.append("on_ledger_outage=open needs pending=, a file for what goes out while PostgreSQL is away")
        settings, twice = _with_catalogue(settings)
        problems += twice
    if problems:
        raise ConfigurationError("\n  ".join(["lava_middleware cannot be configured:", *problems]))
    if by_default and isinstance(settings.ledger, Path):
        _tell_where(settings.ledger)
    return settings


def _with_catalogue(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings with the sections of the catalogue, and what is given both there and here."""
    if settings.catalogue is None:
        return settings, []
    sections = {name: getattr(settings.catalogue, name) for name in SECTIONS}
    given = {name: section for name, section in sections.items() if section}
    problems = [
        f"{name} stands in the catalogue too; give it in one place"
        for name in given
        if getattr(settings, name) is not None
    ]
    return replace(settings, **given), problems


@cache
def _tell_where(ledger: Path) -> None:
    """Once for a process and path: from another working directory the same default is another ledger."""
    logger.info("no ledger was named (ledger=, LAVA_LEDGER), so it is %s", ledger)


@cache
def _adapter() -> TypeAdapter[Settings]:
    return TypeAdapter(Settings)


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Setting → (the variable's name, its text). Empty means unset. Unknown LAVA_* variables are reported, once."""
    given: dict[str, tuple[str, Any]] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or not text.strip():
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in EXAMPLES and variable.isupper():
            given[name] = (variable, text.strip())
        else:  # it may belong to other software, so it is not an error
            say_once(
                variable, "%s is not a setting of lava_middleware and has no effect%s", variable, _meant(name, PREFIX)
            )
    return given


def _unknown(name: str) -> str:
    return f"{name[:80]!r} is not a setting{_meant(name.lower())}"


def _meant(name: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(name[:80], EXAMPLES, n=1, cutoff=0.7)
    if not close:
        return ""
    return f"; did you mean {prefix}{close[0].upper() if prefix else close[0]}?"


def _explained(error: ValidationError, given: Mapping[str, tuple[str, Any]]) -> list[str]:
    """One sentence for each setting that is wrong, in the name it was given under."""
    found: dict[str, str] = {}
    for one in error.errors(include_url=False, include_input=False):
        name = str(one["loc"][0])
        must, example = EXAMPLES[name]
        said = given[name][0]
        reason = one.get("ctx", {}).get("error")
        what = str(reason) if isinstance(reason, ValueError) else f"must be {must}"
        shown = f"{said}={example}" if said.startswith(PREFIX) else f"{said}={example!r}"
        found.setdefault(name, f"{said} {what}; for example {shown}")
    return list(found.values())
