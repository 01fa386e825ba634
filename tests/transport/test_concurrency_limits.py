"""The hard limit of tokens a month holds whoever calls, however many at once."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

from lava_middleware.core.events import Extended, Held, Settled, Voided, decode
from lava_middleware.ids import now_us
from lava_middleware.ledger.journal import Journal
from lava_middleware.testing import FakeProvider, Script
from tests.faults import players
from tests.faults.kit import CHAT, chat, client_of, lava_at, run_processes
from tests.ledger.replay import all_entries, check_journal

LIMIT = 100_000


def most_used_and_held(journal: Journal, customer: str) -> int:
    """The highest that used + held of the customer's only limit ever stood, added up entry by entry."""
    held: dict[str, int] = {}
    used = most = 0
    for entry in all_entries(journal):
        event = decode(entry.kind, entry.event)
        if entry.account != customer:
            continue
        if isinstance(event, Held | Extended):
            held[event.hold] = held.get(event.hold, 0) + sum(quantity for *_, quantity in event.counts)
        elif isinstance(event, Settled | Voided):
            held.pop(event.hold)
            used += sum(quantity for *_, quantity in getattr(event, "counts", ()))
        most = max(most, used + sum(held.values()))
    return most


def into_mid_month() -> tuple[int, datetime]:
    """(microseconds to add to the clock so that it is the middle of a month, when that month ends)."""
    middle = datetime(2031, 5, 15, 12, tzinfo=UTC)
    return int(middle.timestamp() * 1_000_000) - now_us(), datetime(2031, 6, 1, tzinfo=UTC)


def test_two_hundred_streams_of_four_processes_never_pass_the_monthly_limit(tmp_path: Path) -> None:
    """T1, T12: used + held is at most 100,000 after every entry; threads and tasks, holds and extensions alike."""
    ledger = tmp_path / "ledger.db"
    shift_us, resets_at = into_mid_month()
    script = Script(output_tokens=900, tokens_per_chunk=60)
    with (
        FakeProvider(script) as provider,
        lava_at(provider, ledger, clock=lambda: now_us() + shift_us) as lava,
    ):
        lava.grant("acme", "100")
        lava.limit("acme", LIMIT, "tokens")
        arguments = [(provider.url, str(ledger), "acme", 50, shift_us) for _ in range(4)]
        answers = [answer for each in run_processes(players.stream_all, arguments) for answer in each]
        assert len(answers) == 200
        statuses = {status for status, *_ in answers}
        assert statuses <= {200, 429}
        most = most_used_and_held(lava.journal, "acme")
        assert LIMIT * 9 // 10 < most <= LIMIT
        totals = check_journal(lava.journal)["acme"]
        assert totals.holds == {}
        (state,) = lava.balance("acme").limits
        assert (state.held, state.resets_at) == (0, resets_at)
        said = sum(record.usage.tokens for record in lava.records("acme"))
        assert state.used <= LIMIT
        # A cut stream's record has what was counted; of the limit it takes no more than was held for it.
        assert state.used <= said < state.used * 1.05
        assert sum(served.output_tokens for served in provider.requests) > LIMIT * 8 // 10, "the limit was used"
        assert not any(record.overrun.ticks for record in lava.records("acme"))


def test_a_call_beyond_the_limit_is_told_when_it_resets_and_is_not_repeated(tmp_path: Path) -> None:
    """T13: 429 with a truthful Retry-After; an SDK that obeyed it would sleep for weeks, so it is told not to try."""
    shift_us, resets_at = into_mid_month()
    with (
        FakeProvider() as provider,
        lava_at(provider, clock=lambda: now_us() + shift_us) as lava,
        client_of(provider) as client,
    ):
        lava.grant("acme", "100")
        lava.limit("acme", 200, "tokens")
        with lava.charge_to("acme"):
            assert client.post(CHAT, json=chat()).status_code == 200
            before = time.time()
            answer = client.post(CHAT, json=chat())
        assert provider.count == 1
        assert answer.status_code == 429
        assert answer.headers["x-should-retry"] == "false"
        promised = before + shift_us / 1_000_000 + int(answer.headers["retry-after"])
        assert abs(promised - resets_at.timestamp()) < 3
        said = json.loads(answer.content)["lava"]
        assert said["code"] == "limit_reached"
        assert datetime.fromisoformat(said["resets_at"]) == resets_at
        assert (said["limit"], said["quantity"]) == ("tokens/month", 200)
        assert said["used"] == lava.balance("acme").limits[0].used == next(lava.records("acme")).usage.tokens
