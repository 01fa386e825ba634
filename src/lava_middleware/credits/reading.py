"""This file knows what an operator reads of a whole ledger: usage by day, model, customer and more, and the margin."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, cast

from ..context import checked_id
from .asking import in_thread, ledger_errors
from .usage_report import UsageLine, usage_lines

if TYPE_CHECKING:
    from ..lava import Lava


class Reading:
    """The part of Lava that adds up what was used."""

    def usage(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        by: Sequence[str] = ("day", "model"),
        customer: str | None = None,
        zone: str = "UTC",
        rebuild: bool = False,
    ) -> list[UsageLine]:
        """Usage with its cost, charge and margin, a line for each group, sorted; of all customers, or of one.

        `by`: any of hour, day, month (of the calendar in `zone`), customer, model, provider, meter, user, key, run and
        tag:NAME. From `since` up to before `until` (datetimes with a time zone), else everything. It reads the journal
        from `since` on in short chunks. By period (in UTC), customer, model, provider and meter, what the past adds up
        to is kept beside the journal, so only what is new is read; `rebuild=True` makes that anew, too.

        >>> lava.report("acme", meter="pages", quantity=12, request_id="doc-77", user="u1").charge
        Amount.of("0.12")
        >>> for line in lava.usage(by=("customer", "user")):
        ...     line.by, line.usage, line.charge, line.margin
        ({'customer': 'acme', 'user': 'u1'}, {'pages': 12}, Amount.of("0.12"), Amount.of("0.12"))

        Raises ValueError, TermsError (no such zone), IdError, LedgerUnavailable.
        """
        checked = None if customer is None else checked_id(customer)
        with ledger_errors():
            journal = cast("Lava", self).journal
            return usage_lines(journal, since=since, until=until, by=by, customer=checked, zone=zone, rebuild=rebuild)

    ausage = in_thread(usage)

    def margin(
        self, *, since: datetime | None = None, until: datetime | None = None, customer: str | None = None
    ) -> UsageLine:
        """All of it in one line: what it cost you, what customers were charged, and what is left.

        >>> lava.report("acme", model="gpt-4o", provider="openai", usage={"input": 4_000}, request_id="batch-9").charge
        Amount.of("0.01")
        >>> all_of_it = lava.margin(customer="acme")
        >>> all_of_it.cost, all_of_it.charge, all_of_it.margin
        (Amount.of("0.01"), Amount.of("0.01"), Amount.of("0.00"))
        """
        (line,) = self.usage(since=since, until=until, by=(), customer=customer)
        return line

    amargin = in_thread(margin)
