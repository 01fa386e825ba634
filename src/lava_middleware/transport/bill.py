"""This file knows what an exchange owes at its end, from what its meter read, and what that teaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..core.intent import Text
from ..core.money import Ticks
from ..core.outcome import Used, used
from ..core.rating import provenance, rate
from ..core.record import Facts
from ..core.usage import Reading, Usage
from ..dialects.dialect import Meter
from .plan import Plan

if TYPE_CHECKING:
    from ..lava import Lava

LARGEST_BELIEVED: Final = 10**9
"""Tokens. No exchange uses so many: figures beyond that are not believed, whoever reports them."""
UNLIMITED: Final = 2**62
"""Output tokens "paid for" where mode or policy lets an exchange go on without a hold for them."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What is posted at the end, beside the record."""

    charge: Ticks
    """Before what the meter's tiers add, which the ledger finds."""
    input_tokens: int
    output_tokens: int
    cause: str
    """Why the charge would exceed the hold, should it do so."""
    metered: int = 0
    """How much of the meter's tiers was used."""


def used_by(lava: Lava, plan: Plan, meter: Meter, passed: tuple[Text, int] | None, *, believed: bool = True) -> Used:
    """What was used up to now, as it is billed; only by what passed where the provider is not believed.

    `passed`: content and extra tokens that went on, where that is not all the meter counted.
    """
    content, extra_tokens = passed or (meter.content, meter.extra_tokens)
    return used(
        meter.reading if believed else None,
        final=meter.reading_final or meter.finished,
        others=tuple(meter.others) if believed else (),
        content=content,
        extra_tokens=extra_tokens,
        expected_input=plan.estimate.expected,
        family=plan.family,
        learned=lava.learned,
        lesson=plan.lesson,
    )


def settle(
    lava: Lava,
    plan: Plan,
    facts: Facts,
    meter: Meter,
    *,
    passed: tuple[Text, int] | None,
    paid: int,
    hold_amount: Ticks | None,
    held: int = 0,
) -> Bill:
    """Write what was used onto the facts, rate it, and learn from it.

    `paid`: output tokens the hold paid for. `hold_amount`: None where there was no hold; `held`: what it holds of the
    meter's tiers. What the provider did not report is never charged, nor counted in limits, above the hold.
    """
    _note(plan, facts, meter)
    reading: Reading | None = meter.reading
    what = used_by(lava, plan, meter, passed)
    facts.totals = {name: value for name, value in what.totals.items() if value is not None}
    if max(what.input_tokens, what.output_tokens) > LARGEST_BELIEVED:  # it stays on the record as evidence
        reading, what = None, used_by(lava, plan, meter, passed, believed=False)
    facts.usage, facts.basis = dict(what.usage), what.basis
    facts.estimate = (plan.estimate.expected, what.counted_output)
    charge = _rate(lava, plan, facts, what, reading)
    if what.basis != "reported" and hold_amount is not None:
        charge = facts.charge = min(charge, hold_amount)
    _teach(lava, plan, what)
    metered = plan.meter.counted(_together(what), {})
    inputs, outputs = what.input_tokens, what.output_tokens
    if what.basis != "reported" and hold_amount is not None:
        metered, inputs, outputs = min(metered, held), min(inputs, plan.estimate.cautious), min(outputs, paid)
    return Bill(charge, inputs, outputs, _cause(plan, what, paid), metered)


def _together(what: Used) -> Usage:
    """All passes of the answer as one usage."""
    return sum((usage for _, usage in what.others), what.usage)


def _rate(lava: Lava, plan: Plan, facts: Facts, what: Used, reading: Reading | None) -> Ticks:
    """Write cost and charge of what was used onto the facts, and give the charge."""
    # By the model that the answer names, else by the one that was asked for (T25).
    named = lava.book.find(plan.price_lists, facts.response_model) if facts.response_model else None
    price = named or plan.price
    tier = facts.service_tier or None
    reported = reading.cost_ticks if reading is not None and plan.reports_cost else None
    rating = rate(price, what.usage, tier=tier, reported=reported)
    for model, usage in what.others:
        rating += rate(lava.book.find(plan.price_lists, model) if model else price, usage, tier=tier)
    facts.cost, facts.cost_basis, facts.lines = rating.cost, rating.basis, rating.lines
    facts.others = tuple((model or "", dict(usage)) for model, usage in what.others)
    if price is not None:
        facts.price = provenance(price, lava.book.version)
    meter = plan.meter
    charge = meter.charge(rating, what.usage if not what.others else _together(what), {})
    facts.markup = "" if meter.cost_times is None else str(meter.cost_times)
    facts.charged = charge.lines
    facts.charge = charge.ticks
    return facts.charge


def _note(plan: Plan, facts: Facts, meter: Meter) -> None:
    facts.response_model = (meter.model or "")[:200]
    facts.response_id = (meter.response_id or "")[:200]
    facts.finish_reason = (meter.finish_reason or "")[:80]
    facts.service_tier = (meter.service_tier or plan.intent.service_tier or "")[:40]


def _teach(lava: Lava, plan: Plan, what: Used) -> None:
    """Only calls whose input is wholly visible and whose usage was reported teach."""
    intent = plan.intent
    if what.basis != "reported" or intent.unseen_input or intent.server_tools or intent.media_tokens:
        return
    visible = what.output_tokens - (what.usage.get("reasoning", 0) if intent.hidden_reasoning else 0)
    lava.learned.teach(
        plan.lesson,
        inputs=(what.input_tokens, plan.estimate.expected),
        outputs=(max(visible, 0), what.counted_output),
        length=what.output_tokens // intent.choices,
    )


def _cause(plan: Plan, what: Used, paid: int) -> str:
    """One of core.commands.OVERRUN_CAUSES: the first that is true."""
    if paid >= UNLIMITED:
        return "unheld"
    if what.input_tokens > plan.estimate.cautious:
        return "input_above_bound"
    if what.output_tokens > plan.output_cap:
        return "cap_ignored"
    if what.output_tokens > paid:
        return "hidden_output" if what.usage.get("reasoning", 0) else "undercounted"
    if plan.meter.tiers is not None and not plan.meter.needs_cost:  # other calls have pushed it into a dearer tier
        return "dearer_tier"
    return "dearer_model"
