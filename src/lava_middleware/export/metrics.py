"""This file knows which figures are shown as metrics, and how to count them.

Metrics are pictures: they are never the source of a bill. No label names a customer: that would be a memory leak or,
where the SDK caps label sets, silently wrong. Without an SDK every call here ends in a few no-ops.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Protocol

from opentelemetry import metrics as otel
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ..core.record import Record
from . import names
from .names import Instrument


class Watched(Protocol):
    """A follower, as far as the gauges know it."""

    name: str

    @property
    def lag(self) -> Any: ...


_followers: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(follower: Watched) -> None:
    """Show this follower's lag for as long as it lives."""
    _followers.add(follower)


class _Instruments:
    """All instruments, made once per meter: instruments of one name that exist twice are a warning in every SDK."""

    def __init__(self, meter: Meter) -> None:
        self.decisions = _made(meter.create_counter, names.DECISIONS)
        self.gate_duration = _made(meter.create_histogram, names.GATE_DURATION)
        self.unmetered = _made(meter.create_counter, names.UNMETERED)
        self.charged = _made(meter.create_counter, names.CREDITS_CHARGED)
        self.overrun = _made(meter.create_counter, names.CREDITS_OVERRUN)
        self.debt = _made(meter.create_counter, names.CREDITS_DEBT)
        self.cost = _made(meter.create_counter, names.COST)
        self.used = _made(meter.create_counter, names.USED)
        self.records = _made(meter.create_counter, names.RECORDS)
        self.estimated = _made(meter.create_counter, names.ESTIMATED)
        self.settlement_lag = _made(meter.create_histogram, names.SETTLEMENT_LAG)
        self.exported = _made(meter.create_counter, names.EXPORTED)
        self.dead = _made(meter.create_counter, names.DEAD)
        for described, figure in ((names.PENDING, "pending"), (names.OLDEST_AGE, "oldest_age_s")):
            meter.create_observable_gauge(
                described.name, [_lags(figure)], unit=described.unit, description=described.description
            )


def _made(create: Callable[..., Any], described: Instrument) -> Any:
    return create(described.name, unit=described.unit, description=described.description)


def _lags(figure: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for follower in list(_followers):
            yield Observation(getattr(follower.lag, figure), {names.FOLLOWER: follower.name})

    return observe


@cache
def _of_the_process() -> _Instruments:
    """On the application's own meter provider, whenever it sets one."""
    return _Instruments(otel.get_meter(names.SCOPE, schema_url=names.SCHEMA_URL))


def metrics_wanted() -> bool:
    """Whether the application has set a meter provider."""
    return type(otel.get_meter_provider()).__name__ not in ("_ProxyMeterProvider", "NoOpMeterProvider")


def exported(follower: str, result: str, count: int) -> None:
    """So many records were "sent", "held" (to be tried again) or "refused" for good."""
    made = _of_the_process()
    made.exported.add(count, {names.FOLLOWER: follower, names.RESULT: result})
    if result == "refused":
        made.dead.add(count, {names.FOLLOWER: follower})


class Metrics:
    """Counts what happens. All methods are safe in any thread, raise nothing and keep nothing."""

    def __init__(self, meter: Meter | None = None) -> None:
        """`meter`: instead of the application's own."""
        self._instruments = _Instruments(meter) if meter else _of_the_process()

    def decided(self, decision: str, reason: str = "", seconds: float | None = None) -> None:
        """The gate answered "held", "denied" or "open" (policy let it go unheld), after so many seconds."""
        labels = {names.GATE_DECISION: decision}
        if seconds is not None:
            self._instruments.gate_duration.record(seconds, labels)
        if reason:
            labels = {**labels, names.GATE_REASON: reason}
        self._instruments.decisions.add(1, labels)

    def passed(self, reason: str) -> None:
        """A provider call passed without being metered, or one would have been refused."""
        self._instruments.unmetered.add(1, {names.GATE_REASON: reason})

    def recorded(self, record: Record) -> None:
        """A usage record was committed."""
        made = self._instruments
        labels = record_labels(record)
        made.records.add(1, {**labels, names.OUTCOME: record.kind, names.USAGE_BASIS: record.basis})
        # A refund is not a negative charge here: counters only go up.
        made.charged.add(max(0, record.charge.ticks), labels)
        made.cost.add(max(0, record.cost.ticks), labels)
        for unit, quantity in record.usage.items():
            made.used.add(quantity, {**labels, names.UNIT: unit})
        if record.overrun:
            made.overrun.add(record.overrun.ticks, {**labels, names.CAUSE: record.overrun_cause or ""})
        if record.debt.ticks > 0:
            made.debt.add(record.debt.ticks, labels)
        if record.basis and record.basis != "reported":
            made.estimated.add(1, {**labels, names.USAGE_BASIS: record.basis})
        if ended := record.facts.get("ended"):
            made.settlement_lag.record(max(0, record.at - ended) / 1_000_000, {names.OUTCOME: record.kind})


def record_labels(record: Record) -> dict[str, str]:
    """Provider, model and meter: few values each. Never the customer."""
    labels = {
        names.GENERATION_A.provider: names.PROVIDER_NAMES.get(record.provider, record.provider),
        names.GENERATION_A.request_model: record.facts.get("model") or record.model,
    }
    if meter := record.facts.get("meter"):
        labels[names.METER] = meter
    return labels
