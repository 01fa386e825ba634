"""This file knows how to be an OpenTelemetry SpanExporter that posts signed billing spans into a ledger of record.

provider.add_span_processor(BatchSpanProcessor(LavaSpanExporter("sqlite:////var/lib/lava/record.db", key=...)))
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from .core.carry import NewerRecord, Posting, UnreadableRecord, posting
from .errors import ConfigurationError, Denied, LedgerUnavailable, logger
from .export import names
from .export.follower import RetryLater
from .export.metrics import exported
from .export.posting import Kept, Opened, post
from .export.signing import Signer
from .ledger.journal import Busy, JournalUnavailable

try:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
except ImportError as missing:
    raise ImportError(
        "lava_middleware.otel needs OpenTelemetry's SDK: pip install 'lava-middleware[otel]'"
    ) from missing

if TYPE_CHECKING:
    from .lava import Lava

NAME = "span-exporter"
"""Under which its results are counted in lava.export.records."""

_WHY = {
    # reason → what the log says once. Never what was in the span.
    "unsigned": "it has no signature: give the Lava that makes the spans the same span_key",
    "forged": "its signature is not of our key: it was made or altered by somebody else, or cut to a length limit",
    "unreadable": "what was signed is not a usage record",
    "newer": "a newer release signed it: upgrade lava-middleware here; until then its batches are held",
    "conflicting": "the ledger has a record of this id with another charge",
}


class LavaSpanExporter(SpanExporter):
    """Posts the records that signed `lava.exchange` spans carry, once for each record id; other spans pass by.

    `ledger` is the ledger of record: its URL, or a Lava that has it open (which stays open). None: LAVA_LEDGER. `key`
    is the `span_key` of those who make the spans, or several while one is being changed; None: LAVA_SPAN_KEY.
    Raises ConfigurationError, or LedgerUnavailable where the ledger cannot be opened.

    SUCCESS: every record in the batch that is signed is in the ledger, as durably as that promises. FAILURE: some
    could not be written; repeat the batch. Spans that are forged, altered, unsigned or there already change nothing,
    are counted in `counts`, and fail nothing: whoever repeats a batch would repeat it for ever.

    A span pipeline may lose spans and say nothing. What must not be lost goes by `post_to`, beside this or instead.
    """

    def __init__(self, ledger: Lava | str | None = None, *, key: str | Sequence[str] | None = None) -> None:
        keys = os.environ.get("LAVA_SPAN_KEY", "") if key is None else key
        try:
            self._signer = Signer(keys)
        except ValueError as error:
            raise ConfigurationError(f"LavaSpanExporter cannot be configured: key (LAVA_SPAN_KEY): {error}") from None
        self._opened = _opened(ledger) if ledger is None or isinstance(ledger, str) else None
        self._kept: Kept = self._opened or cast("Lava", ledger)
        self._shut = False
        self.counts: Counter[str] = Counter()
        """By result: posted, repeated, held, and the reasons why a span was refused."""

    def __repr__(self) -> str:
        return f"<LavaSpanExporter {dict(self.counts)}>"

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._shut:
            return SpanExportResult.FAILURE
        before = self.counts["newer"]
        postings = list(self._postings(spans))
        try:
            outcome = post(self._kept.ledger, postings)
        except RetryLater as error:
            self._count("held", len(postings))
            logger.warning("lava: spans' records cannot be posted now: %s", error)
            return SpanExportResult.FAILURE
        except Exception as error:  # a mistake of ours must not end the thread that exports
            self._count("held", len(postings))
            logger.error("lava: spans' records could not be posted (%s)", type(error).__name__)
            return SpanExportResult.FAILURE
        self._count("posted", outcome.posted)
        self._count("repeated", outcome.repeated)
        self._refuse("conflicting", outcome.conflicts)
        return SpanExportResult.SUCCESS if self.counts["newer"] == before else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits here: what was exported is written."""
        return True

    def shutdown(self) -> None:
        """Close the ledger, if it was opened here. Safe to repeat; what is exported later fails."""
        if not self._shut:
            self._shut = True
            if self._opened is not None:
                self._opened.close()

    def _postings(self, spans: Sequence[ReadableSpan]) -> Iterator[Posting]:
        for span in spans:
            attributes = span.attributes or {}
            text, signature = attributes.get(names.RECORD), attributes.get(names.SIGNATURE)
            if text is None and signature is None:
                if span.name == names.SPAN and names.RECORD_ID in attributes:
                    self._refuse("unsigned")
                continue
            if not self._signer.verify(text, signature):
                self._refuse("unsigned" if signature is None else "forged")
                continue
            try:
                yield posting(str(text))
            except UnreadableRecord:
                self._refuse("unreadable")
            except NewerRecord:
                self._refuse("newer")

    def _refuse(self, reason: str, count: int = 1) -> None:
        if count and not self.counts[reason]:
            logger.warning("lava: a billing span was not posted: %s", _WHY[reason])
        self._count(reason, count)

    def _count(self, result: str, count: int) -> None:
        if count:
            self.counts[result] += count
            exported(NAME, _RESULTS.get(result, "refused"), count)


_RESULTS = {"posted": "sent", "repeated": "sent", "held": "held", "newer": "held"}
"""Result → lava.export.result. One that is missing here is "refused"."""


def _opened(url: str | None) -> Opened:
    """The ledger alone: no gate, and none of the exporters that LAVA_* may name for the application beside it."""
    from .lava import open_journal
    from .settings import configure

    settings = configure(url, {})
    opened = Opened(lambda: open_journal(settings))
    try:
        assert opened.ledger
    except (JournalUnavailable, Busy) as error:
        raise LedgerUnavailable(Denied("ledger_unavailable", str(error))) from None
    return opened
