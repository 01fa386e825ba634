"""This file knows how to bill what no transport can see: reported after the fact, or reserved first."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from json import loads
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from ..context import Payer, checked_id
from ..core.commands import Adjust, Authorize, Report, Settle, Void
from ..core.decide import Conflict, Declined
from ..core.keys import key_of
from ..core.meter import Meter
from ..core.money import AmountError, Ticks, ticks_of, within_bounds
from ..core.rating import Rating, rate
from ..core.record import Facts, Record, record_of, scopes_of
from ..core.usage import UNITS, Usage
from ..errors import ConfigurationError, refused
from ..providers.table import ROWS
from .asking import in_thread, ledger_errors

if TYPE_CHECKING:
    from ..lava import Lava
    from ..ledger.ticket import Receipt, Ticket

QUANTITY_MOST = 10**15


class Work(NamedTuple):
    """What is billed, looked up and priced."""

    facts: Facts
    charge: Ticks
    usage: Usage
    units: Mapping[str, int]
    meter: Meter
    metered: int


@dataclass(frozen=True, slots=True)
class Quantities:
    """What was used, as the caller says it. One of: quantity of a meter, charge, usage of a model."""

    meter: str | None = None
    quantity: int | None = None
    unit: str | None = None
    charge: object = None
    usage: Mapping[str, int] | None = None
    model: str = ""
    provider: str = ""
    units: Mapping[str, int] | None = None


def work_of(lava: Lava, payer: Payer, said: Quantities, *, id: str, when: int, operation: str) -> Work:
    """Price it. Raises ConfigurationError for what cannot be priced, AmountError for a figure that cannot be meant."""
    meter = _meter(lava, said)
    units = {_unit(name): _quantity(value, name) for name, value in (said.units or {}).items()}
    usage = Usage({_part(name): _quantity(value, name) for name, value in (said.usage or {}).items()})
    if said.quantity is not None:
        unit = _unit(said.unit or _only_unit(meter))
        if unit in UNITS:
            usage = usage + Usage({unit: _quantity(said.quantity, unit)})
        else:
            units[unit] = _quantity(said.quantity, unit)
    facts = Facts(
        id=id,
        provider=said.provider,
        model=said.model[:200],
        operation=operation,
        user=payer.user or "",
        key=payer.key or "",
        meter=said.meter or meter.name,
        tags=tuple(payer.tags),
        runs=payer.runs,
        request_id=payer.binding.request_id if payer.binding is not None else "",
        basis_of_customer=payer.basis,
        started=when,
        basis="reported",
        usage=dict(usage),
        units=units,
        mode="observe" if lava.settings.mode == "observe" else "",
    )
    if said.charge is not None:
        facts.charge = charge = ticks_of(said.charge, what="charge")
        if charge < 0:
            raise AmountError("a charge must be at least 0; give back with lava.adjust()")
        return Work(facts, charge, usage, units, _FREE, 0)
    rating = _rating(lava, said, meter, usage)
    charged = meter.charge(rating, usage, units)
    metered = meter.counted(usage, units)
    if not charged.lines and not metered and not rating.lines and meter.bills and (usage or any(units.values())):
        raise ConfigurationError("nothing in the meter prices what was reported: name its unit, or a charge")
    facts.cost, facts.cost_basis, facts.lines = rating.cost, rating.basis, rating.lines
    facts.charged, facts.charge = charged.lines, charged.ticks
    facts.markup = "" if meter.cost_times is None else str(meter.cost_times)
    return Work(facts, charged.ticks, usage, units, meter, metered)


_FREE = Meter("", bills=False)
"""Where the charge is said outright."""


def _meter(lava: Lava, said: Quantities) -> Meter:
    if said.meter is not None:
        checked_id(said.meter, "meter", longest=64)
        named = lava.meters.named(said.meter)
        if named is not None:
            return named
        if said.charge is None and said.usage is None:
            raise ConfigurationError("no meter of that name is configured, so there is no price: add it to meters=")
    if said.charge is None and said.usage is None and said.quantity is None:
        raise ConfigurationError("nothing is reported: give a quantity of a meter, a charge, or the usage of a model")
    return lava.meters.choose(said.meter or "", said.model, said.provider, "")


def _only_unit(meter: Meter) -> str:
    """The unit of a meter that prices just one."""
    units = [meter.unit] if meter.unit else list(meter.rates)
    if len(units) == 1:
        return units[0]
    raise ConfigurationError("the meter does not price exactly one unit: say which with unit=")


def _rating(lava: Lava, said: Quantities, meter: Meter, usage: Usage) -> Rating:
    """What it cost, where a model is named."""
    if not said.model:
        return Rating(0, basis="unknown")
    row = ROWS.get(said.provider)
    lists = (said.provider, *(row.prices_as if row is not None else ()))
    price = lava.book.find(lists, said.model)
    if price is None and meter.needs_cost:
        raise ConfigurationError("no price is known for this model at this provider: give it one with prices=")
    return rate(price, usage)


def _quantity(value: object, unit: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= QUANTITY_MOST:
        raise AmountError(f"the quantity of {unit[:40]!r} must be a whole number from 0 to 10^15")
    return value


def _unit(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 40 or not name.isprintable():
        raise AmountError("a unit must be a name of 1 to 40 printable characters")
    if name in ("credits", "open_calls"):
        raise AmountError(f"{name} are counted by the ledger itself: report them under a unit of another name")
    return name


def _part(name: object) -> str:
    if name not in UNITS:
        raise AmountError(f"usage takes the units {', '.join(UNITS)}; give other quantities in units=")
    return str(name)


def moment(when: datetime | None, now: int) -> int:
    """Microseconds since 1970 of an event; the present where none is given. The future is refused, and what lies before
    1970."""
    if when is None:
        return now
    if when.tzinfo is None:
        raise ConfigurationError("when must be a datetime with a time zone")
    at = int(when.timestamp() * 1_000_000)
    if at < 0:
        raise ConfigurationError("when lies before 1970")
    if at > now + 300_000_000:
        raise ConfigurationError("when lies in the future")
    return min(at, now)


def report_of(lava: Lava, work: Work, when: int) -> tuple[Report, str]:
    """The command and its record."""
    facts = work.facts
    facts.ended = when
    return (
        Report(
            facts.id,
            work.charge,
            work.usage.input_tokens,
            work.usage.output_tokens,
            forgive=lava.settings.mode == "observe",
            scopes=scopes_of(facts),
            units=tuple(work.units.items()),
            tiers=work.meter.tiers if work.metered else None,
            metered=work.metered,
            requests=work.units.get("requests", 1),
            when=when,
        ),
        facts.to_json(),
    )


def record_from(lava: Lava, receipt: Receipt, text: str, customer: str, at: int) -> Record | None:
    """The record that a receipt stands for; None: it is kept and posted when the ledger is back.

    Of what was asked before it is the one that was written then.
    """
    if receipt.event is None:
        return None
    key = key_of(receipt.event)
    for entry in lava.journal.find(customer, [key]) if receipt.repeated and key is not None else ():
        return record_of(
            receipt.event,
            entry.record,
            customer=customer,
            at=entry.at,
            seq=entry.seq,
            balance_after=entry.balance_after,
        )
    return record_of(receipt.event, text, customer=customer, at=at, seq=receipt.seq, balance_after=receipt.available)


def adjustment(record: str, credits: object, key: str, reason: str) -> Adjust:
    """Raises AmountError, IdError."""
    checked_id(record, "record", longest=600)
    checked_id(key, "key")
    if len(reason) > 200 or not reason.isprintable():
        raise AmountError("a reason must be at most 200 printable characters")
    ticks = ticks_of(credits, what="credits")
    if not ticks:
        raise AmountError("an adjustment of nothing")
    return Adjust(key, record, ticks, reason)


# Reserving ------------------------------------------------------------------------------------------------------------


class Reservation:
    """Credit that is held for work which is about to be done: `with` or `async with`; settle() says what it came to.

    Left without settle() it is settled as it was reserved; left by an exception, nothing is charged. If the process
    dies, it is settled as it was reserved, like any call whose outcome is unknown.
    """

    def __init__(self, lava: Lava, payer: Payer, said: Quantities, id: str) -> None:
        self.id = id
        self._lava = lava
        self._payer = payer
        self._said = said
        self._unheld = False
        self._open = False
        self._text = ""

    def __repr__(self) -> str:
        return f"<reservation {self.id}{' open' if self._open else ''}>"

    def __enter__(self) -> Reservation:
        with ledger_errors():
            receipt = self._ask().wait()
            if receipt.repeated:
                self._check_repetition()
        self._held(receipt)
        return self

    async def __aenter__(self) -> Reservation:
        with ledger_errors():
            receipt = await self._ask()
            if receipt.repeated:
                await self._acheck_repetition()
        self._held(receipt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._end_by(error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._end_by(error)

    def settle(
        self, quantity: int | None = None, *, charge: object = None, usage: Mapping[str, int] | None = None
    ) -> None:
        """Charge what was really used: a quantity of the same meter, a charge, or the usage of the same model.

        Never waits. More than was reserved is an overrun on the record. Once; raises ConfigurationError after that.
        """
        if not self._open:
            raise ConfigurationError("this reservation is not open: enter it with `with`, and settle it once")
        said = replace(self._said, quantity=quantity, charge=charge, usage=usage)
        work = self._work(self._said if quantity is None and charge is None and usage is None else said)
        self._open = False
        work.facts.ended = self._lava.clock()
        work.facts.ending = "finished"
        if self._unheld:  # observe let it go on all the same
            command, text = report_of(self._lava, work, work.facts.ended)
            self._lava.post(self._payer.customer, command, text, binding=self._payer.binding)
            return
        settings = self._lava.settings
        settle = Settle(
            self.id,
            work.charge,
            work.usage.input_tokens,
            work.usage.output_tokens,
            cause="undercounted",
            absorb=settings.overrun == "absorb",
            forgive=settings.mode == "observe",
            units=tuple(work.units.items()),
            tiers=work.meter.tiers if work.metered else None,
            metered=work.metered,
        )
        self._lava.post(self._payer.customer, settle, work.facts.to_json(), binding=self._payer.binding)

    def void(self) -> None:
        """Nothing was done: give it back."""
        if self._open:
            self._open = False
            if not self._unheld:
                self._lava.post(self._payer.customer, Void(self.id, "void"), None)

    def _end_by(self, error: BaseException | None) -> None:
        if error is None:
            self.settle()
            return
        with suppress(Exception):
            self.void()

    def _work(self, said: Quantities) -> Work:
        return work_of(self._lava, self._payer, said, id=self.id, when=self._lava.clock(), operation="reserve")

    def _ask(self) -> Ticket:
        work = self._work(self._said)
        self._text = replace(work.facts, metered=work.metered).to_json()
        tiers = work.meter.tiers if work.metered else None
        command = Authorize(
            hold=self.id,
            owner=self._lava.ledger.owner,
            fixed=within_bounds(work.charge),
            input_tokens=work.usage.input_tokens,
            output_price=0,
            output_tokens=work.usage.output_tokens,
            output_tokens_min=work.usage.output_tokens,
            expected=work.charge,
            scopes=scopes_of(work.facts),
            units=tuple(work.units.items()),
            tiers=tiers,
            metered=work.metered,
            metered_expected=work.metered,
        )
        settings = self._lava.settings
        self._lava.first_seen(self._payer.customer)
        wait_s = settings.hold_wait_s if settings.mode == "enforce" else 0.0
        return self._lava.ask(self._payer.customer, command, record=self._text, wait_s=wait_s)

    def _check_repetition(self) -> None:
        """The same request_id may reserve again while that is open, for the same. Raises Conflict."""
        lava, customer = self._lava, self._payer.customer
        if not lava.ledger.ask(customer, lambda account: self.id in account.holds):
            raise Conflict("what was reserved under this request_id has ended: what is done anew needs another one")
        if any(
            _said_in(one.record) != _said_in(self._text) for one in lava.journal.find(customer, [f"hold:{self.id}"])
        ):
            raise Conflict("this request_id is in use for something else that is reserved: give each its own")

    _acheck_repetition = in_thread(_check_repetition)

    def _held(self, receipt: Receipt) -> None:
        declined: Declined | None = receipt.declined
        if declined is None:
            self._open = True
            return
        if self._lava.settings.mode == "observe":
            self._open = self._unheld = True
            self._lava.count_passed(f"would_refuse:{declined.reason}", "")
            return
        denied = self._lava.denied(self._payer.customer, declined)
        if denied.reason == "request_exceeds_credit":  # its words are of calls
            said = f"{denied.available} credits available, this reservation needs {denied.required}; reserve less, or"
            denied = replace(denied, output_tokens_fit=None, message=f"{said} add credit with lava.grant()")
        self._lava.refused(denied)
        raise refused(denied)


def _said_in(record: str | None) -> dict[str, object]:
    """What a reservation's draft says of what is reserved."""
    draft = loads(record or "{}")
    return {name: draft.get(name) for name in ("provider", "model", "meter", "usage", "units", "charge")}
