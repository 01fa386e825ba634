"""This file knows what a request asks of the ledger before it leaves, and with which edits it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..core.bound import Estimate
from ..core.commands import Authorize
from ..core.intent import Intent
from ..core.learned import Learned
from ..core.meter import AT_COST, Meter
from ..core.money import LARGEST, PER_MILLION, Ticks, charge_ceiling
from ..core.pricing import Price
from ..core.record import Facts, scopes_of
from ..dialects.dialect import Dialect
from .seen import Departure

if TYPE_CHECKING:
    from ..settings import Settings

FIRST_SLICE: Final = 64
"""Output tokens a stream holds before its first byte."""
LEAST_CAP: Final = 16
"""OpenAI's responses refuse smaller caps; a stream that can pay for less is cut by us.
https://platform.openai.com/docs/api-reference/responses/create#responses-create-max_output_tokens"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found out about a request before anybody was asked for money. Immutable: a flight only reads it."""

    customer: str = field(repr=False)
    dialect: Dialect
    intent: Intent
    body: Mapping[str, Any] = field(repr=False)
    family: str
    estimate: Estimate
    """Of the input."""
    price_lists: tuple[str, ...]
    """Names of the price lists to look in, in order."""
    price: Price | None
    """None: not known. Then the exchange can only be unheld, and its cost is recorded as unknown."""
    overruled: str
    """Why it would be refused whoever pays, where mode observe lets it go unheld; else empty."""
    input_rate: int
    """Ticks per million input tokens charged at most; the markup is in it, as in `output_rate`."""
    output_rate: int
    fees: Ticks
    """Charged at most beside tokens: flat fees, searches."""
    output_tokens_max: int
    """The cap that the request or the model sets, per choice."""
    output_unbounded: bool
    """Neither sets one: the cap is our assumption, and is true only if it is written into the request."""
    hide_usage: bool
    ask_usage: bool
    untouchable: bool
    """The request is signed: neither body nor headers may be changed."""
    lesson: str
    """Under which name this model's calls teach and are taught."""
    binding: Any
    """The inbound request's Binding, told of the record at the end; None outside a request."""
    reports_cost: bool = False
    meter: Meter = AT_COST
    """How its usage becomes a charge."""
    hard_fixed: Ticks = 0
    """`fixed` at the hard bound of the input: held where a limit is strict."""

    @property
    def sliced(self) -> bool:
        """Held in slices as it streams; else the whole cap is held at once (hidden reasoning cannot be watched)."""
        return self.intent.stream and not self.intent.hidden_reasoning

    @property
    def capped(self) -> bool:
        """The application itself caps the output."""
        return self.intent.output_tokens_max is not None

    @property
    def output_cap(self) -> int:
        """The most output tokens of all choices together."""
        return self.output_tokens_max * self.intent.choices

    @property
    def metered_each(self) -> int:
        """Units of the meter's tiers for each output token."""
        return 1 if self.meter.tiers is not None and self.meter.bills and self.meter.counts_output else 0

    @property
    def fixed(self) -> Ticks:
        """Owed at most whatever comes out."""
        return charge_ceiling(self.estimate.cautious, self.input_rate) + self.fees


def authorization(plan: Plan, facts: Facts, settings: Settings, learned: Learned, owner: str) -> Authorize:
    """The hold to ask for."""
    wanted = least = plan.output_cap
    if plan.sliced:
        wanted = min(plan.output_cap, FIRST_SLICE * plan.intent.choices)
        least = min(wanted, FIRST_SLICE // 2)
    elif not plan.untouchable and (settings.clamp == "always" or (settings.clamp == "missing" and not plan.capped)):
        least = min(wanted, settings.min_output_tokens * plan.intent.choices)
    expected, grows = _owed_if_unknown(plan, settings, learned)
    return Authorize(
        hold=facts.id,
        owner=owner,
        fixed=plan.fixed,
        input_tokens=plan.estimate.cautious,
        output_price=plan.output_rate,
        output_tokens=wanted,
        output_tokens_min=least,
        share=1 if plan.capped or plan.sliced else settings.hold_share,
        expected=expected,
        grows=grows,
        scopes=scopes_of(facts),
        hard=(plan.hard_fixed, plan.estimate.hard),
        **_tiered(plan),
    )


def _tiered(plan: Plan) -> dict[str, Any]:
    """What a hold must know of a meter in tiers: how much it can count, and what of it an unknown outcome owes."""
    meter = plan.meter
    if meter.tiers is None or not meter.bills:
        return {}
    counts = meter.counts_input
    return {
        "tiers": meter.tiers,
        "metered": plan.estimate.cautious if counts else 1 if meter.unit == "requests" else 0,
        "metered_each": plan.metered_each,
        "metered_expected": plan.estimate.expected if counts else 1 if meter.unit == "requests" else 0,
    }


def _owed_if_unknown(plan: Plan, settings: Settings, learned: Learned) -> tuple[Ticks, bool]:
    """(what an unknown outcome owes, whether extensions add to it), by the operator's policy."""
    policy = settings.on_unknown_outcome
    if policy == "void":
        return 0, False
    if policy == "bound":
        return LARGEST - 1, False
    owed = charge_ceiling(learned.input_tokens(plan.lesson, plan.estimate.expected), plan.input_rate)
    owed = min(owed, plan.fixed)
    if policy == "input" or plan.sliced:
        return owed, policy == "expected"
    mean = learned.mean_output(plan.lesson)
    output = plan.output_cap // 4 if mean is None else min(mean * plan.intent.choices, plan.output_cap)
    return owed + charge_ceiling(output, plan.output_rate), False


def owed_unheld(plan: Plan, settings: Settings, learned: Learned) -> Ticks:
    """What an unknown outcome owes where no hold says so."""
    owed, _ = _owed_if_unknown(plan, settings, learned)
    return min(owed, plan.fixed + charge_ceiling(plan.output_cap, plan.output_rate), LARGEST - 1)


def departure(plan: Plan, cap: int | None, *, may_cut: bool) -> Departure:
    """How the request leaves: capped, asking for usage, uncompressed where its stream may be cut or filtered."""
    if plan.untouchable:
        return Departure()
    body = plan.body
    if plan.ask_usage:
        body = plan.dialect.asking_usage(body)
    if cap is not None:
        body = plan.dialect.with_cap(body, cap)
    content = None
    if body is not plan.body:
        content = _json(body)
    identity = plan.intent.stream and (may_cut or plan.hide_usage)
    return Departure(None, content, {"accept-encoding": "identity"} if identity else {})


def _json(body: Mapping[str, Any]) -> bytes:
    """Compact UTF-8. Half a surrogate pair, which only an escape can carry, stays an escape."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(body, separators=(",", ":")).encode()


def cap_to_write(plan: Plan, settings: Settings, paid: int, available: Ticks) -> int | None:
    """Output tokens per choice that the request must be capped to, where it may run beyond what can be paid."""
    if settings.clamp == "never" or settings.mode != "enforce" or not plan.output_cap:
        return None
    if plan.capped and settings.clamp != "always":
        return None
    fits = paid
    if plan.sliced:  # what it may not have, it is not given: this is a courtesy to the provider
        if not plan.output_rate:
            return None
        fits += max(available, 0) * PER_MILLION // plan.output_rate
    elif plan.output_unbounded:
        return max(LEAST_CAP, min(fits, plan.output_cap) // plan.intent.choices)
    return max(LEAST_CAP, fits // plan.intent.choices) if fits < plan.output_cap else None
