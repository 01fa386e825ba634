"""This file knows how to show committed usage records to the application's own OpenTelemetry: spans and metrics."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.record import Record
from . import names
from .follower import Follower
from .metrics import Metrics, metrics_wanted
from .names import Generation
from .signing import Signer
from .span import show, spans_wanted, tracer

OLDEST_S = 3600.0
"""What is older is of no use as a picture: an SDK that is installed after a year does not get the year's spans."""


def telemetry(
    metrics: Metrics | None = None,
    *,
    spans: bool = True,
    signer: Signer | None = None,
    generation: Generation = "A",
) -> Follower:
    """A follower that makes the billing span and the metrics of every record, once in all processes of a ledger.

    Without an SDK it reads nothing. A record that another ledger posted here was shown there. With a `signer` the
    spans carry their records. `generation` chooses the gen_ai names (see export.names).
    """
    counts = metrics or Metrics()
    gen_ai = names.GENERATIONS[generation]

    def deliver(records: Sequence[Record]) -> None:
        ours = tracer() if spans and spans_wanted() else None
        for record in records:
            if "posted" in record.facts:
                continue
            counts.recorded(record)
            if ours is not None:
                show(record, ours, gen_ai, signer)

    def wanted() -> bool:
        return metrics_wanted() or (spans and spans_wanted())

    return Follower("telemetry", deliver, oldest_s=OLDEST_S, wanted=wanted)
