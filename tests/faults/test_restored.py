"""A ledger that is put back to an older state under a process: what it had ended since is ended again (T42)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from lava_middleware.core.commands import SetTerms, Settle
from lava_middleware.core.events import Reported, Settled, decode
from lava_middleware.core.record import Facts, Record
from lava_middleware.core.terms import Limit, Terms
from lava_middleware.core.tiers import Tiers
from lava_middleware.export.follower import Follower
from lava_middleware.ledger.presence import Presence
from lava_middleware.ledger.sqlite import SqliteJournal

from ..export.conftest import Host, eventually, post
from ..ledger.ledger_kit import ask_for, grant, opened, settle
from ..ledger.replay import check_journal


class Copies:
    """A ledger, and an older state of it."""

    def __init__(self, directory: Path) -> None:
        self.path, self._copy = directory / "ledger.db", directory / "copy.db"
        self.journal = SqliteJournal(self.path)

    def take(self) -> None:
        self._backup(self.path, self._copy)

    def put_back(self) -> None:
        self._backup(self._copy, self.path)

    def _backup(self, source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
            one.backup(other)


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Copies]:
    made = Copies(tmp_path)
    yield made
    made.journal.close()


def test_a_hold_whose_ending_was_lost_is_ended_while_its_process_lives(copies: Copies) -> None:
    """T9: nobody else would, for its owner is alive. What is under way is left to its call."""
    with opened(copies.journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "ended")).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "under way")).wait(10)
        copies.take()
        ledger.apply("acme", settle("ended", 30)).wait(10)
        copies.put_back()
        ledger.apply("acme", grant(1)).wait(10)
        ledger.recover()
        assert list(ledger.look("acme").holds) == ["under way"]
        _was_ended_again(copies.journal, "ended")
        assert ledger.apply("acme", settle("under way", 30)).wait(10).events
        ledger._presence.advance()
        assert ledger._presence.to_search is None
    check_journal(copies.journal)


def test_it_is_noticed_too_where_the_account_is_left_alone(copies: Copies) -> None:
    """By the next word of the process about itself: the row does not say what it said last."""
    with opened(copies.journal) as ledger:
        for name in ("acme", "other"):
            ledger.apply(name, grant(1000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "ended")).wait(10)
        copies.take()
        ledger.apply("acme", settle("ended", 30)).wait(10)
        ledger._presence.advance()
        copies.put_back()
        for _ in range(5):
            ledger.apply("other", grant(1)).wait(10)
        ledger._presence.advance()
        ledger.recover()
        assert ledger.look("acme").holds == {}
        _was_ended_again(copies.journal, "ended")
    check_journal(copies.journal)


def test_what_was_held_in_a_lost_future_is_billed_as_it_was_used(copies: Copies) -> None:
    """T42: its settlement is posted as a report, with the tiers, quantities and scopes that it came with."""
    pages = Tiers("pages", ((0, 3_000_000), (60, 1_000_000)))
    per_user = Limit("characters", "characters", 100, per="user")
    for_red = Limit("red", "tokens", 100, of=(("team", "red"),))
    with opened(copies.journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("acme", SetTerms(Terms(1, (per_user, for_red)))).wait(10)
        copies.take()
        ledger.apply("acme", ask_for(ledger, 100, "scan")).wait(10)
        copies.put_back()
        said = Settle("scan", 5, 7, 4, tiers=pages, metered=100, units=(("characters", 70),))
        facts = Facts("scan", user="u1", tags=(("team", "red"), ("user", "other")))
        event = ledger.apply("acme", said, record=facts.to_json()).wait(10).event
        assert isinstance(event, Reported)
        assert event.charge == 5 + 60 * 3 + 40
        assert {name: (window.partition("|")[2], used) for name, window, used in event.counts} == {
            "characters": ("u1", 70),
            "red": ("", 11),
        }
    check_journal(copies.journal)


def _was_ended_again(journal: SqliteJournal, hold: str) -> None:
    (entry,) = journal.find("acme", [f"end:{hold}"])
    ending = decode(entry.kind, entry.event)
    assert isinstance(ending, Settled)
    assert ending.lost_owner, "what it was settled with is gone: its outcome is unknown now"


def test_the_row_of_an_owner_is_not_moved_past_a_hold_that_is_open_again(copies: Copies) -> None:
    """If the process dies before it has looked, recovery finds the hold all the same."""
    with opened(copies.journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "ended")).wait(10)
        copies.take()
        low = _low_of(ledger._presence, copies.journal)
        ledger.apply("acme", settle("ended", 30)).wait(10)
        ledger._presence.advance()
        assert _low_of(ledger._presence, copies.journal) > low
        copies.put_back()
        ledger._presence.known_seq += 100  # it goes on
        ledger._presence.advance()
        assert _low_of(ledger._presence, copies.journal) == low
        assert ledger._presence.to_search == ledger.owner


def test_nor_past_one_that_was_opened_before_it_was_noticed(copies: Copies) -> None:
    """Its number in the older ledger is lower than all that this process has seen."""
    with opened(copies.journal) as ledger:
        for name in ("acme", "other"):
            ledger.apply(name, grant(1000)).wait(10)
        copies.take()
        for _ in range(9):
            ledger.apply("acme", grant(1)).wait(10)
        copies.put_back()
        ledger.apply("other", ask_for(ledger, 100, "young")).wait(10)
        ledger.apply("acme", grant(1)).wait(10)
        for _ in range(9):
            ledger.apply("acme", grant(1)).wait(10)
        ledger.recover()
        ledger._presence.advance()
        (held,) = copies.journal.find("other", ["hold:young"])
        assert _low_of(ledger._presence, copies.journal) <= held.seq
        assert list(ledger.look("other").holds) == ["young"]
    check_journal(copies.journal)


def test_an_entry_of_this_process_that_is_gone_is_noticed_by_its_next_word(copies: Copies) -> None:
    """Although it said nothing between copy and loss, so that its row is as it was."""
    with opened(copies.journal) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("acme", ask_for(ledger, 100, "ended")).wait(10)
        copies.take()
        ledger.apply("acme", settle("ended", 30)).wait(10)
        copies.put_back()
        ledger._presence.advance()
        assert ledger._presence.to_search == ledger.owner
        ledger.recover()
        assert ledger.look("acme").holds == {}
        ledger.recover()  # the account in memory told the same once more
        ledger._presence.advance()
        assert ledger._presence.to_search is None


def _low_of(presence: Presence, journal: SqliteJournal) -> int:
    return next(mark.low_seq for mark in journal.owners() if mark.owner == presence.owner)


def test_a_follower_does_not_pass_over_what_took_the_numbers_of_lost_entries(copies: Copies) -> None:
    """G3: the ledger is put back while a delivery is on its way."""
    delivered: list[str] = []

    def deliver(records: Sequence[Record]) -> None:
        if not delivered:
            copies.put_back()
            post(copies.journal, "new-1", "new-2", "new-3")
        delivered.extend(record.id for record in records)

    post(copies.journal, "kept")
    copies.take()
    post(copies.journal, "lost-1", "lost-2")
    follower = Follower("target", deliver)
    follower.start(Host(copies.journal))
    try:
        follower.wake()
        eventually(lambda: copies.journal.cursor("target") == copies.journal.last_seq())
    finally:
        follower.close()
    assert set(delivered) == {"kept", "lost-1", "lost-2", "new-1", "new-2", "new-3"}
