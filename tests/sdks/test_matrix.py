"""Each SDK and framework: passed, refused, cut, cancelled; sync, async, on trio where it runs; whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lava_middleware.transport.guards import unguard
from lava_middleware.transport.instrument import uninstrument

from .drivers import NEWEST
from .matrix import Stage, cases, play, staged

pytestmark = [
    pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),  # google-genai's
    pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning"),  # says trio of SDKs
]


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with staged(NEWEST[request.param]) as stage:
        yield stage
    unguard()
    uninstrument()


@pytest.mark.leaves_threads  # the module's Lava outlives each test
@pytest.mark.parametrize(("stage", "colour", "scene"), list(cases(NEWEST)), indirect=["stage"])
def test_every_sdk(stage: Stage, colour: str, scene: str) -> None:
    """T3, T4, T13, T16, T17, T18: a refusal costs one attempt in each."""
    play(stage, colour, scene)
