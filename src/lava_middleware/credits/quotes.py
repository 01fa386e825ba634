"""This file knows how to say in advance what a call may cost, whether that is affordable, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..core.account import Account
from ..core.admission import with_outer_runs
from ..core.bound import Estimate, family_of, text_tokens
from ..core.commands import Authorize, Scopes
from ..core.counting import Needs, applied, tier_charge, tier_rate
from ..core.decide import Declined, decide
from ..core.events import Held
from ..core.meter import Ceilings, Meter
from ..core.money import Amount, Ticks, charge_ceiling
from ..core.pricing import Price
from ..core.rating import dearest, fees
from ..core.record import OUR_SCOPES
from ..dialects.text import weigh
from ..errors import ConfigurationError
from ..providers.row import Row
from ..providers.rows import ROWS as ALL_ROWS
from ..providers.table import ROWS

if TYPE_CHECKING:
    from ..context import Payer
    from ..lava import Lava

STEPS_MOST = 1_000_000
QUOTED_MOST = 1_000
"""Models whose row and price are kept at hand: to search fifty rows for one takes as long as the rest of a quote."""
UNKNOWN_OUTPUT = 16_384
"""Cap of a model whose maximum no price list names, where the question names none."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What a call may cost. Advisory: only a hold is a promise, and others may spend what is there meanwhile."""

    bound: Amount
    """What the call would hold: never charged more, unless the provider goes beyond what it is asked."""
    expected: Amount
    """What such calls have cost, where any have been settled; else as if the answer were as long as other models' have
    been, and before any call a quarter of the output bound."""
    affordable: bool
    reason: str | None
    """Why not: a reason of a refusal."""
    limit: str | None
    """The limit or run that refuses it."""
    available: Amount
    """What a new call could hold now; unlimited overage apart."""
    output_tokens_fit: int
    """How many output tokens a call with this input could have."""
    steps_fit: int
    """How many such calls, one after another at the expected cost, would be let out."""
    learned: bool
    """The expected cost rests on this model's own settled calls."""
    model: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about, with everything looked up."""

    row: Row
    model: str
    price: Price | None
    meter: Meter
    estimate: Estimate
    input_expected: int
    output_most: int
    output_expected: int
    learned: bool
    scopes: Scopes


def question(
    lava: Lava,
    payer: Payer,
    *,
    model: str,
    provider: str | None,
    input_tokens: int | None,
    text: str | None,
    output_tokens_max: int | None,
) -> Question:
    """Raises ConfigurationError for a question that has no answer: what is missing, and how to give it."""
    if (input_tokens is None) == (text is None):
        raise ConfigurationError("a quote is of so many input_tokens, or of a text: give one of them")
    for value, what in ((input_tokens, "input_tokens"), (output_tokens_max, "output_tokens_max")):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40):
            raise ConfigurationError(f"{what} must be a whole number of tokens")
    row, price = _priced(lava, model, provider)
    meter = lava.meters.choose(payer.meter or "", model, row.name, "")
    if price is None and meter.needs_cost:
        raise ConfigurationError('no price is known for this model: give it one with prices=, see "lava prices MODEL"')
    family = family_of(row.family, model)
    if text is not None:
        estimate = text_tokens(weigh(f"user {text}", parts=1), family)  # as one message of the user's
        estimate = replace(estimate, cautious=estimate.cautious + row.framing, hard=estimate.hard + row.framing)
    else:
        assert input_tokens is not None
        estimate = Estimate(input_tokens, input_tokens, input_tokens)
    most = output_tokens_max if output_tokens_max is not None else (price and price.output_tokens_max) or UNKNOWN_OUTPUT
    lesson = f"{row.name}/{model}"[:200]
    mean = lava.learned.mean_output(lesson)
    usual = mean if mean is not None else lava.learned.usual_output()
    scopes = tuple(
        (name, value)
        for name, value in (
            ("meter", payer.meter or meter.name),
            ("model", model[:200]),
            ("key", payer.key or ""),
            ("user", payer.user or ""),
            *(tag for tag in payer.tags if tag[0] not in OUR_SCOPES),
            *(("run", run) for run in payer.runs),
        )
        if value
    )
    return Question(
        row,
        model,
        price,
        meter,
        estimate,
        lava.learned.input_tokens(lesson, estimate.expected) if text is not None else estimate.expected,
        most,
        most // 4 if usual is None else min(usual, most),
        mean is not None,
        scopes,
    )


def _priced(lava: Lava, model: str, provider: str | None) -> tuple[Row, Price | None]:
    """The provider's row, the dearest where its paths have prices of their own; or the first that knows the model."""
    if not isinstance(model, str) or not model:
        raise ConfigurationError("a quote is of a model: model='gpt-4o-mini'")
    found = lava.quoted.get((model, provider))
    if found is None:
        if len(lava.quoted) >= QUOTED_MOST:
            lava.quoted.clear()
        found = lava.quoted[model, provider] = _priced_anew(lava, model, provider)
    return found


def _priced_anew(lava: Lava, model: str, provider: str | None) -> tuple[Row, Price | None]:
    rows = list(_rows(lava, provider))
    if not rows:
        raise ConfigurationError(f"no provider is called {provider!r}")
    prices = ((row, lava.book.find((row.name, *row.prices_as), model)) for row in rows)
    priced = ((row, price) for row, price in prices if price is not None)
    if provider is None:
        return next(priced, (rows[0], None))
    return max(priced, key=lambda one: sum(dearest(one[1], 0, media=False)), default=(rows[0], None))


def _rows(lava: Lava, provider: str | None) -> Iterator[Row]:
    """The rows of that name, the operator's own first; one of each name where none is named."""
    own = [row for rows in lava.hosts.values() for row in rows]
    if provider is None:
        yield from {**ROWS, **{row.name: row for row in own}}.values()
        return
    yield from (row for row in (*own, *ALL_ROWS) if row.name == provider)


def answer(lava: Lava, asked: Question, account: Account, now: int) -> Quote:
    """The quote, from the account as it is. Nothing is written."""
    rates = _ceilings(asked, asked.estimate.cautious)
    command = _authorization(asked, rates)
    decision = decide(account, command, now)
    declined = decision if isinstance(decision, Declined) else None
    # Where all of it is affordable, all of it fits.
    fewer = decision if declined is None else decide(account, replace(command, output_tokens_min=0), now)
    bound = _most(account, command, now) if declined is not None else _held(decision).amount
    expected = min(_expected(account, asked, rates, now), bound)
    steps = _steps(account, asked, command, now, bound, expected) if declined is None else 0
    return Quote(
        Amount(bound),
        Amount(expected),
        declined is None,
        None if declined is None else declined.reason,
        None if declined is None else declined.limit,
        Amount(account.available(now)),
        0 if isinstance(fewer, Declined) else _held(fewer).output_tokens,
        steps,
        asked.learned,
        model=asked.model,
    )


def _ceilings(asked: Question, input_tokens: int) -> Ceilings:
    costs = ((0, 0), 0)
    if asked.price is not None:
        costs = dearest(asked.price, input_tokens, media=False), fees(asked.price)
    return asked.meter.ceilings(asked.price, *costs, {})


def _authorization(asked: Question, rates: Ceilings) -> Authorize:
    """What such a call would ask the ledger for."""
    meter, estimate = asked.meter, asked.estimate
    tiers = meter.tiers if meter.bills else None
    return Authorize(
        hold="quote",
        owner="quote",
        fixed=charge_ceiling(estimate.cautious, rates.input_rate) + rates.flat,
        input_tokens=estimate.cautious,
        output_price=rates.output_rate,
        output_tokens=asked.output_most,
        output_tokens_min=asked.output_most,
        scopes=asked.scopes,
        hard=(charge_ceiling(estimate.hard, rates.input_rate) + rates.flat, estimate.hard),
        tiers=tiers,
        metered=estimate.cautious if meter.counts_input else 1 if meter.unit == "requests" else 0,
        metered_each=1 if tiers and meter.counts_output else 0,
    )


def _held(decision: object) -> Held:
    assert isinstance(decision, list)
    held = decision[-1]
    assert isinstance(held, Held)
    return held


def _most(account: Account, command: Authorize, now: int) -> Ticks:
    """What a call that is refused would have had to hold."""
    rate = _tier_rate(account, command, command.metered + command.metered_each * command.output_tokens, now)
    each = command.output_price + command.metered_each * rate
    return command.fixed + charge_ceiling(command.metered, rate) + charge_ceiling(command.output_tokens, each)


def _tier_rate(account: Account, command: Authorize, quantity: int, now: int) -> Ticks:
    return 0 if command.tiers is None else tier_rate(account, command.tiers, quantity, now)


def _expected(account: Account, asked: Question, rates: Ceilings, now: int) -> Ticks:
    """What such calls have been charged."""
    meter, inputs, outputs = asked.meter, asked.input_expected, asked.output_expected
    by_tiers = 0
    if meter.tiers is not None and meter.bills:
        counted = (inputs if meter.counts_input else 0) + (outputs if meter.counts_output else 0)
        counted += 1 if meter.unit == "requests" else 0
        by_tiers, _, _ = tier_charge(account, meter.tiers, counted, (), now)
    return charge_ceiling(inputs, rates.input_rate) + charge_ceiling(outputs, rates.output_rate) + rates.flat + by_tiers


def _steps(account: Account, asked: Question, command: Authorize, now: int, bound: Ticks, expected: Ticks) -> int:
    """Calls one after another: each must be able to hold its bound when its turn comes, and costs what is expected.

    Where tiers lie ahead the dearest of them counts from the start: then it is at least so many.
    """
    steps = STEPS_MOST
    scopes = with_outer_runs(account, asked.scopes)
    if command.tiers is not None:
        dearer = _tier_rate(account, command, 2**60, now) - _tier_rate(account, command, 1, now)
        most = command.metered + command.metered_each * asked.output_most
        bound, expected = (ticks + charge_ceiling(most, max(dearer, 0)) for ticks in (bound, expected))
    if bound:
        run = account.reserving(scopes)
        reserved = 0 if run is None else sum(ticks for _, ticks in run.draws)
        steps = min(steps, _turns(reserved + max(account.available(now), -reserved), bound, expected))
    at_most = Needs(command.input_tokens + asked.output_most, bound, 0)
    likely = Needs(asked.input_expected + asked.output_expected, expected, 0)
    for one in applied(account, scopes, now):
        if one.limit.on_reach != "block" or one.limit.unit == "open_calls":
            continue
        unit = one.limit.unit
        if unit == "output_tokens":
            most, usual = asked.output_most, asked.output_expected
        elif unit == "input_tokens":
            most, usual = command.input_tokens, asked.input_expected
        else:
            most, usual = at_most.of(unit)[0], likely.of(unit)[0]
        steps = min(steps, _turns(one.room, most, usual))
    for run in account.chain(scopes):
        if run.budget is not None:
            steps = min(steps, _turns(run.budget - run.spent - run.held, bound, expected))
        if run.calls_most is not None:
            steps = min(steps, run.calls_most - run.calls)
    return max(steps, 0)


def _turns(room: int, most: int, usual: int) -> int:
    if room < most:
        return 0
    return STEPS_MOST if not usual else min(STEPS_MOST, (room - most) // usual + 1)
