"""This file knows a customer's plan as data: which limits apply."""

from __future__ import annotations

from dataclasses import dataclass, replace

LIMIT_UNITS = ("tokens", "input_tokens", "output_tokens", "requests")
WINDOWS = ("month",)


class TermsError(ValueError):
    """A limit is not one that can be enforced; the message names the field."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A quantity per window that admission may never pass: used + held − overrun ≤ quantity.

    Counted for the customer as a whole, from the moment the limit is set.
    """

    name: str
    unit: str
    quantity: int
    window: str = "month"
    zone: str = "UTC"
    """IANA name of the time zone whose calendar the window follows."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 64 or not self.name.isprintable():
            raise TermsError("limit name must be 1 to 64 printable characters")
        if self.unit not in LIMIT_UNITS:
            raise TermsError(f"limit unit must be one of {', '.join(LIMIT_UNITS)}")
        if self.window not in WINDOWS:
            raise TermsError(f"limit window must be one of {', '.join(WINDOWS)}")
        if isinstance(self.quantity, bool) or not isinstance(self.quantity, int) or not 0 <= self.quantity < 2**53:
            raise TermsError("limit quantity must be a whole number from 0 to 2^53")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a customer may do. Version 0 is the state before any terms were set."""

    version: int = 0
    limits: tuple[Limit, ...] = ()

    def with_limit(self, limit: Limit) -> Terms:
        """The next version, with this limit added or put in place of the one of the same name.

        Raises TermsError where that would count one thing in the counter of another.
        """
        others = tuple(one for one in self.limits if one.name != limit.name)
        for old in self.limits:
            if old.name == limit.name and (old.unit, old.window, old.zone) != (limit.unit, limit.window, limit.zone):
                raise TermsError(
                    "a limit keeps its unit, window and zone, for what was counted is counted in them; "
                    "take it away first, or give the new one another name"
                )
        return replace(self, version=self.version + 1, limits=(*others, limit))

    def without_limit(self, name: str) -> Terms:
        """The next version, without the limit of that name."""
        return replace(self, version=self.version + 1, limits=tuple(one for one in self.limits if one.name != name))


NO_TERMS = Terms()
