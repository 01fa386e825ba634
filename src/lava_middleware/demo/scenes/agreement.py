"""This file knows how to compare the ledger with what the stand-in says it served, and with itself."""

from __future__ import annotations

import json
import time
from collections import Counter

from ...cli.table import Column
from ...core.money import Amount
from ...core.record import Record
from ...testing.served import Served
from ..commands import run
from ..stage import CUSTOMERS, Stage
from ..telling import Telling
from .aborted import TOLERANCE, near

EXPORT_S = 10.0


def play(stage: Stage, tell: Telling) -> None:
    stage.provider.wait_idle()
    served, records = stage.provider.requests, stage.records()
    tell.say("The stand-in kept a log of its own: what it was asked, and what it wrote to its sockets.")
    _side_by_side(tell, served, records)
    tell.prove(
        f"{len(served)} requests reached the stand-in, and the ledger has {len(records)} usage records for them",
        len(served) == len(records),
    )
    _complete(tell, [one for one in served if one.state == "complete"], records)
    _interrupted(tell, [one for one in served if one.state != "complete"], records)
    _money(stage, tell, records)
    tell.prove("each record was exported once or more as a line of usage.jsonl", _exported(stage, records))
    tell.say("Last, the whole journal is folded anew, entry by entry, and compared with what the ledger believes.")
    tell.prove("lava doctor finds no difference, and nothing is held", run(stage, tell, "doctor") == 0 and _free(stage))


def _side_by_side(tell: Telling, served: tuple[Served, ...], records: list[Record]) -> None:
    columns = [
        Column(""),
        *(Column(title, right=True) for title in ("calls", "tokens in", "tokens out")),
    ]
    reported = [record for record in records if record.basis == "reported"]
    counted = [record for record in records if record.basis != "reported"]
    whole = [one for one in served if one.state == "complete"]
    cut = [one for one in served if one.state != "complete"]
    rows = [
        ["complete answers, the stand-in's log", *_sums([(one.input_tokens, one.output_tokens) for one in whole])],
        ["complete answers, the ledger", *_sums([_tokens(record) for record in reported])],
        ["interrupted answers, the stand-in's log", *_sums([(one.input_tokens, one.output_tokens) for one in cut])],
        ["interrupted answers, the ledger", *_sums([_tokens(record) for record in counted])],
    ]
    tell.table(columns, rows)


def _sums(calls: list[tuple[int, int]]) -> list[str]:
    return [f"{len(calls):,}", f"{sum(one[0] for one in calls):,}", f"{sum(one[1] for one in calls):,}"]


def _tokens(record: Record) -> tuple[int, int]:
    return record.usage.input_tokens, record.usage.output_tokens


def _complete(tell: Telling, served: list[Served], records: list[Record]) -> None:
    theirs = Counter((one.model, one.input_tokens, one.output_tokens) for one in served)
    ours = Counter((record.model, *_tokens(record)) for record in records if record.basis == "reported")
    tell.prove(f"the {len(served)} complete answers agree to the token, call by call", ours == theirs)


def _interrupted(tell: Telling, served: list[Served], records: list[Record]) -> None:
    ours = sorted(_tokens(record)[1] for record in records if record.basis != "reported")
    theirs = sorted(one.output_tokens for one in served)
    tell.prove(
        f"the output of the {len(served)} interrupted answers, whose usage nobody reported, is within {TOLERANCE} %",
        len(ours) == len(theirs) and all(near(*pair) for pair in zip(ours, theirs, strict=True)),
    )


def _money(stage: Stage, tell: Telling, records: list[Record]) -> None:
    adds_up = True
    for customer in CUSTOMERS:
        balances = [entry.balance_after for entry in stage.lava.entries(customer)]
        granted = sum(amount.ticks for name, amount in stage.granted if name == customer)
        charged = sum(record.charge.ticks for record in records if record.customer == customer)
        adds_up &= Amount(granted - charged) == Amount(balances[0] if balances else 0)
    tell.prove("for every customer: what was granted, less what was charged, is the balance", adds_up)


def _exported(stage: Stage, records: list[Record]) -> bool:
    path, ids = stage.directory / "usage.jsonl", {record.id for record in records}
    deadline = time.monotonic() + EXPORT_S
    while time.monotonic() < deadline:
        lines = path.read_text().splitlines() if path.exists() else []
        if {json.loads(line)["id"] for line in lines} == ids:
            return True
        time.sleep(0.05)
    return False


def _free(stage: Stage) -> bool:
    return not any(stage.lava.balance(customer).held for customer in CUSTOMERS)
