"""This file knows how to undo a content encoding for reading only: what is passed on stays as it came.

It does not borrow the HTTP library's decoders: their interfaces differ between the libraries.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

_Step: TypeAlias = Callable[[bytes, int], bytes]
"""(bytes, most) → what they inflate to, about `most` bytes at most."""

MOST_INFLATED = 64 * 1024 * 1024
"""Bytes that one answer may inflate to. Beyond it the inflater stops knowing (T30: a bomb is 1,000 times its size)."""


class Inflater:
    """Inflates one answer, piece by piece. Never raises: what it cannot inflate it no longer knows (`failed`)."""

    __slots__ = ("_left", "_steps", "failed")

    def __init__(self, steps: list[_Step] | None, most: int = MOST_INFLATED) -> None:
        self._steps = steps or []
        self._left = most
        self.failed = steps is None

    def feed(self, data: bytes) -> bytes:
        """What these bytes inflate to; nothing once it has failed."""
        if self.failed:
            return b""
        try:
            for step in self._steps:
                data = step(data, self._left + 1)
        except Exception:  # decoders of extensions raise errors of their own classes
            self.failed = True
            return b""
        self._left -= len(data)
        if self._left < 0:
            self.failed = True
            return b""
        return data


def inflater_for(encoding: str, most: int = MOST_INFLATED) -> Inflater:
    """An inflater for a Content-Encoding header, several codings included; `failed` at once if one is unknown."""
    steps: list[_Step] = []
    for coding in reversed([one.strip().lower() for one in encoding.split(",") if one.strip()]):
        if coding == "identity":
            continue
        make = _CODINGS.get(coding)
        step = None if make is None else make()
        if step is None:
            return Inflater(None, most)
        steps.append(step)
    return Inflater(steps, most)


class _Gzip:
    """gzip, several members in a row included."""

    __slots__ = ("_member",)

    def __init__(self) -> None:
        self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def __call__(self, data: bytes, most: int) -> bytes:
        parts = []
        while data and most > 0:
            if self._member.eof:
                if not data.strip(b"\0"):  # padding after the last member
                    break
                self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            part = self._member.decompress(data, most)
            parts.append(part)
            most -= len(part)
            data = self._member.unused_data or self._member.unconsumed_tail
        return b"".join(parts)


class _Deflate:
    """deflate, which is zlib by the standard and raw in the wild."""

    __slots__ = ("_decoder", "_first")

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj()
        self._first: bytes | None = b""
        """What has come before the kind was known; None afterwards."""

    def __call__(self, data: bytes, most: int) -> bytes:
        if self._first is not None:
            self._first += data
            if len(self._first) < 2:  # the zlib header
                return b""
            data, self._first = self._first, None
            try:
                return self._decoder.decompress(data, most)
            except zlib.error:
                self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)
        return self._decoder.decompress(data, most)


def _sliced(decode: Callable[[bytes], bytes]) -> _Step:
    """A step of a decoder that knows no output bound: small slices, so that a bomb is noticed while it is small."""

    def step(data: bytes, most: int) -> bytes:
        parts = []
        for start in range(0, len(data), _SLICE):
            parts.append(decode(data[start : start + _SLICE]))
            most -= len(parts[-1])
            if most <= 0:
                break
        return b"".join(parts)

    return step


_SLICE = 512


def _brotli() -> _Step | None:
    module = _importable("brotli") or _importable("brotlicffi")
    if module is None:
        return None
    decoder = module.Decompressor()
    return _sliced(getattr(decoder, "decompress", None) or decoder.process)


def _zstandard() -> _Step | None:
    module = _importable("zstandard")
    if module is not None:
        return _sliced(module.ZstdDecompressor(max_window_size=1 << 27).decompressobj().decompress)
    module = _importable("compression.zstd")  # Python 3.14
    return None if module is None else _sliced(module.ZstdDecompressor().decompress)


def _importable(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


_CODINGS: dict[str, Callable[[], _Step | None]] = {
    # a coding that is missing here is not inflated: the answer is passed on and its figures are not known
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _brotli,
    "zstd": _zstandard,
}
