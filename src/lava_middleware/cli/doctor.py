"""This file knows the command `doctor`: whether the ledger adds up, and what an operator should look at."""

from __future__ import annotations

import argparse
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..core.money import Amount
from ..ledger.audit import Audit, OpenHold, audit
from ..ledger.pending import Pending
from ..settings import Settings
from .common import reading, say, say_json, settings_of
from .progress import Progress
from .table import Column, amounts, duration, iso, moment, table

HOLDS_LISTED = 10
PASSED_DAYS = 30
WAL_RESET_FIXED = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""From these on checkpoints that race cannot corrupt: https://sqlite.org/wal.html#walresetbug"""


def doctor(arguments: argparse.Namespace) -> int:
    """0 if the ledger adds up, 1 if it does not."""
    settings = settings_of(arguments.ledger)
    with reading(arguments.ledger) as journal, Progress("folding entries") as progress:
        now = time.time_ns() // 1_000
        found = audit(journal, now, progress)
    if arguments.json:
        say_json(_document(found, settings))
    else:
        say("\n".join(_report(found, settings, now)))
    return 1 if found.difference_count or _lost(found) else 0


def _lost(found: Audit) -> list[OpenHold]:
    """Holds that nobody will ever end: a difference too, between what is held and what is going on."""
    return [hold for hold in found.holds if hold.state == "gone"]


# For people ----------------------------------------------------------------------------------------------------------


def _report(found: Audit, settings: Settings, now: int) -> Iterator[str]:
    folded = (
        f"{_number(found.entries, 'entry', 'entries')} of {_number(found.accounts, 'customer', 'customers')} folded"
    )
    yield f"{folded}; {_number(found.snapshots, 'snapshot', 'snapshots')} compared."
    yield from _differences(found)
    yield ""
    yield from _money(found)
    yield from _holds(found, now)
    yield from _followers(found)
    yield from _passed(found, now)
    yield from _environment(settings)


def _differences(found: Audit) -> Iterator[str]:
    if not found.difference_count:
        yield "Every balance and every snapshot is what the entries add up to."
        return
    yield f"DIFFERENCES: {found.difference_count:,}"
    columns = [Column("customer", gives=True), Column("entry", right=True), Column("what", gives=True)]
    yield table(columns, [[one.customer, str(one.version), one.what] for one in found.differences[:20]])
    if found.difference_count > 20:
        yield f"... and {found.difference_count - 20:,} more"


def _money(found: Audit) -> Iterator[str]:
    names = ["granted", "charged", "cost", "debt now", "overrun", "absorbed", "forgiven"]
    figures = amounts([getattr(found, name.split()[0]) for name in names])
    notes = [
        "",
        f"{sum(found.records.values()):,} usage records: {_listed(found.records)}" if found.records else "",
        "what the providers take for it",
        "",
        _listed(found.overruns),
        "overrun that the operator bore",
        "in mode observe, owed by nobody",
    ]
    rows = [row for row in zip(names, figures, notes, strict=True) if row[0] in names[:3] or _is_some(row[1])]
    yield table([Column("credits"), Column("", right=True), Column("", gives=True)], rows)
    if found.bases:
        yield f"Figures: {_listed(found.bases)}."
    if found.unknown_outcomes:
        yield f"Charged without an answer, by policy: {_listed(found.unknown_outcomes)}."


def _is_some(figure: str) -> bool:
    return bool(figure.strip("-0."))


def _holds(found: Audit, now: int) -> Iterator[str]:
    yield ""
    if not found.holds:
        yield "No open holds."
        return
    states = Counter(hold.state for hold in found.holds)
    yield f"Open holds: {len(found.holds):,}, by what is known of their process: {_listed(states)}."
    columns = [
        Column("since (UTC)"),
        Column("age", right=True),
        Column("customer", gives=True),
        Column("credits", right=True),
        Column("process"),
    ]
    # Those of the dead first: they are what one looks for.
    shown = sorted(found.holds, key=lambda hold: (hold.state == "alive", hold.at))[:HOLDS_LISTED]
    figures = amounts([hold.amount for hold in shown])
    yield table(
        columns,
        [
            [moment(hold.at), duration((now - hold.at) / 1e6), hold.customer, figure, hold.state]
            for hold, figure in zip(shown, figures, strict=True)
        ],
    )
    if states["dead"]:
        yield "Holds of dead processes are settled by the next process that serves calls on this ledger."
    if states["gone"]:
        yield "HOLDS THAT NOBODY WILL END: their process is not known to this ledger."


def _followers(found: Audit) -> Iterator[str]:
    yield ""
    if found.followers:
        columns = [Column("exporter"), Column("entries to go", right=True), Column("oldest", right=True)]
        yield table(
            columns,
            [
                [one.name, f"{one.pending:,}", duration(one.oldest_age_s) if one.pending else ""]
                for one in found.followers
            ],
        )
    else:
        yield "No exporter has read this ledger yet."
    if found.dead_letters:
        yield f"Dead letters (records that a target refused for good), newest first: {len(found.dead_letters):,}"
        columns = [Column("exporter"), Column("seq", right=True), Column("reason", gives=True)]
        yield table(columns, [[name, str(seq), reason] for name, seq, reason in found.dead_letters[:10]])


def _passed(found: Audit, now: int) -> Iterator[str]:
    since = (datetime.fromtimestamp(now / 1e6, UTC) - timedelta(days=PASSED_DAYS)).date().isoformat()
    counts: Counter[tuple[str, str]] = Counter()
    for day, reason, host, count in found.passed:
        if day >= since:
            counts[reason, host] += count
    yield ""
    if not counts:
        yield f"Nothing passed unmetered, and nothing would have been refused, in {PASSED_DAYS} days."
        return
    yield f"Passed unmetered, or would have been refused, in {PASSED_DAYS} days:"
    columns = [Column("reason", gives=True), Column("host", gives=True), Column("requests", right=True)]
    yield table(columns, [[reason, host, f"{count:,}"] for (reason, host), count in counts.most_common(20)])


def _environment(settings: Settings) -> Iterator[str]:
    yield ""
    if (path := _pending(settings)) is not None:
        yield f"Waiting to be posted when the ledger is back: {path}"
    yield f"SQLite {sqlite3.sqlite_version}; mode {settings.mode}; durability {settings.durability}."
    if _races_can_corrupt():
        yield "This SQLite can corrupt when checkpoints race; here one process alone makes them, which prevents it."


def _races_can_corrupt() -> bool:
    version = sqlite3.sqlite_version_info
    return not any(version >= fixed and (version[:2] == fixed[:2] or fixed[:2] == (3, 51)) for fixed in WAL_RESET_FIXED)


def _pending(settings: Settings) -> Path | None:
    """The file of what could not be posted, if anything is in it."""
    beside = Path(f"{settings.ledger}.pending") if isinstance(settings.ledger, Path) else None
    path = settings.pending or beside
    return path if path is not None and Pending(path) else None


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


# For programs --------------------------------------------------------------------------------------------------------


def _document(found: Audit, settings: Settings) -> dict[str, Any]:
    pending = _pending(settings)
    return {
        "ok": not found.difference_count and not _lost(found),
        "entries": found.entries,
        "customers": found.accounts,
        "snapshots_compared": found.snapshots,
        "difference_count": found.difference_count,
        "differences": [
            {"customer": one.customer, "version": one.version, "what": one.what} for one in found.differences
        ],
        **{
            name: str(Amount(getattr(found, name)))
            for name in ("granted", "charged", "cost", "debt", "overrun", "absorbed", "forgiven")
        },
        "records": dict(found.records),
        "bases": dict(found.bases),
        "overruns": dict(found.overruns),
        "unknown_outcomes": dict(found.unknown_outcomes),
        "holds": [
            {
                "customer": hold.customer,
                "id": hold.id,
                "amount": str(Amount(hold.amount)),
                "at": iso(hold.at),
                "owner": hold.owner,
                "state": hold.state,
            }
            for hold in found.holds
        ],
        "followers": [
            {"name": one.name, "pending": one.pending, "oldest_age_s": one.oldest_age_s} for one in found.followers
        ],
        "dead_letters": [{"follower": name, "seq": seq, "reason": reason} for name, seq, reason in found.dead_letters],
        "passed": [
            {"day": day, "reason": reason, "host": host, "count": count} for day, reason, host, count in found.passed
        ],
        "pending_file": str(pending) if pending else None,
        "sqlite": sqlite3.sqlite_version,
        "durability": settings.durability,
        "mode": settings.mode,
    }
