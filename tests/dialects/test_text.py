"""Text is weighed by classes of bytes, in hundredths of a token."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable

import pytest

from lava_middleware.core.intent import Text
from lava_middleware.dialects.text import weigh


@pytest.mark.parametrize(
    ("text", "hundredths"),
    [("", 0), ("abcd", 120), ("2024", 400), (" \n", 10), ("{}", 150), ("é", 100), ("日本", 300), ("a1 ,", 210)],
)
def test_every_class_of_bytes_has_its_weight(text: str, hundredths: int) -> None:
    assert weigh(text) == Text(len(text.encode()), hundredths, 0)
    assert weigh(text.encode(), parts=2).parts == 2


def test_packed_runs_weigh_nearly_a_token_a_byte(rng: random.Random) -> None:
    """Base64 has no words: tokenizers make 0.7 to 0.95 tokens of each byte."""
    packed = base64.b64encode(rng.randbytes(3_000))
    assert weigh(packed).hundredths >= 95 * len(packed)
    words = b"the quick brown fox " * 200
    assert weigh(words + packed + words).hundredths >= 95 * len(packed) + 2 * weigh(words).hundredths


def test_short_runs_and_prose_are_not_packed() -> None:
    assert weigh("a" * 199).hundredths == 199 * 30
    assert weigh("internationalisation, " * 100).hundredths < 40 * 2_200


def test_weights_add() -> None:
    assert weigh("Hello, ") + weigh("world") == weigh("Hello, world")


def test_lone_surrogates_are_weighed_not_refused() -> None:
    assert weigh("\ud83d").bytes == 3


def test_weighing_is_fast() -> None:
    """A long prompt must not stop the event loop: 1 MB takes no longer than to look at each of its characters once."""
    text = "The quick brown fox, 12 times.\n" * 33_000
    assert _least(lambda: weigh(text)) < _least(lambda: [None for _ in text])


def _least(work: Callable[[], object]) -> float:
    """Seconds of this thread's work, of five tries: what else runs on the machine does not count."""
    tries = []
    for _ in range(5):
        began = time.thread_time()
        work()
        tries.append(time.thread_time() - began)
    return min(tries)
