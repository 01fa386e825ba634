"""What every journal promises, whichever place it keeps its entries in."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import closing, nullcontext

import pytest

from lava_middleware.ledger.journal import Busy, Entry, Journal, JournalUnavailable, Outcome, Snapshot

from .conftest import Place

NONE = (0, 0)


def entry(
    version: int, *, account: str = "acme", key: str | None = None, at: int = 0, record: str | None = None
) -> Entry:
    return Entry(account, version, "held.1", key, 100 - version, f'{{"n":{version}}}', record, at or version * 10)


def fill(journal: Journal, count: int, account: str = "acme", **more: str) -> list[Entry]:
    """Append so many entries to an empty account, each with a key and a record."""
    entries = [entry(n, account=account, key=f"hold:{n}", record=f'{{"id":{n}}}') for n in range(1, count + 1)]
    before = NONE
    for one in entries:
        assert journal.append([one], before)[0] is Outcome.APPENDED
        before = one.version, one.at
    return entries


def bare(one: Entry) -> tuple[object, ...]:
    return one.account, one.version, one.kind, one.key, one.balance_after, one.event, one.at


# -- appending


def test_an_append_returns_rising_numbers(journal: Journal) -> None:
    assert journal.append([entry(1)], NONE) == (Outcome.APPENDED, 1)
    assert journal.append([entry(1, account="other")], NONE) == (Outcome.APPENDED, 2)
    assert journal.append([entry(2), entry(3)], (1, 10)) == (Outcome.APPENDED, 4)
    assert [one.seq for one in journal.read(0)] == [1, 2, 3, 4]
    assert journal.last_seq() == 4


def test_a_batch_for_a_new_account_is_appended_whole(journal: Journal) -> None:
    assert journal.append([entry(1), entry(2), entry(3)], NONE) == (Outcome.APPENDED, 3)
    assert [one.version for one in journal.since("acme", 1)] == [1, 2, 3]


def test_of_two_entries_with_one_version_the_second_is_a_conflict(journal: Journal) -> None:
    fill(journal, 2)
    assert journal.append([entry(2, at=99)], (1, 10)) == (Outcome.CONFLICT, 0)
    assert journal.append([entry(1, at=99)], NONE) == (Outcome.CONFLICT, 0)
    assert journal.last_seq() == 2


def test_a_key_is_taken_once_per_account(journal: Journal) -> None:
    assert journal.append([entry(1, key="grant:42")], NONE)[0] is Outcome.APPENDED
    assert journal.append([entry(2, key="grant:42")], (1, 10)) == (Outcome.CONFLICT, 0)
    assert journal.append([entry(2, key="report:42")], (1, 10))[0] is Outcome.APPENDED
    assert journal.append([entry(1, account="other", key="grant:42")], NONE)[0] is Outcome.APPENDED


def test_entries_without_a_key_never_clash(journal: Journal) -> None:
    assert journal.append([entry(1), entry(2)], NONE)[0] is Outcome.APPENDED
    assert journal.append([entry(3), entry(4)], (2, 20))[0] is Outcome.APPENDED


@pytest.mark.parametrize("clash", ["with an earlier entry", "within the batch"])
def test_a_batch_that_clashes_leaves_nothing_behind(journal: Journal, clash: str) -> None:
    fill(journal, 1)
    keys = ("fresh", "hold:1") if clash == "with an earlier entry" else ("same", "same")
    batch = [entry(2, key=keys[0]), entry(3, key=keys[1])]
    assert journal.append(batch, (1, 10)) == (Outcome.CONFLICT, 0)
    assert [one.version for one in journal.since("acme", 1)] == [1]
    assert journal.find("acme", ["fresh", "same"]) == []


def test_an_entry_whose_predecessor_is_not_there_is_not_appended(journal: Journal) -> None:
    """T42: version 27,606 after 100."""
    fill(journal, 3)
    assert journal.append([entry(27_606)], (27_605, 276_050)) == (Outcome.NO_PREDECESSOR, 0)
    assert journal.append([entry(2, account="never seen")], (1, 10)) == (Outcome.NO_PREDECESSOR, 0)
    assert journal.append([entry(2, account="never seen"), entry(3, account="never seen")], (1, 10))[1] == 0
    assert journal.last_seq() == 3


def test_a_predecessor_is_known_by_its_time_too(journal: Journal) -> None:
    """T42: a journal that was put back to an older state and grew again has the version, but not that entry."""
    fill(journal, 3)
    assert journal.append([entry(4)], (3, 31)) == (Outcome.NO_PREDECESSOR, 0)
    assert journal.append([entry(3, at=99)], (2, 21)) == (Outcome.NO_PREDECESSOR, 0)
    assert journal.append([entry(4)], (3, 30))[0] is Outcome.APPENDED


def test_a_gap_or_a_second_account_in_one_append_is_a_programmers_error(journal: Journal) -> None:
    fill(journal, 1)
    with pytest.raises(ValueError, match="without a gap"):
        journal.append([entry(3)], (1, 10))
    with pytest.raises(ValueError, match="one account"):
        journal.append([entry(2), entry(3, account="other")], (1, 10))


def test_large_amounts_and_any_text_come_back_as_they_went_in(journal: Journal) -> None:
    account = "ключ \N{GRINNING FACE} ' \" \x00 \n " + "x" * 10_000
    one = Entry(account, 1, "granted.1", "grant:\x00", -(2**62), '{"ü":"\\u0000"}', "r" * 100_000, 2**62)
    assert journal.append([one], NONE)[0] is Outcome.APPENDED
    (found,) = journal.find(account, ["grant:\x00"])
    assert (bare(found), found.record) == (bare(one), one.record)


# -- reading


def test_a_tail_starts_with_the_version_it_is_asked_for_and_leaves_records_out(journal: Journal) -> None:
    entries = fill(journal, 5)
    tail = journal.since("acme", 3)
    assert [bare(one) for one in tail] == [bare(one) for one in entries[2:]]
    assert [(one.record, one.seq) for one in tail] == [(None, 3), (None, 4), (None, 5)]
    assert journal.since("acme", 6) == []
    assert journal.since("nobody", 0) == []
    assert [one.version for one in journal.since("acme", 0)] == [1, 2, 3, 4, 5]


def test_entries_are_found_by_key_with_their_records_in_order(journal: Journal) -> None:
    fill(journal, 5)
    found = journal.find("acme", ["hold:4", "hold:2", "hold:9", "hold:4"])
    assert [(one.version, one.record) for one in found] == [(2, '{"id":2}'), (4, '{"id":4}')]
    assert journal.find("other", ["hold:4"]) == []
    assert journal.find("acme", []) == []
    assert len(journal.find("acme", [f"hold:{n}" for n in range(2_000)])) == 5


def test_an_account_is_paged_from_its_newest_entry(journal: Journal) -> None:
    fill(journal, 5)
    assert [one.version for one in journal.entries("acme", limit=2)] == [5, 4]
    assert [one.version for one in journal.entries("acme", before=4, limit=2)] == [3, 2]
    assert [(one.version, one.record) for one in journal.entries("acme", before=2)] == [(1, '{"id":1}')]
    assert journal.entries("acme", before=1) == []
    assert journal.entries("nobody") == []


def test_followers_read_all_accounts_in_the_order_of_seq(journal: Journal) -> None:
    fill(journal, 2, "a")
    fill(journal, 2, "b")
    first = journal.read(0, limit=3)
    assert [(one.account, one.version, one.seq) for one in first] == [("a", 1, 1), ("a", 2, 2), ("b", 1, 3)]
    assert [(one.seq, one.record) for one in journal.read(3)] == [(4, '{"id":2}')]
    assert journal.read(4) == []


def test_accounts_are_listed_in_order_a_page_at_a_time(journal: Journal) -> None:
    names = ["", "B", "a", "b", "é", "\U0001f600"]
    for name in names:
        fill(journal, 3, name)
    assert journal.accounts() == names[1:]
    assert journal.accounts(limit=2) == ["B", "a"]
    assert journal.accounts(after="a", limit=2) == ["b", "é"]
    assert journal.accounts(after="\U0001f600") == []


# -- what is kept beside the entries


def test_a_snapshot_is_the_last_one_saved(journal: Journal) -> None:
    assert journal.snapshot("acme") is None
    journal.save_snapshots([Snapshot("acme", 5, 50, 1, "{}"), Snapshot("other", 1, 10, 1, "[]")])
    journal.save_snapshots([])
    journal.save_snapshots([Snapshot("acme", 4, 40, 2, "{1}")])
    assert journal.snapshot("acme") == Snapshot("acme", 4, 40, 2, "{1}")
    assert journal.snapshot("other") == Snapshot("other", 1, 10, 1, "[]")


def test_a_follower_has_its_own_cursor(journal: Journal) -> None:
    assert journal.cursor("webhook") == 0
    journal.save_cursor("webhook", 7)
    journal.save_cursor("jsonl", 3)
    journal.save_cursor("webhook", 9)
    assert (journal.cursor("webhook"), journal.cursor("jsonl")) == (9, 3)


def test_a_cursor_moves_past_an_entry_that_is_there_and_past_no_other_with_its_number(journal: Journal) -> None:
    """T42: an entry that was read before the journal was put back to an older state may have lent its number since."""
    fill(journal, 3)
    *_, last = journal.read(0)
    for lost in (last._replace(key="lost"), last._replace(at=last.at + 1), last._replace(account="other")):
        journal.save_cursor("webhook", last.seq, lost)
    journal.save_cursor("webhook", last.seq + 1, last._replace(seq=last.seq + 1))
    assert journal.cursor("webhook") == 0
    journal.save_cursor("webhook", last.seq, last)
    assert journal.cursor("webhook") == last.seq


def test_a_letter_is_dead_once_however_often_it_is_buried(journal: Journal) -> None:
    for seq, reason in ((1, "refused"), (2, "too large"), (1, "refused again")):
        journal.bury("webhook", seq, reason)
    assert journal.dead_letters() == [("webhook", 2, "too large"), ("webhook", 1, "refused")]
    assert journal.dead_letters(limit=1) == [("webhook", 2, "too large")]


def test_a_note_is_the_last_text_saved(journal: Journal) -> None:
    assert journal.note("ratios") is None
    journal.save_note("ratios", "1")
    journal.save_note("ratios", "2")
    assert journal.note("ratios") == "2"


def test_counts_of_unmetered_traffic_add_up(journal: Journal) -> None:
    journal.bump("2026-01-01", "unknown_path", "api.openai.com", 2)
    journal.bump("2026-01-02", "no_customer", "api.openai.com", 1)
    journal.bump("2026-01-01", "unknown_path", "api.openai.com", 3)
    journal.bump("2026-01-01", "refused", "api.anthropic.com", 1)
    assert journal.bumps() == [
        ("2026-01-02", "no_customer", "api.openai.com", 1),
        ("2026-01-01", "refused", "api.anthropic.com", 1),
        ("2026-01-01", "unknown_path", "api.openai.com", 5),
    ]


# -- owners


def test_a_process_has_one_owner_id_which_is_alive(journal: Journal, place: Place) -> None:
    """T41: a second Lava in the same process never finds the first one dead."""
    fill(journal, 3)
    owner = journal.register_owner()
    with closing(place.open()) if place.shared else nullcontext(journal) as again:
        assert again.register_owner() == journal.register_owner() == owner
        for one in (journal, again, journal):
            (mark,) = one.owners()
            assert (mark.owner, mark.low_seq, mark.alive) == (owner, 4, True)
    assert [mark.alive for mark in journal.owners()] == [True]


def test_an_owner_moves_forward_and_is_forgotten(journal: Journal) -> None:
    owner = journal.register_owner()
    journal.advance_owner(owner, 9)
    journal.advance_owner(owner, 5)
    assert [mark.low_seq for mark in journal.owners()] == [9]
    journal.forget_owner(owner)
    assert journal.owners() == []


# -- between calls


def test_what_was_appended_can_be_made_durable_at_once(journal: Journal) -> None:
    fill(journal, 3)
    journal.maintain()
    assert journal.sync(5.0)
    assert journal.generation == 0


def test_a_closed_journal_says_so(place: Place) -> None:
    journal = place.open()
    fill(journal, 1)
    journal.close()
    journal.close()
    for call in (lambda: journal.append([entry(2)], (1, 10)), lambda: journal.read(0), journal.register_owner):
        with pytest.raises(JournalUnavailable, match="closed"):
            call()
    journal.maintain()


def test_the_journal_can_be_written_alone(journal: Journal) -> None:
    exclusive = getattr(journal, "exclusive", None)
    if exclusive is None:
        pytest.skip("this journal offers no exclusive()")
    fill(journal, 1)
    with exclusive():
        assert journal.append([entry(2, key="hold:1")], (1, 10)) == (Outcome.CONFLICT, 0)
        assert [one.version for one in journal.since("acme", 1)] == [1]
        assert journal.append([entry(2)], (1, 10))[0] is Outcome.APPENDED

    def fail_in_the_block() -> None:
        with exclusive():
            assert journal.append([entry(3)], (2, 20))[0] is Outcome.APPENDED
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_the_block()
    assert [one.version for one in journal.since("acme", 1)] == [1, 2]
    assert journal.append([entry(3)], (2, 20))[0] is Outcome.APPENDED


# -- together


def test_threads_on_one_account_leave_one_history_without_gaps(journal: Journal) -> None:
    _in_threads(8, lambda _: _append_until(journal, "acme", 400))
    _check_history(journal, "acme", 400)


def test_processes_on_the_same_accounts_leave_histories_without_gaps(place: Place) -> None:
    """G4's ground: four processes, half of them with two threads, race for each version; one wins it."""
    if not place.shared:
        pytest.skip("this journal belongs to one process")
    with closing(place.open()) as journal:
        _in_processes(4, _race, place)
        for name in ("acme", "other"):
            _check_history(journal, name, 300)


def test_a_follower_misses_nothing_while_processes_write(place: Place) -> None:
    """T46: a cursor never passes an entry that is still to come."""
    if not place.shared:
        pytest.skip("this journal belongs to one process")
    with closing(place.open()) as journal:
        seen: list[int] = []
        done = threading.Event()

        def follow() -> None:
            while True:
                last_round = done.is_set()
                while rows := _patiently(lambda: journal.read(seen[-1] if seen else 0, limit=50)):
                    seen.extend(one.seq for one in rows)
                if last_round:
                    return

        follower = threading.Thread(target=follow)
        follower.start()
        _in_processes(3, _write_own_account, place)
        done.set()
        follower.join()
        assert sorted(seen) == list(range(1, 3 * 300 + 1)), "each once; in the order in which they became final"
        assert journal.last_seq() == 900


def _race(place_open: Callable[[], Journal], number: int) -> None:
    with closing(place_open()) as journal:
        work = [lambda name=name: _append_until(journal, name, 300) for name in ("acme", "other")]
        if number % 2:
            _in_threads(2, lambda n: work[n]())
        else:
            work[1]()
            work[0]()


def _write_own_account(place_open: Callable[[], Journal], number: int) -> None:
    with closing(place_open()) as journal:
        _append_until(journal, f"account {number}", 300)
        journal.maintain()


def _append_until(journal: Journal, account: str, version: int) -> None:
    """Append at the end of the account, whoever else does, until it is so long."""
    last = NONE
    while last[0] < version:
        following = last[0] + 1
        at = time.time_ns() // 1000
        one = entry(following, account=account, at=max(at, last[1] + 1))
        outcome, _ = _patiently(lambda one=one, last=last: journal.append([one], last))
        if outcome is Outcome.APPENDED:
            last = following, one.at
        else:
            assert outcome is Outcome.CONFLICT
            tail = _patiently(lambda last=last: journal.since(account, last[0]))
            last = tail[-1].version, tail[-1].at


def _check_history(journal: Journal, account: str, length: int) -> None:
    entries = journal.since(account, 1)
    assert [one.version for one in entries] == list(range(1, length + 1))
    assert all(a.at < b.at and a.seq < b.seq for a, b in itertools.pairwise(entries))


def _patiently(work: Callable[[], object]) -> object:
    until = time.monotonic() + 30
    while True:
        try:
            return work()
        except Busy:
            assert time.monotonic() < until, "busy for 30 s"
            time.sleep(0.0005)


def _in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def _in_processes(count: int, work: Callable[[Callable[[], Journal], int], None], place: Place) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(place.open, n)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count
