"""The command line tells people in tables and programs in JSON, and every error in one line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lava_middleware.cli.main import main
from lava_middleware.cli.progress import Progress
from lava_middleware.cli.table import Column, amounts, duration, printable, table
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.sqlite import SqliteJournal

from .conftest import Done, Lava, live_a_little


def lines(done: Done) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_one_line(done: Done, *words: str) -> None:
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("lava")
    for word in words:
        assert word in done.stderr


# What an operator does -----------------------------------------------------------------------------------------------


def test_a_grant_makes_the_ledger_and_is_made_once_for_a_key(lava: Lava, path: Path) -> None:
    for _ in range(2):
        (balance,) = lines(lava("grant", "acme", "5.00", "--key", "invoice-81", "--json"))
        assert balance == {
            "customer": "acme",
            "available": "5.00",
            "balance": "5.00",
            "held": "0.00",
            "debt": "0.00",
            "limits": [],
        }
    assert_one_line(lava("grant", "acme", "6.00", "--key", "invoice-81"), "key", "other content")
    assert path.exists()


def test_a_grant_may_expire_and_has_a_category(lava: Lava) -> None:
    lines(lava("grant", "acme", "1", "--category", "promo", "--expires", "2099-01-31", "--json"))
    (entry,) = lines(lava("statement", "acme", "--json"))
    assert entry["event"]["category"] == "promo"
    assert entry["event"]["expires"] == 4_073_500_800_000_000
    shown = lava("statement", "acme").stdout
    assert "promo, until 2099-01-31 00:00" in shown


def test_a_limit_is_set_changed_and_taken_away(lava: Lava) -> None:
    (balance,) = lines(lava("limit", "acme", "100,000", "tokens/month", "--zone", "Europe/Berlin", "--json"))
    assert [(one["name"], one["quantity"], one["used"]) for one in balance["limits"]] == [("tokens/month", 100_000, 0)]
    (balance,) = lines(lava("limit", "acme", "50", "requests/month", "--name", "calls", "--json"))
    assert [one["name"] for one in balance["limits"]] == ["tokens/month", "calls"]
    assert "100,000" in lava("balance", "acme").stdout
    (balance,) = lines(lava("limit", "acme", "--remove", "--json"))
    assert [one["name"] for one in balance["limits"]] == ["calls"]
    assert_one_line(lava("limit", "acme", "--remove"), "no such limit", "calls")


def test_the_ledger_is_named_by_option_before_environment(lava: Lava, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    lines(lava("grant", "acme", "1", "--ledger", other, "--json"))
    assert_one_line(lava("balance", "acme"), "no ledger")
    (balance,) = lines(lava("balance", "acme", "--ledger", other, "--json"))
    assert balance["available"] == "1.00"


# What an operator asks -----------------------------------------------------------------------------------------------


def test_the_balance_shows_what_is_held_and_how_far_limits_are_used(lava: Lava, lived: Path) -> None:
    (balance,) = lines(lava("balance", "acme", "--json"))
    assert balance["balance"] == "4.96"
    # The process that made the open hold is gone: whoever looks, recovery may have settled it already.
    assert balance["held"] in ("1.00", "0.00")
    (limit,) = balance["limits"]
    assert limit["used"] == 2_100


def test_the_statement_shows_each_entry_with_the_balance_after_it(lava: Lava, lived: Path) -> None:
    entries = lines(lava("statement", "acme", "--json"))
    assert [entry["version"] for entry in entries] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [entry["change"] for entry in entries] == ["5.00", *["0.00"] * 2, "-0.02", *["0.00"] * 2, "-0.02", "0.00"]
    assert entries[-1]["balance_after"] == "4.96"
    shown = lava("statement", "acme").stdout
    assert "gpt-4o, 1,000 in 50 out" in shown
    assert "counted" in shown
    assert "insufficient" in shown
    assert "\x1b" not in shown, "what came from outside does not reach the terminal as it is"
    assert max(map(len, shown.splitlines())) <= 100


def test_the_statement_is_paged_and_pages_add_up(lava: Lava, lived: Path) -> None:
    last = lines(lava("statement", "acme", "--json", "--limit", "3"))
    before = lines(lava("statement", "acme", "--json", "--limit", "10", "--before", str(last[0]["version"])))
    assert [entry["version"] for entry in before + last] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert before + last == lines(lava("statement", "acme", "--json"))
    assert "--before 6" in lava("statement", "acme", "--limit", "3").stdout
    assert_one_line(lava("statement", "nobody"), "no entries")


def test_records_are_shown_newest_first_of_one_customer_or_of_all(lava: Lava, lived: Path) -> None:
    journal = SqliteJournal(lived)
    ledger = Ledger(journal)
    live_a_little(ledger, "beta")
    ledger.close()
    journal.close()
    everybody = [(one["customer"], one["id"]) for one in lines(lava("records", "--json"))]
    assert [one for one in everybody if one[1] != "h3"] == [
        ("beta", "r1"),
        ("beta", "h1"),
        ("acme", "r1"),
        ("acme", "h1"),
    ]
    (record,) = lines(lava("records", "acme", "--json", "--limit", "1"))
    assert record["charge"] == "0.0200000000"
    assert record["cost"] == "0.0100000000"
    shown = lava("records", "acme").stdout
    assert "reported counted" in shown
    assert "acme" in lava("records").stdout
    assert max(map(len, shown.splitlines())) <= 100


def test_prices_say_what_a_model_costs_and_by_which_list(lava: Lava, tmp_path: Path) -> None:
    found = lines(lava("prices", "openai/gpt-4o", "--json"))
    assert (found[0]["provider"], found[0]["model"]) == ("openai", "gpt-4o")
    assert float(found[0]["per_million"]["input"]) > 0
    assert found[0]["as_of"]
    own = tmp_path / "prices.toml"
    own.write_text('["gpt-4o"]\ninput = "7.25"\noutput = "9.00"\n')
    shown = lava("prices", "gpt-4o", LAVA_PRICES=str(own), LAVA_MARKUP="1.20").stdout
    assert "7.25" in shown
    assert "operator" in shown
    assert "1.20 times the cost" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert_one_line(lava("prices", "no-such-model-anywhere"), "no price is known")


def test_commands_that_only_read_never_make_a_ledger(lava: Lava, path: Path) -> None:
    for command in (["balance", "acme"], ["statement", "acme"], ["records"], ["doctor"], ["limit", "acme", "--remove"]):
        assert_one_line(lava(*command), "there is no ledger", "--ledger")
        assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "command"),
        (["bogus"], "bogus"),
        (["grant", "acme"], "CREDITS"),
        (["grant", "acme", "0.1x"], "decimal"),
        (["grant", "acme", "nan"], "finite"),
        (["grant", "acme", "0"], "more than 0"),
        (["grant", "acme", "1", "--category", "gift"], "category"),
        (["grant", "acme", "1", "--expires", "tomorrow"], "2027-01-31"),
        (["grant", "a\x07b", "1"], "control characters"),
        (["grant", "x" * 10_000, "1"], "characters"),
        (["limit", "acme"], "quantity"),
        (["limit", "acme", "many"], "whole number"),
        (["limit", "acme", "5", "tokens"], "tokens/month"),
        (["limit", "acme", "5", "tokens/fortnight"], "window"),
        (["limit", "acme", "5", "--zone", "Mars/Olympus"], "Europe/Berlin"),
        (["balance", "acme", "--ledger", "mysql://x"], "sqlite:///"),
        (["balance", "acme", "--ledger", "sqlite:///:memory:"], "memory"),
        (["statement", "acme", "--limit", "0"], "at least 1"),
    ],
)
def test_every_error_is_one_line_that_says_what_to_do(lava: Lava, arguments: list[str], word: str) -> None:
    assert_one_line(lava(*arguments), word)


def test_a_wrong_setting_is_one_line_too(lava: Lava, lived: Path) -> None:
    assert_one_line(lava("balance", "acme", LAVA_MODE="strict"), "LAVA_MODE", "observe")


def test_a_file_that_is_no_ledger_is_left_alone(lava: Lava, path: Path) -> None:
    path.write_bytes(b"this is not a database, it is a letter " * 50)
    for command in (["balance", "acme"], ["doctor"], ["grant", "acme", "1"]):
        assert_one_line(lava(*command), "not an SQLite database")
    assert path.read_bytes().startswith(b"this is not")


def test_the_command_is_also_a_module_and_a_process(lava_process: Lava, lived: Path) -> None:
    assert lines(lava_process("statement", "acme", "--json", "--limit", "1"))[0]["version"] >= 8
    assert_one_line(lava_process("grant", "acme", "x"), "decimal")


def test_a_reader_that_has_seen_enough_is_no_error(lava: Lava, lived: Path) -> None:
    command = f"{sys.executable} -m lava_middleware statement acme --json | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LAVA_LEDGER": f"sqlite:///{lived}"},
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_help_and_version_need_no_ledger(lava: Lava, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["--version"], ["grant", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    assert "lava-middleware" in capsys.readouterr().out


def test_the_demo_has_options_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "--directory" in capsys.readouterr().out
    (tmp_path / "somebody's").touch()
    assert main(["demo", "--directory", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


# Tables and progress -------------------------------------------------------------------------------------------------


def test_a_table_fits_and_cuts_only_what_gives() -> None:
    columns = [Column("name", gives=True), Column("credits", right=True)]
    shown = table(columns, [["x" * 200, "1.00"], ["y", "12.00"]])
    assert max(map(len, shown.splitlines())) == 100
    assert "…" in shown
    assert shown.splitlines()[2].endswith("12.00")


def test_amounts_of_a_column_are_exact_and_aligned() -> None:
    assert amounts([10**10, 125, None, -5 * 10**9]) == ["1.0000000000", "0.0000000125", "", "-0.5000000000"]


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\x00\u202e") == "a�[2Jb��"


def test_durations_are_about_right() -> None:
    assert [duration(seconds) for seconds in (0, 90, 600, 10_000, 400_000)] == [
        "0 s",
        "90 s",
        "10 min",
        "3 h",
        "5 days",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_and_nowhere_else() -> None:
    for stream, expected in ((Terminal(), "50 of 200 (25 %)"), (io.StringIO(), "")):
        with Progress("folding entries", stream) as progress:
            progress(50, 200)
        assert expected in stream.getvalue()
        if not expected:
            assert stream.getvalue() == ""
        else:
            assert stream.getvalue().endswith("\r"), "the line is gone at the end"
