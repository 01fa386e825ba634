"""This file knows what a user asks of a ledger beside its calls: quotes, runs, reports, reservations, corrections."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from .. import context
from ..context import Payer, checked_id
from ..core.record import REPORT, Record
from ..errors import NotBound
from .asking import in_thread, ledger_errors, wait_for
from .quotes import Quote, answer, question
from .reporting import Quantities, Reservation, adjustment, moment, record_from, report_of, work_of
from .runs import EXPIRES_S, Run, run

if TYPE_CHECKING:
    from ..lava import Lava


class Bookkeeping:
    """The part of Lava that bills, or asks about, what is not a call through the transport."""

    # Asking first -----------------------------------------------------------------------------------------------------

    def quote(
        self,
        customer: str | None = None,
        *,
        model: str,
        input_tokens: int | None = None,
        text: str | None = None,
        output_tokens_max: int | None = None,
        provider: str | None = None,
        meter: str | None = None,
    ) -> Quote:
        """What a call may cost, whether that is affordable, and how many such steps fit. Nothing is held or written.

        >>> lava.grant("acme", "0.01").available
        Amount.of("0.01")
        >>> quote = lava.quote("acme", model="gpt-4o", input_tokens=1_000, output_tokens_max=100)
        >>> quote.bound, quote.affordable, quote.steps_fit
        (Amount.of("0.0035"), True, 3)

        Of so many `input_tokens`, or of a `text` (weighed as calls are). `output_tokens_max` is the call's cap, else
        the model's own. `customer` is who pays, else whoever pays here; inside a run its budget counts too.
        Raises ConfigurationError for a model without a price, NotBound, LedgerUnavailable.
        """
        lava = cast("Lava", self)
        payer = self._payer(customer, meter=meter)
        asked = question(
            lava,
            payer,
            model=model,
            provider=provider,
            input_tokens=input_tokens,
            text=text,
            output_tokens_max=output_tokens_max,
        )
        wait_for(lava.first_seen(payer.customer))
        with ledger_errors():
            return lava.ledger.ask(payer.customer, lambda account: answer(lava, asked, account, lava.clock()))

    aquote = in_thread(quote)

    def run(
        self,
        name: str,
        *,
        credits: object = None,
        max_calls: int | None = None,
        customer: str | None = None,
        id: str | None = None,
        expires_s: float = EXPIRES_S,
        reserve: bool = False,
    ) -> Run:
        """A ring-fenced budget for a piece of work, on this ledger: see `lava_middleware.run`.

        >>> with lava.run("research", customer="acme", credits="0.50", max_calls=40) as work:
        ...     work.state().left
        Amount.of("0.50")
        """
        return run(
            name,
            credits=credits,
            max_calls=max_calls,
            customer=customer,
            id=id,
            expires_s=expires_s,
            reserve=reserve,
            lava=cast("Lava", self),
        )

    # Everything else --------------------------------------------------------------------------------------------------

    def report(
        self,
        customer: str | None = None,
        *,
        request_id: str,
        meter: str | None = None,
        quantity: int | None = None,
        unit: str | None = None,
        charge: object = None,
        usage: Mapping[str, int] | None = None,
        model: str = "",
        provider: str = "",
        units: Mapping[str, int] | None = None,
        when: datetime | None = None,
        user: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Record | None:
        """Bill something after the fact, once per `request_id`: pages, seconds, storage, a provider that is not seen.

        >>> for _ in range(2):
        ...     lava.report("acme", meter="pages", quantity=12, request_id="doc-77").charge
        Amount.of("0.12")
        Amount.of("0.12")

        A `quantity` of a `meter` that is configured; or a `charge` in credits; or the `usage` of a `model` in token
        units. `units` are further quantities, for limits and rates. `when` is the time of the event, whose windows it
        counts in. Nothing is refused: what no credit covers is debt. The same again changes nothing and gives the first
        record; another charge (of a tiered meter: another quantity) raises Conflict, whatever else is said is not
        compared. None: the ledger is away, and it is posted when that is back.
        Raises ConfigurationError for what has no price, AmountError (also where an account would owe more than 461
        million credits), IdError, NotBound.
        """
        customer, ticket, text, at = self._reported(
            customer,
            Quantities(meter, quantity, unit, charge, usage, model, provider, units),
            request_id,
            when,
            user,
            tags,
        )
        with ledger_errors():
            return record_from(cast("Lava", self), ticket.wait(), text, customer, at)

    areport = in_thread(report)

    def _reported(
        self,
        customer: str | None,
        said: Quantities,
        request_id: str,
        when: datetime | None,
        user: str | None,
        tags: Mapping[str, str] | None,
    ) -> tuple[str, Any, str, int]:
        lava = cast("Lava", self)
        payer = self._payer(customer, user=user, tags=tags)
        checked_id(request_id, "request_id", longest=255)
        at = moment(when, lava.clock())
        command, text = report_of(lava, work_of(lava, payer, said, id=request_id, when=at, operation=REPORT), at)
        lava.first_seen(payer.customer)
        return payer.customer, lava.ledger.apply(payer.customer, command, record=text), text, at

    def reserve(
        self,
        customer: str | None = None,
        *,
        meter: str | None = None,
        quantity: int | None = None,
        unit: str | None = None,
        charge: object = None,
        usage: Mapping[str, int] | None = None,
        model: str = "",
        provider: str = "",
        units: Mapping[str, int] | None = None,
        request_id: str | None = None,
        user: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Reservation:
        """Hold credit for work before it is done, and settle what it really came to: `with lava.reserve(...) as held:`.

        >>> lava.grant("acme", "1").available
        Amount.of("1.00")
        >>> with lava.reserve("acme", meter="pages", quantity=40) as held:
        ...     lava.balance("acme").held
        ...     held.settle(quantity=3)
        Amount.of("0.40")

        Takes what `report` takes, as the most that is expected. Entering raises the refusal (InsufficientCredit,
        LimitReached, ...) where it does not fit; `held.settle(quantity=...)` says what was used. The same `request_id`
        holds once: entering again while that is open, for the same, is no second hold; for something else, or once it
        has ended, it raises Conflict.
        """
        payer = self._payer(customer, user=user, tags=tags)
        if request_id is not None:
            checked_id(request_id, "request_id", longest=255)
        said = Quantities(meter, quantity, unit, charge, usage, model, provider, units)
        lava = cast("Lava", self)
        return Reservation(lava, payer, said, request_id or lava.new_id())

    def adjust(self, customer: str, record_id: str, credits: object, *, key: str, reason: str = "") -> Record:
        """Correct a record: negative `credits` give back ("-0.50"), positive ones charge more. Idempotent by key.

        >>> lava.report("acme", charge="0.12", request_id="doc-77").id
        'doc-77'
        >>> lava.adjust("acme", "doc-77", "-0.02", key="refund-1", reason="two pages were blank").charge
        Amount.of("-0.02")

        What is given back cancels the record's debt first, then goes to the grants it was drawn from, and to a fresh
        grant of the same category where one of those is gone. Never more than the record charged, corrections included.
        It moves credit, and what a run has spent; limits keep what they counted, those of credits too: where a refund
        is to make room under one, raise that with lava.limit().
        Raises Conflict, UnknownHold (no such record), LedgerRuleError (more than it charged), AmountError.
        """
        lava = cast("Lava", self)
        command = adjustment(record_id, credits, key, reason)
        with ledger_errors():
            receipt = lava.ledger.apply(checked_id(customer), command).wait()
            return cast(Record, record_from(lava, receipt, "{}", customer, lava.clock()))

    aadjust = in_thread(adjust)

    def _payer(
        self,
        customer: str | None,
        *,
        meter: str | None = None,
        user: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Payer:
        """Who is meant: a named customer, else whoever pays here. Raises IdError, NotBound."""
        here = context.payer()
        if customer is None:
            if not isinstance(here, Payer):
                raise NotBound()
            named = here
        elif isinstance(here, Payer) and here.customer == customer:
            named = here
        else:
            named = Payer(checked_id(customer))
        return context.with_details(named, meter=meter, user=user, tags=tags)
