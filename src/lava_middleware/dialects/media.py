"""This file knows how many tokens an image, a recording or a document in a request can cost at most."""

from __future__ import annotations

import binascii
import re
from typing import NamedTuple

from .text import weigh


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


HEAD = 96 * 1024
"""Characters of base64 that are decoded to find an image's size; JPEGs with long metadata may hide it behind them."""

_TILED = re.compile(
    r"gpt-4o(?!-mini)|gpt-4\.1(?!-(?:mini|nano))|gpt-4\.5|gpt-4-|^o[13](?!-mini)|chatgpt-4o|gpt-5(?:-\d{4}|-chat|$)"
)
_PATCHED = re.compile(r"gpt-4\.1-(?:mini|nano)|o4-mini|gpt-5-(?:mini|nano)|gpt-5\.[123]")


def image_tokens_openai(model: str | None, detail: str | None, size: Size | None) -> int:
    """The most tokens one image costs on an OpenAI model, or one of OpenAI's format that is not known.

    Three classes: tiles of 512 pixels, at most 8 of them (gpt-4o class); patches of 32 pixels, at most 1,536 of them
    times up to 2.46 (mini and nano class); patches times 1.2 up to the whole image (newer models).
    https://platform.openai.com/docs/guides/images-vision#calculating-costs
    """
    name = (model or "").rpartition("/")[2].lower()
    if "gpt-4o-mini" in name:
        return 2_833 if detail == "low" else 2_833 + 5_667 * _tiles(size)
    if _TILED.search(name):
        return 85 if detail == "low" else 85 + 170 * _tiles(size)
    if detail == "low":
        return 640
    if _PATCHED.search(name):
        return min(3_780, -(-246 * _patches(size, 1_536) // 100))
    return -(-_patches(size, 2_500 if detail == "high" else 20_000) * 12 // 10)


def image_tokens_claude(model: str | None, size: Size | None) -> int:
    """The most tokens one image costs on Claude: pixels / 750, up to about 1,600 before Opus 4.7 and 4,800 since.

    https://docs.claude.com/en/docs/build-with-claude/vision#calculate-image-costs
    """
    most = 1_640 if re.search(r"claude-(?:[123]|instant)|-4-(?:[0-6]|20)(?:\D|$|\d{2})", model or "") else 4_800
    return most if size is None else min(most, size.width * size.height // 750 + 64)


def _tiles(size: Size | None) -> int:
    """Tiles of 512 pixels after the image was fitted into 2048 × 2048 and its short side into 768."""
    if size is None:
        return 8
    long, short = max(size), max(min(size), 1)
    if long > 2048:
        long, short = 2048, max(1, short * 2048 // long)
    if short > 768:
        long, short = long * 768 // short, 768
    return min(8, -(-long // 512) * -(-short // 512))


def _patches(size: Size | None, most: int) -> int:
    if size is None:
        return min(most, 12_000)
    return min(most, -(-size.width // 32) * -(-size.height // 32))


def image_size(base64_text: str) -> Size | None:
    """The size that the head of a base64 PNG, JPEG, GIF or WebP says; None: not found."""
    raw = _decoded(base64_text[:HEAD])
    if raw.startswith(b"\x89PNG\r\n\x1a\n") and len(raw) >= 24:
        return Size(int.from_bytes(raw[16:20]), int.from_bytes(raw[20:24]))
    if raw.startswith(b"GIF8") and len(raw) >= 10:
        return Size(int.from_bytes(raw[6:8], "little"), int.from_bytes(raw[8:10], "little"))
    if raw.startswith(b"\xff\xd8"):
        return _jpeg_size(raw)
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return _webp_size(raw)
    return None


def _jpeg_size(raw: bytes) -> Size | None:
    at = 2
    while at + 9 <= len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            return Size(int.from_bytes(raw[at + 7 : at + 9]), int.from_bytes(raw[at + 5 : at + 7]))
        at += 2 + int.from_bytes(raw[at + 2 : at + 4])
    return None


def _webp_size(raw: bytes) -> Size | None:
    kind = raw[12:16]
    if kind == b"VP8X" and len(raw) >= 30:
        return Size(int.from_bytes(raw[24:27], "little") + 1, int.from_bytes(raw[27:30], "little") + 1)
    if kind == b"VP8L" and len(raw) >= 25:
        bits = int.from_bytes(raw[21:25], "little")
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 " and len(raw) >= 30:
        return Size(int.from_bytes(raw[26:28], "little") & 0x3FFF, int.from_bytes(raw[28:30], "little") & 0x3FFF)
    return None


def audio_tokens(base64_length: int, form: str | None) -> int:
    """The most tokens a recording costs: 10 a second, at 8 kB a second for sound as samples, 1 kB for packed sound."""
    size = base64_length * 3 // 4
    return size // (800 if form in ("wav", "pcm16", "g711_ulaw", "g711_alaw") else 100) + 16


PAGE_TOKENS = 8_000
"""The most tokens one page of a PDF costs: its text (3,000) and its picture (4,800)."""
_PAGE = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")


def document_tokens(base64_text: str, media_type: str | None) -> int:
    """The most tokens a document costs. Text is weighed; of a PDF whose pages cannot be counted its bytes tell."""
    raw = _decoded(base64_text)
    if media_type is not None and media_type.startswith("text/"):
        return weigh(raw).bytes
    if raw.startswith(b"%PDF"):
        pages = len(_PAGE.findall(raw))
        return PAGE_TOKENS * pages if pages else max(PAGE_TOKENS, len(raw) // 4)
    return max(PAGE_TOKENS, len(raw) // 2)


def _decoded(base64_text: str) -> bytes:
    """The bytes; what is not base64 decodes to nothing."""
    try:
        return binascii.a2b_base64(base64_text + "=" * (-len(base64_text) % 4))
    except ValueError:
        return b""


def data_url(url: str) -> tuple[str, str] | None:
    """(media type, base64 text) of a data URL; None if it is another URL."""
    if url[:5].lower() != "data:":
        return None
    head, _, payload = url.partition(",")
    return head[5:].partition(";")[0].strip().lower(), payload
