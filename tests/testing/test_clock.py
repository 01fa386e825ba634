"""A clock that stands still."""

from __future__ import annotations

from decimal import Decimal

from lava_middleware.testing import FrozenClock


def test_it_stands_still() -> None:
    clock = FrozenClock()
    assert clock() == clock()


def test_it_moves_by_exactly_what_it_is_told() -> None:
    clock = FrozenClock(1_000_000)
    assert clock.advance(0.1) == 1_100_000
    assert clock.advance(Decimal("0.000001")) == 1_100_001
    assert clock.advance(-1) == clock() == 100_001
    clock.set(5)
    assert clock() == 5
