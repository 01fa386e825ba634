"""What an operator may set: keywords over LAVA_* variables over defaults, with errors that say what to write."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.errors import ConfigurationError, forget_what_was_said
from lava_middleware.settings import EXAMPLES, Settings, configure


def wrong(environ: dict[str, str] | None = None, ledger: str | None = None, **keywords: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        configure(ledger, keywords, environ or {})
    return str(error.value)


def test_the_defaults_are_the_strict_ones() -> None:
    settings = configure(None, {}, {})
    assert settings.ledger == Path("lava.db").absolute()
    assert (settings.mode, settings.on_unknown_customer, settings.unmetered) == ("enforce", "refuse", "refuse")
    assert (settings.on_ledger_outage, settings.durability, settings.markup) == ("closed", "power_loss", Decimal(1))
    assert (settings.hold_share, settings.hold_wait_s, settings.min_output_tokens) == (3, 2.0, 256)
    assert (settings.unlisted, settings.providers) == ("pass", None)
    assert not settings.disclose_amounts


def test_every_setting_has_an_example_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none is unknown to the table that documents them."""
    assert {one.name for one in fields(Settings)} == set(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    Path("prices.toml").write_text("")
    Path("meters.toml").write_text("")
    Path("providers.toml").write_text("")
    Path("lava.toml").write_text("version = 1\n")
    examples = {name: example.replace("/var/lib/app", str(tmp_path)) for name, (_, example) in EXAMPLES.items()}
    from_keywords = configure(None, examples, {})
    from_environment = configure(None, {}, {f"LAVA_{name.upper()}": text for name, text in examples.items()})
    assert from_keywords == from_environment
    assert from_keywords.hosts == {"127.0.0.1:8811": ("openai", "anthropic"), "gateway.local": ("openai",)}


def test_keywords_win_over_variables_and_none_means_not_given() -> None:
    environ = {"LAVA_MODE": "observe", "LAVA_MARKUP": "1.5", "LAVA_LEDGER": "sqlite:////srv/env.db"}
    settings = configure("sqlite:////srv/keyword.db", {"mode": "enforce", "markup": None}, environ)
    assert (settings.mode, settings.markup, settings.ledger) == ("enforce", Decimal("1.5"), Path("/srv/keyword.db"))


def test_an_empty_variable_is_unset() -> None:
    assert configure(None, {}, {"LAVA_MODE": "", "LAVA_HOSTS": "  "}) == configure(None, {}, {})


def test_a_relative_ledger_stays_the_same_file_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = configure("sqlite:///data/lava.db", {}, {})
    monkeypatch.chdir("/")
    assert settings.ledger == tmp_path / "data" / "lava.db"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_ledger_in_postgresql_keeps_its_url_to_itself(scheme: str) -> None:
    url = f"{scheme}://user:hunter2@db.internal:5433/billing?sslmode=require"
    settings = configure(url, {}, {})
    assert settings.ledger == url
    assert "hunter2" not in repr(settings)


def test_calls_without_a_ledger_need_a_file_beside_postgresql(tmp_path: Path) -> None:
    url = "postgresql://user:hunter2@db/billing"
    with pytest.raises(ConfigurationError, match="needs pending="):
        configure(url, {"on_ledger_outage": "open"}, {})
    settings = configure(url, {"on_ledger_outage": "open", "pending": str(tmp_path / "lava.pending")}, {})
    assert settings.pending == tmp_path / "lava.pending"


@pytest.mark.parametrize("url", ["memory://", "sqlite:///:memory:"])
def test_a_ledger_in_memory(url: str) -> None:
    assert configure(url, {}, {}).ledger is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://user:hunter2@db", "percent-encoded"),
        ("postgresql://user:hunter2/x@db/lava", "percent-encoded"),
        ("postgres+asyncpg://user:hunter2@db/lava", "must be a URL"),
        ("hunter2.db", "must be a URL"),
        ("mysql://user:hunter2@db", "must be a URL"),
        ("sqlite://hunter2.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///hunter2.db?mode=ro", "nothing after it"),
    ],
)
def test_a_ledger_that_cannot_be_one_is_named_without_repeating_it(url: str, said: str) -> None:
    """T32: a database URL has a password in it."""
    message = wrong({"LAVA_LEDGER": url})
    assert said in message
    assert "LAVA_LEDGER=sqlite:///lava.db" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "hunter2"),
        ("mode", 3),
        ("markup", 1.2),
        ("markup", "NaN"),
        ("markup", "Infinity"),
        ("markup", "-1"),
        ("markup", "0"),
        ("markup", "hunter2"),
        ("markup", "1.0000001"),
        ("markup", "1e400"),
        ("prices", "hunter2.toml"),
        ("providers", "hunter2.toml"),
        ("providers", 7),
        ("unlisted", "hunter2"),
        ("hosts", "https://hunter2=openai"),
        ("hosts", "user:hunter2@host=openai"),
        ("hosts", "host:99999=openai"),
        ("hosts", "host"),
        ("hosts", "host="),
        ("hosts", "host=hunter2!"),
        ("hosts", "a=openai;A.=openai"),
        ("hosts", 7),
        ("hosts", {"host": 7}),
        ("hold_share", 0),
        ("hold_share", "1/0"),
        ("hold_wait_s", -1),
        ("hold_wait_s", "nan"),
        ("hold_wait_s", float("inf")),
        ("min_output_tokens", 0),
        ("min_output_tokens", 1.5),
        ("stall_s", 0),
        ("disclose_amounts", "perhaps"),
        ("upgrade_url", "javascript:hunter2"),
        ("upgrade_url", "https://user:hunter2@host/"),
        ("upgrade_url", "https://host/ hunter2"),
        ("upgrade_url", "https://host/\r\nhunter2: x"),
        ("upgrade_url", 7),
        ("export_jsonl", "/no/such/hunter2/usage.jsonl"),
        ("export_jsonl", "/"),
        ("pending", ""),
    ],
)
def test_a_value_that_cannot_work_is_named_with_an_example_and_never_repeated(name: str, value: Any) -> None:
    """T32: secrets land in the wrong variable."""
    example = EXAMPLES[name][1]
    message = wrong(**{name: value})
    assert f"{name} " in message
    assert repr(example) in message
    assert "hunter2" not in message
    if isinstance(value, str) and value:
        assert f"LAVA_{name.upper()}={example}" in wrong({f"LAVA_{name.upper()}": value})


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = wrong({"LAVA_MODE": "x", "LAVA_CLAMP": "y"}, overrun="z", markpu="1.2")
    assert all(name in message for name in ("LAVA_MODE", "LAVA_CLAMP", "overrun", "did you mean markup?"))


def test_an_unknown_keyword_is_an_error_and_an_unknown_variable_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The variable may belong to other software."""
    forget_what_was_said()
    assert "'mdoe' is not a setting; did you mean mode?" in wrong(mdoe="observe")
    for _ in range(2):
        configure(None, {}, {"LAVA_MDOE": "hunter2", "LAVA_SECRET_KEY": "hunter2", "LAVALAMP": "on"})
    assert [record.getMessage() for record in caplog.records] == [
        "LAVA_MDOE is not a setting of lava_middleware and has no effect; did you mean LAVA_MODE?",
        "LAVA_SECRET_KEY is not a setting of lava_middleware and has no effect",
    ]


def test_the_default_ledgers_absolute_path_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From another working directory it is another ledger, and a balance that is missing has a reason."""
    caplog.set_level(logging.INFO, logger="lava_middleware")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        configure(None, {}, {})
    configure("sqlite:///named.db", {}, {})
    configure(None, {}, {"LAVA_LEDGER": "sqlite:///named.db"})
    configure("memory://", {}, {})
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"no ledger was named (ledger=, LAVA_LEDGER), so it is {tmp_path / 'lava.db'}"]


def test_hosts_may_be_given_as_a_mapping() -> None:
    settings = configure(None, {"hosts": {"Gateway.Local.": "openai", "[::1]:80": ["openai", "anthropic"]}}, {})
    assert settings.hosts == {"gateway.local": ("openai",), "[::1]:80": ("openai", "anthropic")}


def test_prices_may_be_given_as_a_mapping() -> None:
    prices = {"gpt-4o": {"input": "2.50", "output": "10.00"}}
    assert configure(None, {"prices": prices}, {}).prices == prices


def test_the_share_may_be_written_as_a_fraction() -> None:
    assert configure(None, {"hold_share": "1/4"}, {}).hold_share == 4


def test_settings_are_frozen_and_show_no_paths() -> None:
    settings = configure("sqlite:////home/somebody/lava.db", {}, {})
    with pytest.raises((FrozenInstanceError, AttributeError)):
        settings.mode = "observe"  # type: ignore[misc]
    assert "somebody" not in repr(settings)
