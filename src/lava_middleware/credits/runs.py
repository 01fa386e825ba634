"""This file knows a run: a piece of work (an agent loop) with a budget that no number of its calls can exceed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .. import context
from ..context import Override, Payer, checked_id, inside
from ..core.account import Account
from ..core.account import Run as RunInAccount
from ..core.commands import EndRun, StartRun
from ..core.money import Amount, Ticks, ticks_of
from ..errors import ConfigurationError, NotBound, refused
from ..ids import new_id
from .asking import in_thread, ledger_errors

if TYPE_CHECKING:
    from ..lava import Lava
    from ..ledger.ticket import Receipt, Ticket

T = TypeVar("T")

EXPIRES_S = 86_400


@dataclass(frozen=True, slots=True)
class RunState:
    """What a run has used so far, calls of the runs inside it included."""

    spent: Amount
    held: Amount
    """By its calls that are open now."""
    calls: int
    left: Amount | None
    """Of its budget; None: it has none of its own."""
    open: bool
    """False: it has ended or expired, and its records say what it came to."""


class Run:
    """A run: `with`, `async with`, or a decorator. Its `id` resumes it in another process.

    Entering it starts it (or goes on with it, if it is open under that id). Leaving it ends it; left by an exception it
    stays open until it expires if it was given an id, so that it can be resumed.
    """

    def __init__(
        self,
        name: str,
        *,
        lava: Lava | None,
        customer: str | None,
        credits: object,
        max_calls: int | None,
        id: str | None,
        expires_s: float,
        reserve: bool,
    ) -> None:
        checked_id(name, "run", longest=64)
        self.id = checked_id(id, "run id") if id is not None else f"{name}-{new_id()}"
        self._lava = lava
        self._customer = None if customer is None else checked_id(customer)
        self._budget = None if credits is None else ticks_of(credits, what="credits")
        if self._budget is not None and self._budget < 0:
            raise ConfigurationError("a run's credits must be at least 0")
        if max_calls is not None and (isinstance(max_calls, bool) or not isinstance(max_calls, int) or max_calls < 0):
            raise ConfigurationError("a run's max_calls must be a whole number of at least 0")
        if isinstance(expires_s, bool) or not 0 < expires_s <= 366 * 86_400:
            raise ConfigurationError("a run's expires_s must be above 0 and at most a year of seconds")
        if reserve and self._budget is None:
            raise ConfigurationError("a run that reserves its budget has one: give it credits")
        self._calls_most = max_calls
        self._expires_s = expires_s
        self._reserve = reserve
        self._resumable = id is not None
        self._frame: Override | None = None

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    # Entering and leaving ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        self._start().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ticket = self._leave(kind, error, trace)
        if ticket is not None:
            with suppress(Exception):  # it ends at its expiry then
                ticket.wait()

    async def __aenter__(self) -> Run:
        (await self._astart()).__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ticket = self._leave(kind, error, trace)
        if ticket is not None:
            with suppress(Exception):
                await ticket

    def _start(self) -> Override:
        lava, payer = self._begin()
        with ledger_errors():
            receipt = self._ask(lava, payer).wait()
        return self._started(lava, payer, receipt)

    async def _astart(self) -> Override:
        lava, payer = self._begin()
        with ledger_errors():
            receipt = await self._ask(lava, payer)
        return self._started(lava, payer, receipt)

    def _begin(self) -> tuple[Lava, Payer]:
        lava, payer = self._payer()
        lava.first_seen(payer.customer)
        return lava, payer

    def _payer(self) -> tuple[Lava, Payer]:
        """Who pays for it here: its own customer, else whoever pays where it is entered."""
        if self._frame is not None:
            raise ConfigurationError("a run is entered once; start another, or resume this one by its id")
        lava = self._lava or context.acting()
        if lava is None:
            raise ConfigurationError("no Lava acts here: use lava.run(...), or lava.instrument() first")
        here = context.payer()
        if self._customer is None:
            if not isinstance(here, Payer):
                raise NotBound()
            return lava, replace(here, lava=lava)
        if isinstance(here, Payer) and here.customer == self._customer:
            return lava, replace(here, lava=lava)
        return lava, Payer(self._customer, lava=lava)

    def _ask(self, lava: Lava, payer: Payer) -> Ticket:
        parent = payer.runs[-1] if payer.runs else ""
        if parent and self._reserve:
            raise ConfigurationError("only an outermost run can reserve its budget; runs inside it share what it has")
        lasts = int(self._expires_s * 1_000_000)
        expires = lava.clock() + lasts
        command = StartRun(self.id, self._budget, self._calls_most, expires, parent, self._reserve, lasts)
        wait_s = lava.settings.hold_wait_s if self._reserve and lava.settings.mode == "enforce" else 0.0
        return lava.ledger.apply(payer.customer, command, wait_s=wait_s)

    def _started(self, lava: Lava, payer: Payer, receipt: Receipt) -> Override:
        """What is entered wherever code of this run goes on."""
        runs = (*payer.runs, self.id)
        if receipt.declined is not None:
            if lava.settings.mode == "enforce":
                raise refused(lava.denied(payer.customer, receipt.declined))
            runs = payer.runs  # observe refuses nothing: its calls are not held to what could not be started
        self._lava, self._customer = lava, payer.customer
        self._frame = Override(replace(payer, runs=runs))
        return self._frame

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Ticket | None:
        assert self._frame is not None
        self._frame.__exit__(kind, error, trace)
        return None if error is not None and self._resumable else self._ended()

    def _ended(self) -> Ticket:
        assert self._lava is not None
        assert self._customer is not None
        return self._lava.ledger.apply(self._customer, EndRun(self.id))

    def __call__(self, function: Callable[..., T]) -> Callable[..., T]:
        """As a decorator: each call of the function is a run of its own."""
        made: Callable[..., Any]
        if iscoroutinefunction(function):
            made = self._coroutine(function)
        elif isasyncgenfunction(function):
            made = self._async_generator(function)
        elif isgeneratorfunction(function):
            made = self._generator(function)
        else:
            made = inside(cast("Callable[[], Any]", self._another), function)
        return cast("Callable[..., T]", wraps(function)(made))

    def _coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            async with self._another():
                return await function(*args, **kwargs)

        return run

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """One run from the first step to the last; between them the caller's code is not a part of it."""

        def run(*args: Any, **kwargs: Any) -> Any:
            another = self._another()
            frame = another._start()
            try:
                return (yield from inside(lambda: frame, function)(*args, **kwargs))
            finally:
                another._ended()  # not waited for: the collector may be what closes a generator (T35)

        return run

    def _async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            another = self._another()
            frame = await another._astart()
            steps = inside(lambda: frame, function)(*args, **kwargs)
            try:
                item = await anext(steps)
                while True:
                    try:
                        sent = yield item
                    except GeneratorExit:
                        await steps.aclose()
                        raise
                    except BaseException as error:
                        item = await steps.athrow(error)
                    else:
                        item = await steps.asend(sent)
            except StopAsyncIteration:
                return
            finally:
                another._ended()

        return run

    def _another(self) -> Run:
        name = self.id.rpartition("-")[0] or self.id
        return Run(
            name,
            lava=self._lava,
            customer=self._customer,
            credits=None if self._budget is None else Amount(self._budget),
            max_calls=self._calls_most,
            id=None,
            expires_s=self._expires_s,
            reserve=self._reserve,
        )

    # What it came to --------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """End it now: what it had reserved is free again, its open calls end by themselves."""
        lava, customer = self._known()
        with ledger_errors():
            lava.ledger.apply(customer, EndRun(self.id)).wait()

    aend = in_thread(end)

    def state(self) -> RunState:
        """What it has used so far, as the ledger says. Of one that has ended: what its records come to, with all
        corrections, those made since as well."""
        lava, customer = self._known()
        with ledger_errors():
            run = lava.ledger.ask(customer, self._found)
        if run is not None:
            left = None if run.budget is None else Amount(run.budget - run.spent - run.held)
            return RunState(Amount(run.spent), Amount(run.held), run.calls, left, True)
        calls: dict[str, Ticks] = {}
        corrections: list[tuple[str, Ticks]] = []
        for record in lava.records(customer):
            if adjusts := record.facts.get("adjusts"):
                corrections.append((adjusts, record.charge.ticks))
            elif self.id in record.facts.get("runs", ()):
                calls[record.id] = record.charge.ticks
        spent = sum(calls.values()) + sum(ticks for of, ticks in corrections if of in calls)
        return RunState(Amount(spent), Amount(0), len(calls), None, False)

    astate = in_thread(state)

    def _found(self, account: Account) -> RunInAccount | None:
        run = account.runs.get(self.id)
        return None if run is None else replace(run)

    def _known(self) -> tuple[Lava, str]:
        if self._lava is None or self._customer is None:
            raise ConfigurationError("this run was never entered, and no customer= was named for it")
        return self._lava, self._customer


def run(
    name: str,
    *,
    credits: object = None,
    max_calls: int | None = None,
    customer: str | None = None,
    id: str | None = None,
    expires_s: float = EXPIRES_S,
    reserve: bool = False,
    lava: Lava | None = None,
) -> Run:
    """Ring-fence a budget: the calls made inside can together never be charged more than `credits`.

    >>> with lava.charge_to("acme"), run("research", credits="0.50", max_calls=40) as work:
    ...     work.state().calls
    0

    `with`, `async with`, or a decorator: then each call of the function is a run. It caps and reserves nothing;
    `reserve=True` also holds the whole budget until the end (outermost runs only). Runs nest, and parallel calls may
    share one. `customer` is who pays, else whoever pays where it is entered. `id` makes it resumable, in any process,
    with what was left; it expires after `expires_s` seconds.

    A call that does not fit is refused with `limit_reached`, naming the run; one in a run that has ended with
    `run_ended`. Entering raises NotBound where nobody pays, RunEnded for an id that has ended, InsufficientCredit or
    CreditOnHold where `reserve` finds too little, Conflict for an id with another budget or `reserve`, AmountError,
    LedgerUnavailable.
    """
    return Run(
        name,
        lava=lava,
        customer=customer,
        credits=credits,
        max_calls=max_calls,
        id=id,
        expires_s=expires_s,
        reserve=reserve,
    )
