"""What is sold, on the command line: plans, limits, reports, corrections, quotes, runs, the catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lava_middleware import Lava as LavaItself
from tests.credits.test_catalogue import EXAMPLE

from .conftest import Lava


def told(lava: Lava, *arguments: str, **environment: str) -> dict[str, Any]:
    done = lava(*arguments, "--json", **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_plan_its_cycle_its_overage_and_its_end_are_shown(lava: Lava) -> None:
    balance = told(lava, "subscribe", "acme", "pro", "--credits", "20.00", "--rollover", "full", "--overage", "5")
    assert (balance["plan"], balance["available"], balance["unlimited"]) == ("pro", "25.00", False)
    lava("report", "acme", "r1", "--charge", "21.50")
    shown = lava("balance", "acme").stdout
    assert "Plan pro, cycle until" in shown
    assert "1.50" in shown
    assert "yours to invoice" in shown
    balance = told(lava, "cancel", "acme")
    assert (balance["plan"], balance["plan_then"]) == ("pro", None)
    assert "on no plan" in lava("balance", "acme").stdout
    assert "plan" not in told(lava, "cancel", "acme", "--now")
    assert lava("cancel", "nobody").returncode == 2


def test_a_suspension_is_put_on_and_lifted(lava: Lava) -> None:
    assert lava("suspend", "acme").returncode == 2, "there is no ledger yet"
    lava("grant", "acme", "1")
    assert told(lava, "suspend", "acme")["suspended"]
    assert "lava resume" in lava("balance", "acme").stdout
    assert "suspended" in lava("customers").stdout
    assert "suspended" not in told(lava, "resume", "acme")


def test_limits_of_every_kind(lava: Lava) -> None:
    lava("limit", "acme", "2.50", "credits/day", "--of", "model=gpt-4o", "--at", "80", "--at", "100", "--name", "dear")
    lava("limit", "acme", "5", "open_calls")
    lava("limit", "acme", "60", "requests/minute", "--per", "user", "--warn")
    balance = told(lava, "limit", "acme", "1,000", "tokens/week", "--anchor", "2026-01-05", "--strict")
    assert [one["name"] for one in balance["limits"]] == ["dear", "open_calls/lifetime", "tokens/week"]
    assert "2.50" in lava("balance", "acme").stdout
    for wrong in (["x", "tokens/day"], ["5", "tokens/fortnight"], ["5", "tokens"], ["0.5", "requests/day"]):
        done = lava("limit", "acme", *wrong)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), wrong
    assert lava("limit", "acme", "5", "requests/day", "--of", "model").returncode == 2


def test_a_report_and_its_correction(lava: Lava) -> None:
    lava("grant", "acme", "1")
    record = told(lava, "report", "acme", "doc-77", "--charge", "0.12", "--when", "2026-01-05")
    assert (record["id"], record["charge"]) == ("doc-77", "0.1200000000")
    assert told(lava, "report", "acme", "doc-77", "--charge", "0.12", "--when", "2026-01-05")["seq"] == record["seq"]
    assert lava("report", "acme", "doc-77", "--charge", "0.13").returncode == 2
    used = told(lava, "report", "acme", "r2", "--model", "gpt-4o", "--provider", "openai", "--usage", "input=1000")
    assert used["charge"] == "0.0025000000"
    shown = lava("adjust", "acme", "doc-77", "-0.02", "--key", "refund-1", "--reason", "a blank page").stdout
    assert "-0.02" in shown
    assert "a blank page" in lava("statement", "acme").stdout
    assert told(lava, "balance", "acme")["available"] == "0.8975"
    assert lava("adjust", "acme", "doc-77", "-9", "--key", "refund-2").returncode == 2


def test_a_quote_says_whether_it_is_affordable(lava: Lava) -> None:
    lava("grant", "acme", "0.01")
    quote = told(lava, "quote", "acme", "gpt-4o", "1000", "100")
    assert (quote["bound"], quote["affordable"], quote["steps_fit"]) == ("0.0035", True, 3)
    done = lava("quote", "acme", "gpt-4o", "1000", "5000")
    assert done.returncode == 1
    assert "request_exceeds_credit" in done.stdout


def test_open_runs_are_listed(lava: Lava, path: Path) -> None:
    lava("grant", "acme", "1")
    assert "No open runs" in lava("runs", "acme").stdout
    with LavaItself(f"sqlite:///{path}") as itself, itself.run("agent", customer="acme", credits="0.5", max_calls=9):
        itself.report("acme", charge="0.1", request_id="r")
        (line,) = lava("runs", "acme", "--json").stdout.splitlines()
        run = json.loads(line)
        assert (run["budget"], run["calls_most"], run["parent"]) == ("0.50", 9, None)
        assert "agent-" in lava("runs", "acme").stdout


def test_customers_are_listed_page_by_page(lava: Lava) -> None:
    for name in ("a", "b", "c"):
        lava("grant", name, "1")
    lava("report", "b", "r", "--charge", "3")
    shown = lava("customers", "--limit", "2").stdout
    assert [line.split()[0] for line in shown.splitlines()[1:3]] == ["a", "b"]
    assert "2.00" in shown
    assert "--after" in shown
    after = lava("customers", "--after", "a", "--json").stdout.splitlines()
    assert [json.loads(line)["customer"] for line in after] == ["b", "c"]


# The catalogue --------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "lava.toml"
    made.write_text(EXAMPLE)
    return made


def test_check_says_what_it_means(lava: Lava, file: Path) -> None:
    done = lava("check", str(file))
    assert done.returncode == 0, done.stderr
    for words in (
        "Version 3: 2 plans, free by default",
        "up to 5.00",
        "cost × 1.20",
        "2,000,000 tokens",
        "each user",
        "0.01 each of pages",
    ):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    document = json.loads(lava("check", str(file), "--json").stdout)
    assert (document["version"], document["plans"]["pro"]["credits"]) == (3, "20.00")
    file.write_text(EXAMPLE.replace("cost_times", "cost_tims"))
    done = lava("check", str(file))
    assert done.returncode == 2
    assert done.stderr == f"lava check: {file}: meters.chat.cost_tims: Extra inputs are not permitted\n"
    file.write_text("version = ")
    assert "not TOML" in lava("check", str(file)).stderr


def test_apply_puts_it_in_force_and_says_for_whom(lava: Lava, file: Path) -> None:
    assert lava("apply", str(file)).returncode == 2, "there is no ledger"
    assert lava("subscribe", "acme", "pro", LAVA_CATALOGUE=str(file)).returncode == 0
    file.write_text(EXAMPLE.replace('"20.00"', '"30.00"').replace("version = 3", "version = 4"))
    dry = json.loads(lava("apply", str(file), "--dry-run", "--json").stdout)
    assert (dry["dry_run"], dry["changed"]) == (True, 1)
    done = lava("apply", str(file))
    assert "Version 4 is in force" in done.stdout
    assert json.loads(lava("apply", str(file), "--json").stdout)["unchanged"] == 1
    file.write_text(EXAMPLE)
    done = lava("apply", str(file))
    assert done.returncode == 2
    assert "version 4 of the catalogue has been applied" in done.stderr
