"""One stand-in for each test, and what most tests send to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lava_middleware.testing import FakeProvider


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running
