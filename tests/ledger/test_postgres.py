"""What is PostgreSQL's alone: transactions that commit out of order, hosts that die, releases side by side, batches."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from lava_middleware.core.commands import SetTerms
from lava_middleware.core.events import Held
from lava_middleware.core.terms import Terms
from lava_middleware.ledger.journal import Appended, Busy, Entry, JournalUnavailable, Outcome
from lava_middleware.ledger.ledger import Ledger
from lava_middleware.ledger.postgres import schema
from lava_middleware.ledger.postgres.journal import PostgresJournal, exists
from lava_middleware.ledger.postgres.psycopg import Clash, Link
from tests import postgres
from tests.postgres_between import Pooler

from .ledger_kit import Spied, ask_for, eventually, grant, opened, settle
from .replay import all_entries, check_journal
from .test_journal_contract import entry


@pytest.fixture
def url() -> Iterator[str]:
    made = postgres.fresh_url()
    yield made
    postgres.drop(made)


@pytest.fixture
def journal(url: str) -> Iterator[PostgresJournal]:
    with closing(PostgresJournal(url, timeout_s=10)) as opened_journal:
        yield opened_journal


@contextmanager
def raw(url: str, *, autocommit: bool = True) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    """(a connection that knows nothing of ledgers, the quoted name of the schema)"""
    where, _, name = url.rpartition("?schema=")
    with psycopg.connect(where, autocommit=autocommit) as connection:
        yield connection, f'"{name}"'


# -- followers


def test_an_entry_whose_transaction_commits_late_is_not_missed(journal: PostgresJournal, url: str) -> None:
    """T46: it has a smaller seq than what was committed before it; a cursor that goes by seq has passed it by then."""
    with raw(url, autocommit=False) as (late, name):
        late.execute(
            f"INSERT INTO {name}.journal (account, version, kind, balance_after, event, at, era) "
            "VALUES ('late', 1, 'held.1', 0, '{}', 10, 1)"
        )
        journal.append([entry(1, account="early")], (0, 0))
        assert journal.read(0) == [], "something before it may still come"
        late.commit()
    seen = journal.read(0)
    assert [(one.account, one.seq) for one in seen] == [("late", 1), ("early", 2)]


def test_a_cursor_stands_where_its_entry_does_although_seqs_are_out_of_order(
    journal: PostgresJournal, url: str
) -> None:
    """T46: a transaction that had its seq first and its number last comes last, and is read after the other."""
    with raw(url, autocommit=False) as (late, name):
        with raw(url) as (numbers, _):
            numbers.execute(f"SELECT nextval('{name}.journal_seq')")
        journal.append([entry(1, account="early")], (0, 0))
        late.execute(
            f"INSERT INTO {name}.journal (account, version, kind, balance_after, event, at, era, seq) "
            "VALUES ('late', 1, 'held.1', 0, '{}', 10, 1, 1)"
        )
        (early,) = journal.read(0)
        assert (early.account, early.seq) == ("early", 2)
        journal.save_cursor("f", early.seq)
        late.commit()
    with closing(PostgresJournal(url)) as afresh:
        (late_entry,) = afresh.read(afresh.cursor("f"))
        assert (late_entry.account, late_entry.seq) == ("late", 1)
        afresh.save_cursor("f", late_entry.seq)
        assert afresh.read(afresh.cursor("f")) == []


def test_a_ledger_restored_into_another_cluster_is_followed_to_its_end(journal: PostgresJournal, url: str) -> None:
    """Transactions are numbered anew there, far below those that the entries name; so entries name the cluster too."""
    for version in (1, 2, 3):
        journal.append([entry(version)], (version - 1, (version - 1) * 10))
    journal.save_cursor("f", journal.read(0, 2)[-1].seq)
    with raw(url) as (connection, name):
        connection.execute(f"UPDATE {name}.eras SET cluster = 'another'")
        connection.execute(f"UPDATE {name}.journal SET xid = (xid::text::bigint + 10^12)::bigint::text::xid8")
        connection.execute(f"UPDATE {name}.cursors SET xid = (xid::text::bigint + 10^12)::bigint::text::xid8")
    with closing(PostgresJournal(url)) as restored:
        assert [one.version for one in restored.read(restored.cursor("f"))] == [3], "what was committed there is final"
        assert restored.append([entry(4)], (3, 30))[0] is Outcome.APPENDED
        assert restored.append([entry(5)], (4, 40))[0] is Outcome.APPENDED
        assert [one.version for one in restored.read(restored.cursor("f"))] == [3, 4, 5]
        assert [one.version for one in all_entries(restored)] == [1, 2, 3, 4, 5]
        with raw(url) as (connection, name):
            eras = connection.execute(f"SELECT era, count(*) FROM {name}.journal GROUP BY era ORDER BY era").fetchall()
        assert eras == [(1, 3), (2, 2)]


def test_one_process_of_all_hosts_is_at_work_for_a_follower(url: str) -> None:
    """By the same heartbeat as holds: the work of a dead one is taken over."""
    clock = [0.0]
    with closing(PostgresJournal(url, owner_ttl_s=20)) as mine:
        assert mine.take_lease("jsonl")
        assert mine.take_lease("jsonl")
        with raw(url) as (connection, name):
            connection.execute(f"INSERT INTO {name}.owners VALUES ('elsewhere', 1, clock_timestamp())")
            connection.execute(f"UPDATE {name}.leases SET owner = 'elsewhere'")
            mine._owners._monotonic = lambda: clock[0]
            assert not mine.take_lease("jsonl")
            clock[0] += 9
            connection.execute(f"UPDATE {name}.owners SET beat = clock_timestamp() WHERE owner = 'elsewhere'")
            for _ in range(2):
                assert not mine.take_lease("jsonl")
                clock[0] += 9
            assert not mine.take_lease("jsonl")
            clock[0] += 9
            assert mine.take_lease("jsonl"), "the same beat for 27 seconds"
            mine.give_up_lease("jsonl")
            assert connection.execute(f"SELECT count(*) FROM {name}.leases").fetchone() == (0,)


# -- owners


def _another_owner(url: str) -> None:
    with raw(url) as (connection, name):
        connection.execute(f"INSERT INTO {name}.owners VALUES ('elsewhere', 1, clock_timestamp())")


def _alive(journal: PostgresJournal, owner: str = "elsewhere") -> bool:
    return next(mark.alive for mark in journal.owners() if mark.owner == owner)


def test_a_process_is_dead_after_a_whole_ttl_of_the_same_beat(journal: PostgresJournal, url: str) -> None:
    """T9: by the sweeper's own monotonic clock, which knows nothing of the server's or of other hosts'."""
    _another_owner(url)
    clock = [0.0]
    journal._owners._monotonic = lambda: clock[0]
    assert _alive(journal)
    for _ in range(3):
        clock[0] += 6
        assert _alive(journal)
    clock[0] += 6
    assert not _alive(journal)
    with raw(url) as (connection, name):
        connection.execute(f"UPDATE {name}.owners SET beat = clock_timestamp()")
    assert _alive(journal), "it was only slow"


def test_after_an_outage_everybody_has_a_whole_ttl_again(journal: PostgresJournal, url: str) -> None:
    """T9, T27: while the server was away nobody could beat, and nobody could look."""
    _another_owner(url)
    clock = [0.0]
    journal._owners._monotonic = lambda: clock[0]
    assert _alive(journal)
    clock[0] += 600
    assert _alive(journal)
    clock[0] += 6
    assert _alive(journal)


def test_a_process_never_finds_itself_dead_and_comes_back_if_others_did(journal: PostgresJournal, url: str) -> None:
    """T9, T41: a machine that slept makes holds again; when it dies for good somebody must end them."""
    clock = [0.0]
    journal._owners._monotonic = lambda: clock[0]
    mine = journal.register_owner()
    for _ in range(10):
        clock[0] += 3
        assert _alive(journal, mine)
    journal.advance_owner(mine, 17)
    journal.forget_owner(mine)
    clock[0] += 5
    journal.maintain()
    assert [(mark.owner, mark.low_seq) for mark in journal.owners()] == [(mine, 17)]


def _beat(url: str, owner: str) -> object:
    with raw(url) as (connection, name):
        return connection.execute(f"SELECT beat FROM {name}.owners WHERE owner = %s", (owner,)).fetchone()


def test_a_process_beats_while_its_ledger_is_idle(url: str) -> None:
    with closing(PostgresJournal(url, owner_ttl_s=2)) as journal, opened(journal) as ledger:
        ledger.apply("acme", grant(10)).wait(10)
        first = _beat(url, ledger.owner)
        eventually(lambda: _beat(url, ledger.owner) != first)


def test_a_process_that_writes_beats_however_long_its_ledgers_thread_is_at_one_thing(url: str) -> None:
    """T9: what waits in line is tried one after another there, which may take longer than a heartbeat may stay out."""
    with closing(PostgresJournal(url, owner_ttl_s=1)) as journal, opened(journal) as ledger:
        ledger.apply("acme", grant(10)).wait(10)
        assert ledger.apply("acme", ask_for(ledger, 1)).wait(10).declined is None
        at_one_thing, go_on = threading.Event(), threading.Event()
        ledger.later(lambda: (at_one_thing.set(), go_on.wait(60)))
        assert at_one_thing.wait(10)
        try:
            first = _beat(url, ledger.owner)
            eventually(lambda: ledger.apply("acme", grant(1)).wait(10) and _beat(url, ledger.owner) != first)
        finally:
            go_on.set()


def test_many_things_that_each_take_long_leave_the_duties_their_turn(url: str) -> None:
    """T9: two hundred calls that stand in line one after another are not done in one go."""
    with closing(PostgresJournal(url, owner_ttl_s=1)) as journal, opened(journal) as ledger:
        ledger.apply("acme", grant(10)).wait(10)
        first, done, enough = _beat(url, ledger.owner), [], threading.Event()
        for _ in range(200):
            ledger.later(lambda: done.append(enough.wait(0.05)))
        try:
            eventually(lambda: _beat(url, ledger.owner) != first)
            assert len(done) < 150, "it beat in between"
        finally:
            enough.set()


def test_calls_that_wait_for_the_same_credit_do_not_ask_for_it_one_by_one(url: str) -> None:
    """T27: each question is a way to the server and back. A hundred that stood in line made two hundred, one after
    another, so the last one was told long after its time was up."""
    with closing(PostgresJournal(url)) as journal:
        spied = Spied(journal)
        with opened(spied) as ledger:
            ledger.apply("acme", grant(100)).wait(10)
            assert ledger.apply("acme", ask_for(ledger, 100, "first")).wait(10).declined is None
            at_one_thing, go_on = threading.Event(), threading.Event()
            ledger.later(lambda: (at_one_thing.set(), go_on.wait(60)))
            assert at_one_thing.wait(10)
            waits = [ledger.apply("acme", ask_for(ledger, 80), wait_s=0.5) for _ in range(100)]
            eventually(lambda: ledger._thread._inbox.qsize() >= 100)
            spied.calls.clear()
            go_on.set()
            assert {wait.wait(10).declined.reason for wait in waits} == {"credit_on_hold"}  # type: ignore[union-attr]
            assert spied.calls["tails"] + spied.calls["since"] < 50


# -- schema


def test_many_processes_make_one_ledger(url: str) -> None:
    made: list[str] = []

    def make() -> None:
        with closing(PostgresJournal(url, timeout_s=10)) as one:
            made.append(one.identity)

    assert not exists(url)
    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert len(set(made)) == 1
    assert exists(url)


def _step(oldest: int) -> schema.Step:
    return schema.Step(("ALTER TABLE {schema}.journal ADD COLUMN later text",), oldest)


def test_an_older_release_goes_on_beside_a_newer_one(journal: PostgresJournal, url: str) -> None:
    """A rolling deploy: what a step only adds, releases that do not know it never mention."""
    journal.append([entry(1)], (0, 0))
    name = url.rpartition("=")[2]
    link = Link(url.partition("?")[0], 10)
    schema.prepare(link, name, [*schema.STEPS, _step(oldest=1)])
    link.close()
    assert journal.append([entry(2)], (1, 10))[0] is Outcome.APPENDED, "one that runs already"
    with closing(PostgresJournal(url)) as old:
        assert old.append([entry(3)], (2, 20))[0] is Outcome.APPENDED, "one that starts now"
        assert [one.version for one in old.since("acme", 1)] == [1, 2, 3]


def test_a_release_that_is_too_old_says_so(journal: PostgresJournal, url: str) -> None:
    link = Link(url.partition("?")[0], 10)
    schema.prepare(link, url.rpartition("=")[2], [*schema.STEPS, _step(oldest=2)])
    link.close()
    with pytest.raises(JournalUnavailable, match="upgrade lava-middleware"):
        PostgresJournal(url)


def test_another_programs_tables_are_left_alone(url: str) -> None:
    with raw(url) as (connection, name):
        connection.execute(f"CREATE SCHEMA {name}; CREATE TABLE {name}.journal (diary text)")
        with pytest.raises(JournalUnavailable, match="not a ledger"):
            PostgresJournal(url)
        assert connection.execute(f"SELECT * FROM {name}.journal").fetchall() == []


def test_who_may_only_use_the_tables_can_use_the_ledger(journal: PostgresJournal, url: str) -> None:
    with raw(url) as (connection, name):
        role = "clerk_" + url.rpartition("=")[2]
        connection.execute(
            f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {name} TO {role}; "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {role}; "
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {name} TO {role}"
        )
        try:
            with closing(PostgresJournal(url.replace("lava@", f"{role}@"))) as clerks, opened(clerks) as ledger:
                ledger.apply("acme", grant(100)).wait(10)
                assert ledger.apply("acme", ask_for(ledger, 60)).wait(10).declined is None
                connection.execute(f"REVOKE INSERT ON {name}.journal FROM {role}")
                with pytest.raises(Exception, match="SQLSTATE 42501") as refused:
                    ledger.apply("acme", grant(1)).wait(10)
                assert "acme" not in str(refused.value)
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_errors_name_neither_passwords_nor_customers(journal: PostgresJournal) -> None:
    """T32: PostgreSQL's own messages quote the row."""
    for odd in ("postgresql://u:pa/ss@127.0.0.1/db", "postgresql://u:pa@ss:word@127.0.0.1:x/db?schema=a"):
        with pytest.raises(Exception, match=r"URL|reached") as refused:
            PostgresJournal(odd, timeout_s=0.1)
        assert "pa" not in str(refused.value).replace("password", "")
    with pytest.raises(JournalUnavailable, match="SQLSTATE") as refused:
        journal.append([entry(1, account="secret customer")._replace(balance_after=2**70)], (0, 0))
    assert "secret" not in str(refused.value)


# -- appends


def test_of_several_appends_in_one_statement_only_the_overtaken_are_refused(journal: PostgresJournal) -> None:
    journal.append([entry(1, account="b")], (0, 0))
    before = journal.statements
    told = journal.append_many(
        [
            ([entry(1, account="a"), entry(2, account="a")], (0, 0)),
            ([entry(1, account="b", at=99)], (0, 0)),
            ([entry(3, account="c")], (2, 20)),
            ([entry(2, account="b2")._replace(version=1)], (0, 0)),
        ]
    )
    assert [one.outcome for one in told] == [
        Outcome.APPENDED,
        Outcome.CONFLICT,
        Outcome.NO_PREDECESSOR,
        Outcome.APPENDED,
    ]
    assert journal.statements == before + 1
    assert [one.version for one in journal.since("a", 1)] == [1, 2]


def test_who_is_overtaken_in_the_last_moment_does_not_take_others_along(journal: PostgresJournal, url: str) -> None:
    """A statement looks, waits for the account's lock, and meets what was committed meanwhile at the unique index."""
    told: list[Appended] = []
    number = schema.lock_number(journal._schema_name, "a")
    with raw(url, autocommit=False) as (rival, name):
        rival.execute("SELECT pg_advisory_xact_lock(%s)", (number,))
        appends = [([entry(1, account=account)], (0, 0)) for account in ("a", "b")]
        thread = threading.Thread(target=lambda: told.extend(journal.append_many(appends)))
        thread.start()
        with raw(url) as (watcher, _):
            eventually(
                lambda: watcher.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
            )
        rival.execute(
            f"INSERT INTO {name}.journal (account, version, kind, balance_after, event, at, era) "
            "VALUES ('a', 1, 'held.1', 0, '{}', 77, 1)"
        )
        rival.commit()
        thread.join(10)
    assert [one.outcome for one in told] == [Outcome.CONFLICT, Outcome.APPENDED]


def test_a_lock_that_somebody_sits_on_is_not_waited_for_for_ever(url: str) -> None:
    """T27: it is told as busy, nothing was written."""
    with closing(PostgresJournal(url, timeout_s=0.8)) as journal, raw(url, autocommit=False) as (rival, _):
        rival.execute("SELECT pg_advisory_xact_lock(%s)", (schema.lock_number(journal._schema_name, "a"),))
        began = time.monotonic()
        with pytest.raises(Busy):
            journal.append([entry(1, account="a")], (0, 0))
        assert time.monotonic() - began < 5
        assert journal.append([entry(1, account="b")], (0, 0))[0] is Outcome.APPENDED


@contextmanager
def sat_on(url: str, journal: PostgresJournal, *accounts: str) -> Iterator[None]:
    """Another process has the locks of these accounts, and does nothing."""
    with raw(url, autocommit=False) as (rival, _):
        for account in accounts:
            rival.execute("SELECT pg_advisory_xact_lock(%s)", (schema.lock_number(journal._schema_name, account),))
        yield
        rival.rollback()


def test_one_account_that_somebody_sits_on_keeps_no_other_one_waiting(url: str) -> None:
    """T27: those beside it are appended, it is told as busy; and from then on it is waited for briefly."""
    with closing(PostgresJournal(url, timeout_s=4)) as journal:
        with sat_on(url, journal, "a"):
            for version in (1, 2, 3):
                others = [([entry(version, account=name)], (version - 1, 10 * (version - 1))) for name in ("b", "c")]
                told = journal.append_many([([entry(1, account="a")], (0, 0)), *others])
                assert [one.outcome for one in told] == [Outcome.BUSY, Outcome.APPENDED, Outcome.APPENDED]
                assert journal._patience_ms("a", beside=2) < journal._lock_ms
        assert [one.outcome for one in journal.append_many([([entry(1, account="a")], (0, 0))])] == [Outcome.APPENDED]
        assert journal._patience_ms("a", beside=0) == journal._lock_ms, "it is like any other again"


def test_of_an_append_in_parts_what_was_written_is_never_told_as_busy(
    journal: PostgresJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T9: busy says that nothing was written. A hold that was, and is taken for not made, is open for ever."""
    write, meets = journal._writer.write, [Clash("journal_version"), None, Busy()]

    def met(sql: str, values: Sequence[Any] = ()) -> Any:
        error = meets.pop(0)
        if error is not None:
            raise error
        return write(sql, values)

    monkeypatch.setattr(journal._writer, "write", met)
    told = journal.append_many([([entry(1, account=account)], (0, 0)) for account in ("a", "b")])
    assert [one.outcome for one in told] == [Outcome.APPENDED, Outcome.BUSY]
    assert [len(journal.since(account, 1)) for account in ("a", "b")] == [1, 0]


def test_alone_is_alone_and_sees_what_was_committed(journal: PostgresJournal, url: str) -> None:
    """The lock is taken in one statement, the tail read in a later one: it cannot be an old picture."""
    with closing(PostgresJournal(url, timeout_s=10)) as other, closing(PostgresJournal(url)) as third:
        journal.append([entry(1)], (0, 0))
        told: list[Outcome] = []
        with journal.alone([("acme", 1), ("nobody", 0)]) as alone:
            assert [one.version for one in alone.tails["acme"]] == [1]
            assert alone.tails["nobody"] == []
            assert [one.version for one in journal.since("acme", 1)] == [1]
            rival = threading.Thread(target=lambda: told.append(other.append([entry(2, at=99)], (1, 10))[0]))
            rival.start()
            assert third.append([entry(1, account="another")], (0, 0))[0] is Outcome.APPENDED
            assert [one.outcome for one in alone.commit([([entry(2)], (1, 10))])] == [Outcome.APPENDED]
        rival.join(10)
        assert told == [Outcome.CONFLICT]
        with contextlib.suppress(ZeroDivisionError), journal.alone([("acme", 2)]):
            assert journal.append([entry(3)], (2, 20))[0] is Outcome.APPENDED
            raise ZeroDivisionError
        assert [one.version for one in journal.since("acme", 1)] == [1, 2]


# -- batches


class Slow(PostgresJournal):
    """Its appends wait until they are let through."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout_s=10)
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.sizes: list[int] = []

    def append_many(self, appends: Sequence[tuple[Sequence[Entry], tuple[int, int]]]) -> list[Appended]:
        self.waiting.set()
        assert self.gate.wait(20)
        self.sizes.append(sum(len(entries) for entries, _ in appends))
        return super().append_many(appends)


@contextmanager
def slow(url: str) -> Iterator[tuple[Slow, Ledger]]:
    with closing(Slow(url)) as journal, opened(journal, deadline_s=20) as ledger:
        ledger.apply("acme", grant(1000)).wait(10)
        ledger.apply("other", grant(1000)).wait(10)
        journal.sizes.clear()
        journal.waiting.clear()
        yield journal, ledger


def test_what_arrives_while_an_append_is_in_flight_is_one_statement(url: str) -> None:
    """100 commands of two customers behind the first: 64 and 36."""
    with slow(url) as (journal, ledger):
        journal.gate.clear()
        tickets = [ledger.apply("acme", ask_for(ledger, 1, "first"))]
        assert journal.waiting.wait(10)
        tickets += [ledger.apply(("acme", "other")[n % 2], ask_for(ledger, 1, f"call-{n}")) for n in range(100)]
        before = journal.statements
        assert not any(ticket.done for ticket in tickets), "nobody is answered before the commit"
        journal.gate.set()
        for ticket in tickets:
            assert isinstance(ticket.wait(10).event, Held)
        assert journal.sizes == [1, 64, 36]
        assert journal.statements - before == 3
        seqs = [ticket.result().seq for ticket in tickets]
        assert len(set(seqs)) == 101
        check_journal(journal)


def test_later_commands_of_a_batch_are_decided_on_what_the_earlier_ones_leave(url: str) -> None:
    """T1: together they never get more than there is, and who is refused was compared with the journal (T44)."""
    with slow(url) as (journal, ledger):
        journal.gate.clear()
        first = ledger.apply("acme", ask_for(ledger, 100, "first"))
        assert journal.waiting.wait(10)
        tickets = [ledger.apply("acme", ask_for(ledger, 100, f"call-{n}")) for n in range(20)]
        ending = ledger.apply("acme", settle("call-0", 5))
        again = ledger.apply("acme", settle("call-0", 5))
        journal.gate.set()
        assert first.wait(10).declined is None
        assert [ticket.wait(10).declined is None for ticket in tickets] == [True] * 9 + [False] * 11
        assert ending.wait(10).event is not None
        assert again.wait(10).repeated
        assert ledger.look("acme").available(2**62) == 95
        check_journal(journal)


def test_the_same_grant_twice_in_one_batch_is_given_once(url: str) -> None:
    """T15: a purchase that is reported twice at once; nothing in the journal knows the key yet."""
    with slow(url) as (journal, ledger):
        journal.gate.clear()
        first = ledger.apply("acme", ask_for(ledger, 1, "first"))
        assert journal.waiting.wait(10)
        tickets = [ledger.apply("acme", grant(500, "invoice-81")) for _ in range(3)]
        after = ledger.apply("acme", ask_for(ledger, 1, "after"))
        journal.gate.set()
        assert first.wait(10).declined is after.wait(10).declined is None
        assert [ticket.wait(10).repeated for ticket in tickets] == [False, True, True]
        assert len({ticket.result().event for ticket in tickets}) == 1
        assert ledger.look("acme").available(2**62) == 1498
        assert journal.sizes == [1, 2], "nobody was refused by the journal"
        check_journal(journal)


def test_a_key_that_is_repeated_far_back_in_a_batch_is_looked_up_once(url: str) -> None:
    """T15: the journal refuses the batch for one of its keys; then that command alone is looked up, and all pass."""
    with slow(url) as (journal, ledger):
        old = ask_for(ledger, 10, "old")
        told = ledger.apply("acme", old).wait(10)
        ledger.apply("acme", settle("old", 10)).wait(10)
        journal.sizes.clear()
        journal.waiting.clear()
        journal.gate.clear()
        first = ledger.apply("acme", ask_for(ledger, 1, "first"))
        assert journal.waiting.wait(10)
        tickets = [ledger.apply("acme", ask_for(ledger, 1, f"call-{n}")) for n in range(20)]
        again = ledger.apply("acme", old)
        journal.gate.set()
        assert first.wait(10).declined is None
        assert all(ticket.wait(10).declined is None for ticket in tickets)
        assert again.wait(10).repeated
        assert again.result().event == told.event
        assert journal.sizes == [1, 21, 20]
        check_journal(journal)


def test_a_batch_that_was_overtaken_is_decided_anew(url: str) -> None:
    """T1: the rival took the credit in between; of five that fitted before one still does."""
    with slow(url) as (journal, ledger), closing(PostgresJournal(url)) as elsewhere, opened(elsewhere) as rival:
        rival.look("acme")
        journal.gate.clear()
        bystander = ledger.apply("other", ask_for(ledger, 1, "in the way"))
        assert journal.waiting.wait(10)
        tickets = [ledger.apply("acme", ask_for(ledger, 200, f"call-{n}")) for n in range(5)]
        other = ledger.apply("other", ask_for(ledger, 10, "other"))
        journal.waiting.clear()
        journal.gate.set()
        assert bystander.wait(10).declined is None
        rival.apply("acme", ask_for(rival, 700, "rival")).wait(10)
        passed = [ticket.wait(10).declined is None for ticket in tickets]
        assert other.wait(10).declined is None
        assert sum(passed) in (1, 5)  # 5: the batch was faster; then the rival was refused
        assert sum(passed) * 200 + (700 if "rival" in ledger.look("acme").holds else 0) <= 1000
        check_journal(journal)


class Rivalled(PostgresJournal):
    """Somebody else appends just before every append of ours, unless we are alone."""

    rival: Ledger | None = None
    alone_for: int = 0

    @contextmanager
    def alone(self, wanted: Sequence[tuple[str, int]]) -> Iterator[Any]:
        with super().alone(wanted) as alone:
            self.alone_for += 1
            rival, self.rival = self.rival, None
            yield alone
            self.rival = rival

    def append_many(self, appends: Sequence[tuple[Sequence[Entry], tuple[int, int]]]) -> list[Appended]:
        if self.rival is not None:
            self.rival.apply("acme", grant(1)).wait(10)
        return super().append_many(appends)


def test_who_loses_two_races_goes_on_alone(url: str) -> None:
    with (
        closing(Rivalled(url, timeout_s=10)) as journal,
        opened(journal, deadline_s=20) as ledger,
        closing(PostgresJournal(url)) as elsewhere,
        opened(elsewhere) as rival,
    ):
        rival.apply("acme", grant(100)).wait(10)
        ledger.look("acme")
        journal.rival = rival
        tickets = [ledger.apply("acme", ask_for(ledger, 10)) for _ in range(3)]
        for ticket in tickets:
            assert isinstance(ticket.wait(10).event, Held)
        journal.rival = None
        assert journal.alone_for >= 1
        assert ledger.counters.conflicts >= 2
        check_journal(journal)


def test_a_key_that_somebody_else_used_is_looked_up(url: str) -> None:
    """Neither process has seen the other's entry; the account has the version, so only the key clashes."""
    with (
        closing(PostgresJournal(url)) as one,
        closing(PostgresJournal(url)) as two,
        opened(one) as a,
        opened(two) as b,
    ):
        b.look("acme")
        first = a.apply("acme", grant(100, "invoice-81")).wait(10)
        again = b.apply("acme", grant(100, "invoice-81")).wait(10)
        assert again.repeated
        assert again.event == first.event
        for _ in range(3):
            a.apply("acme", SetTerms(Terms())).wait(10)
        assert b.look("acme").available(2**62) == 100


# -- a pooler in between


def test_all_of_it_works_through_a_pooler_that_swaps_connections(url: str) -> None:
    """No session: no prepared statement's name, no SET, no session lock survives a transaction."""
    where, _, name = url.rpartition("?schema=")
    with Pooler(where) as pooler:
        pooled = f"{pooler.url}?schema={name}"
        with (
            closing(PostgresJournal(pooled, timeout_s=10)) as journal,
            opened(journal, deadline_s=20) as ledger,
            closing(PostgresJournal(pooled, timeout_s=10)) as elsewhere,
            opened(elsewhere, deadline_s=20) as other,
        ):
            ledger.apply("acme", grant(10_000)).wait(20)
            for number in range(30):
                a = ledger.apply("acme", ask_for(ledger, 3, f"a-{number}"))
                b = other.apply("acme", ask_for(other, 3, f"b-{number}"))
                assert a.wait(20).declined is b.wait(20).declined is None
                ledger.apply("acme", settle(f"a-{number}", 2)).wait(20)
                other.apply("acme", settle(f"b-{number}", 2)).wait(20)
            assert other.look("acme").available(2**62) == 10_000 - 120
            with journal.alone([("acme", 1)]):
                assert journal.since("acme", 1)[0].version == 1
            assert journal.take_lease("f")
            check_journal(journal)
        assert pooler.swaps > 100
