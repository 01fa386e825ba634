"""This file knows how to add up usage records: by day, customer, model, meter, user, tag, with cost, charge and margin.

It is a projection of the journal, read in short chunks (T47) from the entry on where `since` begins. By day, customer,
model, provider and meter the past is not read anew: what its whole stretches add up to is kept beside the journal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any, Final

from ..core.events import Adjusted, Reported, Settled, decode
from ..core.money import Amount, Ticks, decimal_text
from ..core.record import REPORT, Record, record_of
from ..core.windows import zone_of
from ..ledger.journal import Entry, Journal
from .usage_stretches import HOUR_US, Group, Stretch, followed, stretches

CHUNK: Final = 500
MARGIN_US: Final = 3_600_000_000
"""How far the clocks of processes that write one journal may be apart: reading begins so much before `since`."""
KNOWN_MOST: Final = 1_000
PERIODS: Final = {"hour": "%Y-%m-%dT%H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}
SCOPES: Final = ("customer", "model", "provider", "meter", "user", "key", "run")
DIMENSIONS: Final = (*PERIODS, *SCOPES)
"""And tag:NAME for the value of a tag. What a record does not say is an empty string."""

_KEPT: Final = {*PERIODS, "customer", "model", "provider", "meter"}
_BILLS: Final = (Settled.kind, Reported.kind, Adjusted.kind)


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What the records of one group add up to."""

    by: Mapping[str, str]
    """Dimension → value, in the order that was asked for."""
    records: int
    """Calls and reports. A correction is none, but counts in the sums."""
    usage: Mapping[str, int]
    """Unit → quantity: the disjoint parts of tokens, and whatever else was reported."""
    cost: Amount
    """What it cost the operator."""
    charge: Amount
    """What customers were charged."""

    @property
    def margin(self) -> Amount:
        """charge − cost."""
        return Amount(self.charge.ticks - self.cost.ticks)

    @property
    def margin_share(self) -> Decimal | None:
        """Of the charge, with four decimals; None where nothing was charged."""
        if not self.charge.ticks:
            return None
        return (Decimal(self.margin.ticks) / Decimal(self.charge.ticks)).quantize(Decimal("0.0001"))

    def to_dict(self) -> dict[str, Any]:
        """For programs: money as decimal strings."""
        share = self.margin_share
        return {
            **self.by,
            "records": self.records,
            "usage": dict(self.usage),
            "cost": decimal_text(self.cost.ticks),
            "charge": decimal_text(self.charge.ticks),
            "margin": decimal_text(self.margin.ticks),
            "margin_share": None if share is None else str(share),
        }


class _Sum:
    __slots__ = ("charge", "cost", "records", "usage")

    def __init__(self) -> None:
        self.records = 0
        self.usage: dict[str, int] = {}
        self.cost: Ticks = 0
        self.charge: Ticks = 0

    def count(self, usage: Mapping[str, int], sign: int = 1) -> None:
        for unit, quantity in usage.items():
            self.usage[unit] = self.usage.get(unit, 0) + sign * quantity

    def line(self, by: Mapping[str, str]) -> UsageLine:
        usage = {unit: quantity for unit, quantity in sorted(self.usage.items()) if quantity}
        return UsageLine(by, self.records, usage, Amount(self.cost), Amount(self.charge))


def usage_lines(
    journal: Journal,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    by: Sequence[str] = ("day", "model"),
    customer: str | None = None,
    zone: str = "UTC",
    rebuild: bool = False,
) -> list[UsageLine]:
    """The sums of the records from `since` up to before `until`, a line for each group, sorted.

    A record belongs to the time of its entry, what was reported after the fact to the time it was said to have
    happened, a correction to the time it was made and to the model, meter, user and tags of what it corrects.
    Raises ValueError for a dimension that there is not, or a moment without a time zone; TermsError for a zone.
    """
    wanted = [checked_dimension(name) for name in ([by] if isinstance(by, str) else by)]
    clock = zone_of(zone)
    first, last = _microseconds(since, "since"), _microseconds(until, "until")
    adding = _Adding(journal, wanted, clock, first, last)
    if customer is not None:
        adding.entries(_of_one(journal, customer, first))
    elif set(wanted) <= _KEPT and (clock is UTC or not set(wanted) & set(PERIODS)):
        adding.stretches(rebuild)
    else:
        adding.entries(_of_all(journal, first))
    sums = adding.sums
    if not wanted and not sums:
        sums[()] = _Sum()
    return [sums[key].line(dict(zip(wanted, key, strict=True))) for key in sorted(sums)]


class _Adding:
    """The sums of one question, as they grow."""

    def __init__(
        self, journal: Journal, wanted: Sequence[str], clock: tzinfo, first: int | None, last: int | None
    ) -> None:
        self.sums: dict[tuple[str, ...], _Sum] = {}
        self._journal = journal
        self._wanted = wanted
        self._clock = clock
        self._first = first
        self._last = last
        self._originals = _Originals(journal)

    def entries(self, entries: Iterable[Entry]) -> None:
        for record, at, of in self._records(entries):
            if (self._first is None or at >= self._first) and (self._last is None or at < self._last):
                key = tuple(_value(name, record, of or record.facts, at, self._clock) for name in self._wanted)
                _add(self.sums.setdefault(key, _Sum()), record, of)

    def stretches(self, rebuild: bool) -> None:
        """All customers' entries, by whole stretches where they lie within the time that is asked about."""
        since = None if self._first is None else self._first - MARGIN_US
        after: int | None = None
        for one in stretches(self._journal, self._groups, since=since, rebuild=rebuild, chunk=CHUNK):
            after = one.last
            begin, end = one.hours()
            if (self._first is None or begin >= self._first) and (self._last is None or end <= self._last):
                self._add_stretch(one)
            elif (self._first is None or end > self._first) and (self._last is None or begin < self._last):
                self.entries(_up_to(self._journal, one.after, one.last))
        self.entries(_of_all(self._journal, self._first) if after is None else _from(self._journal, after))

    def _add_stretch(self, one: Stretch) -> None:
        for group, (records, cost, charge, usage) in one.sums:
            key = tuple(_told(name, group) for name in self._wanted)
            sums = self.sums.setdefault(key, _Sum())
            sums.records += records
            sums.cost += cost
            sums.charge += charge
            sums.count(usage)

    def _groups(self, entries: Sequence[Entry]) -> list[tuple[Group, list[Any]]]:
        sums: dict[Group, _Sum] = {}
        for record, at, of in self._records(entries):
            named = [_value(name, record, of or record.facts, at, UTC) for name in Group._fields[1:]]
            _add(sums.setdefault(Group(at // HOUR_US, *named), _Sum()), record, of)
        return [(group, [one.records, one.cost, one.charge, one.usage]) for group, one in sums.items()]

    def _records(self, entries: Iterable[Entry]) -> Iterator[tuple[Record, int, Mapping[str, Any]]]:
        """(record, when it happened, facts of what it corrects)."""
        for entry in entries:
            if entry.kind in _BILLS:
                record = _record(entry)
                yield record, _when(record), self._originals.find(entry, record) if record.kind == "adjusted" else {}


def checked_dimension(name: str) -> str:
    """Raises ValueError."""
    if name in DIMENSIONS or (name.startswith("tag:") and len(name) > 4):
        return name
    raise ValueError(f"usage is added up by {', '.join(DIMENSIONS)} and tag:NAME")


# Reading --------------------------------------------------------------------------------------------------------------


def _of_all(journal: Journal, first: int | None) -> Iterator[Entry]:
    return _from(journal, 0 if first is None else _seq_before(journal, first - MARGIN_US))


def _up_to(journal: Journal, after: int, last: int) -> Iterator[Entry]:
    for entry in _from(journal, after):
        yield entry
        if entry.seq == last:
            return


def _from(journal: Journal, after: int) -> Iterator[Entry]:
    return followed(journal, after, CHUNK)


def _seq_before(journal: Journal, moment: int) -> int:
    """A seq such that what was written at that moment or later has a greater one, found in a few short reads."""
    low, high = 0, journal.last_seq()
    while low < high:
        middle = (low + high) // 2
        entries = journal.read(middle, 1)
        if not entries or entries[0].at >= moment:
            high = middle
        else:
            low = entries[0].seq
    return low


def _of_one(journal: Journal, customer: str, first: int | None) -> Iterator[Entry]:
    before: int | None = None
    while page := journal.entries(customer, before=before, limit=CHUNK):
        for entry in page:
            if first is not None and entry.at < first:
                return  # nothing happens after its own entry
            yield entry
        before = page[-1].version


def _record(entry: Entry) -> Record:
    record = record_of(
        decode(entry.kind, entry.event),
        entry.record,
        customer=entry.account,
        at=entry.at,
        seq=entry.seq,
        balance_after=entry.balance_after,
    )
    assert record is not None, "every entry of these kinds bills"
    return record


class _Originals:
    """What corrections correct. A few are kept: they often come together."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: dict[tuple[str, str], Mapping[str, Any]] = {}

    def find(self, entry: Entry, record: Record) -> Mapping[str, Any]:
        """The facts of the corrected record; none where it is not in this ledger."""
        hold = str(record.facts["adjusts"])
        known = self._known.get((entry.account, hold))
        if known is None:
            found = self._journal.find(entry.account, [f"end:{hold}", f"report:{hold}"])
            known = next((json.loads(one.record) for one in found if one.record), {})
            if len(self._known) >= KNOWN_MOST:
                self._known.clear()
            self._known[entry.account, hold] = known
        return known


# Adding up ------------------------------------------------------------------------------------------------------------


def _when(record: Record) -> int:
    """Microseconds since 1970 of what happened."""
    if record.kind == "reported" and record.facts.get("operation") == REPORT:
        return int(record.facts.get("started") or record.at)
    return record.at


def _value(name: str, record: Record, facts: Mapping[str, Any], at: int, clock: tzinfo) -> str:
    if name in PERIODS:
        return _period(name, at, clock)
    if name == "customer":
        return record.customer
    if name == "model":
        return str(facts.get("response_model") or facts.get("model", ""))
    if name == "run":
        return str(next(iter(facts.get("runs", ())), ""))
    if name.startswith("tag:"):
        return str(dict(facts.get("tags", ())).get(name[4:], ""))
    return str(facts.get(name, ""))


def _period(name: str, at: int, clock: tzinfo) -> str:
    return datetime.fromtimestamp(at // 1_000_000, UTC).astimezone(clock).strftime(PERIODS[name])


def _told(name: str, group: Group) -> str:
    if name in PERIODS:
        return _period(name, group.hour * HOUR_US, UTC)
    return str(getattr(group, name))


def _add(sums: _Sum, record: Record, of: Mapping[str, Any]) -> None:
    """`of`: the facts of what a correction corrects. One that brings figures of its own (an owner that was taken for
    dead says what really happened) puts them in the place of those."""
    facts = record.facts
    sums.charge += record.charge.ticks
    sums.cost += record.cost.ticks
    sums.records += record.kind != "adjusted"
    for usage in _usages(facts):
        sums.count(usage)
    if record.kind == "adjusted" and facts.get("usage"):
        sums.cost -= of.get("cost", 0)
        for usage in _usages(of):
            sums.count(usage, -1)


def _usages(facts: Mapping[str, Any]) -> Iterable[Mapping[str, int]]:
    yield facts.get("usage", {})
    yield facts.get("units", {})
    for _, usage in facts.get("others", ()):
        yield usage


def _microseconds(moment: datetime | None, name: str) -> int | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ValueError(f"{name} must be a datetime with a time zone")
    return int(moment.timestamp() * 1_000_000)
