"""This file knows what a ledger counts about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """How often what happened, since the ledger was built. Not exact under threads; for metrics and `doctor`."""

    conflicts: int = 0
    """Appends that another process or thread was faster than."""
    retries: int = 0
    """Further attempts of commands that found the journal busy."""
    busy: int = 0
    """Commands that found the journal busy at first."""
    handed_over: int = 0
    """Endings and reports that the ledger's thread took over."""
    waits: int = 0
    """Calls that waited for a hold to end."""
    overtaken: int = 0
    """Calls refused because others had waited longer."""
    recovered: int = 0
    """Holds of dead owners that were settled here."""
    unposted: int = 0
    """Endings and reports that the ledger refused for good; each was logged."""
    lost_holds: int = 0
    """Settlements posted as reports because the journal was put back to before their hold."""
    kept: int = 0
    """Commands written to the pending file."""
    backlog_refused: int = 0
    """Calls refused because too many endings were still on their way."""
    reloads: int = 0
    """Accounts folded anew (first use included)."""
