"""The stand-in's tokens: a fixed rule, about as many as a real model makes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.testing import count_tokens
from lava_middleware.testing.tokens import prose_token, tokens


@given(st.text())
def test_the_tokens_of_a_text_are_that_text(text: str) -> None:
    assert "".join(tokens(text)) == text


@given(st.text(), st.integers(0, 50))
def test_a_text_cut_behind_a_token_keeps_its_tokens(text: str, length: int) -> None:
    start = tokens(text)[:length]
    assert tokens("".join(start)) == start


@given(st.text())
def test_no_text_has_more_tokens_than_bytes(text: str) -> None:
    assert count_tokens(text) <= len(text.encode())


def test_the_rule_in_examples() -> None:
    assert tokens("A ledger, internationally") == ["A", " ledger", ",", " intern", "ationa", "lly"]
    assert tokens('{"n": 12345}') == ['{"', "n", '":', " 123", "45", "}"]
    assert tokens("a\n\n  b") == ["a", "\n\n ", " b"]


def test_claude_counts_in_smaller_tokens() -> None:
    """Measured against OpenAI's o200k, per byte of English: 1.2 times up to Claude 4.6, 1.6 times since 4.7."""
    prose = "".join(map(prose_token, range(1000)))
    assert 1.15 < count_tokens(prose, "claude-sonnet-4-5") / 1000 < 1.3
    assert 1.4 < count_tokens(prose, "claude-opus-4-8") / 1000 < 1.7


def test_prose_is_a_quarter_of_a_token_a_byte() -> None:
    text = "".join(map(prose_token, range(1000)))
    assert count_tokens(text) == 1000
    assert 0.2 < 1000 / len(text.encode()) < 0.3
