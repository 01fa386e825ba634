"""This file knows what stretches of the journal's past add up to: worked out once, kept beside it, never different.

A stretch is so many entries in the order in which they are followed, counted from the journal's first: what it adds up
to is a function of entries that never change, so it may be written twice, by anybody, or be dropped and made anew. What
comes after the last whole stretch is read from the journal itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, NamedTuple

from ..ledger.journal import Busy, Entry, Journal, JournalUnavailable

ENTRIES = 5_000
"""Of a stretch."""
AT_ONCE_MOST = 4
"""Stretches that one question about recent times makes; it reads the rest as it is. One about all times makes all."""
NAME = "usage-1-"
"""Of the notes they are kept in. The number is the form's: those of another are never read."""
HOUR_US = 3_600_000_000


class Group(NamedTuple):
    """What is told apart in a stretch."""

    hour: int
    """Since 1970."""
    customer: str
    model: str
    provider: str
    meter: str


@dataclass(slots=True)
class Stretch:
    """Entries after the one with seq `after`, up to that with seq `last`."""

    after: int
    last: int
    at: int
    """When the last one was written."""
    sums: list[tuple[Group, list[Any]]] = field(default_factory=list)
    """Each group with its records, cost, charge, and quantities by unit."""

    def hours(self) -> tuple[int, int]:
        """From the first to before the last, in microseconds since 1970; of none: of no time at all."""
        hours = [group.hour for group, _ in self.sums]
        return (min(hours) * HOUR_US, (max(hours) + 1) * HOUR_US) if hours else (0, 0)


def stretches(
    journal: Journal,
    add_up: Callable[[Sequence[Entry]], list[tuple[Group, list[Any]]]],
    *,
    since: int | None,
    rebuild: bool,
    chunk: int,
) -> Iterator[Stretch]:
    """All whole stretches, in order. `add_up` is what entries come to.

    With `since` those are left out that ended before it, and where too many are yet to be made it stops before them.
    """
    after, made = 0, 0
    for number in count():
        stretch = None if rebuild else _kept(journal, number, after)
        if stretch is None:
            if since is not None and not rebuild and made >= AT_ONCE_MOST:
                return
            if journal.last_seq() - after < ENTRIES:  # so there are not that many, and nothing needs to be read
                return
            entries = list(islice(followed(journal, after, chunk), ENTRIES))
            if len(entries) < ENTRIES:
                return
            stretch = Stretch(after, entries[-1].seq, entries[-1].at, add_up(entries))
            made += 1
            _keep(journal, number, stretch)
        after = stretch.last
        if since is None or stretch.at >= since:
            yield stretch


def followed(journal: Journal, after: int, chunk: int) -> Iterator[Entry]:
    """All entries after the one with that seq, in the order of followers, in short reads."""
    while entries := journal.read(after, chunk):
        yield from entries
        after = entries[-1].seq


def _kept(journal: Journal, number: int, after: int) -> Stretch | None:
    """As kept; None where there is none, or one that does not follow on what was before."""
    text = journal.note(f"{NAME}{number}")
    if text is None:
        return None
    try:
        head, _, body = text.partition("\n")
        first, last, at = json.loads(head)
        if first != after:
            return None
        return Stretch(first, last, at, [(Group(*group), figures) for group, figures in json.loads(body)])
    except (ValueError, TypeError):
        return None


def _keep(journal: Journal, number: int, stretch: Stretch) -> None:
    """Where that cannot be done now, it is made again next time."""
    head = json.dumps([stretch.after, stretch.last, stretch.at])
    body = json.dumps(stretch.sums, ensure_ascii=False, separators=(",", ":"))
    with suppress(Busy, JournalUnavailable):
        journal.save_note(f"{NAME}{number}", f"{head}\n{body}")
