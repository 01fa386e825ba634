"""A private inflater reads what is passed on compressed, and stops knowing rather than break or burst."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_middleware.dialects.encoding import inflater_for

TEXT = b'data: {"choices":[]}\n\n' * 400


def raw_deflate(data: bytes) -> bytes:
    squeezer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return squeezer.compress(data) + squeezer.flush()


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(TEXT, mtime=0)),
        ("x-gzip", gzip.compress(TEXT, mtime=0)),
        ("GZIP", gzip.compress(TEXT[:1_000], mtime=0) + gzip.compress(TEXT[1_000:], mtime=0)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
        ("deflate, gzip", gzip.compress(zlib.compress(TEXT), mtime=0)),
        ("identity", TEXT),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_it_inflates_in_pieces_of_any_size(coding: str, packed: bytes, size: int) -> None:
    """T30."""
    inflater = inflater_for(coding)
    parts = [inflater.feed(packed[at : at + size]) for at in range(0, len(packed), size)]
    assert b"".join(parts) == TEXT
    assert not inflater.failed


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_brotli_and_zstandard_where_their_modules_are(coding: str) -> None:
    if coding == "br":
        packed = pytest.importorskip("brotli", reason="brotli is not installed").compress(TEXT)
    else:
        packed = pytest.importorskip("zstandard", reason="zstandard is not installed").compress(TEXT)
    inflater = inflater_for(coding)
    assert b"".join(inflater.feed(packed[at : at + 3]) for at in range(0, len(packed), 3)) == TEXT


def test_a_coding_it_does_not_know_is_not_inflated() -> None:
    inflater = inflater_for("snappy")
    assert inflater.failed
    assert inflater.feed(b"anything") == b""


def test_a_bomb_is_left_alone() -> None:
    """T30: 200 MB in 200 kB; memory stays within the bound."""
    bomb = gzip.compress(b"\0" * 200_000_000, compresslevel=9)
    inflater = inflater_for("gzip", most=1_000_000)
    assert sum(len(inflater.feed(bomb[at : at + 4_096])) for at in range(0, len(bomb), 4_096)) <= 1_000_000
    assert inflater.failed


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, gzip"]))
def test_garbage_never_raises(data: bytes, coding: str) -> None:
    inflater = inflater_for(coding)
    inflater.feed(data)
    inflater.feed(data)
