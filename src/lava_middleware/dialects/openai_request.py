"""This file knows how to read what requests in OpenAI's formats have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.intent import Intent
from .gather import Block, Gathered
from .jsons import count, mapping, sequence, text_or_none
from .media import audio_tokens, data_url, document_tokens, image_size, image_tokens_openai


def unreadable(operation: str, path_model: str | None) -> Intent:
    """A request that is not of the endpoint's kind."""
    return Intent(operation, path_model, refuse="unreadable")


def cap_of(*values: object) -> int | None:
    """The largest of the caps that are set; null, negative and unreadable ones are none."""
    caps = [cap for value in values if (cap := count(value)) is not None]
    return max(caps, default=None)


def choices_of(value: object) -> int:
    return max(count(value) or 1, 1)


def media_parts(model: str | None) -> Mapping[str, Callable[[Gathered, Block], None]]:
    """What the content parts that are no text cost, for a model. Parts of chat completions and of responses."""

    def image(gathered: Gathered, part: Block) -> None:
        given = part.get("image_url")
        url = given.get("url") if isinstance(given, dict) else given
        detail = text_or_none(mapping(given).get("detail")) or text_or_none(part.get("detail"))
        found = data_url(url) if isinstance(url, str) else None
        # An image behind a URL or a file id costs no more than the largest one.
        gathered.media_tokens += image_tokens_openai(model, detail, image_size(found[1]) if found else None)

    def audio(gathered: Gathered, part: Block) -> None:
        given = part.get("input_audio")
        data = given if isinstance(given, str) else mapping(given).get("data")  # Mistral's is the data itself, or a URL
        gathered.unseen |= isinstance(data, str) and data.startswith("http")
        size = len(data) if isinstance(data, str) else 0
        gathered.media_tokens += audio_tokens(size, text_or_none(mapping(given).get("format")))

    def file(gathered: Gathered, part: Block) -> None:
        given = mapping(part.get("file")) or part
        data = given.get("file_data")
        if isinstance(data, str):
            media_type, payload = data_url(data) or (None, data)
            gathered.media_tokens += document_tokens(payload, media_type)
        else:
            gathered.unseen = True  # a file id or a URL: its pages are not in the request
        gathered.text(given.get("filename"))

    return {
        "image_url": image,
        "input_image": image,
        "computer_screenshot": image,
        "input_audio": audio,
        "file": file,
        "input_file": file,
    }


def gather_prompts(gathered: Gathered, given: object, model: str | None) -> int:
    """A text, token ids, or a list of either; says how many. A token id is one token, whatever it weighs as text."""
    several = given if isinstance(given, list) else [given]
    if several and all(isinstance(one, int) for one in several):
        several = [several]
    for one in several:
        gathered.parts += 1
        if isinstance(one, list) and all(isinstance(token, int) for token in one):
            gathered.media_tokens += len(one)
        elif isinstance(one, str):
            gathered.text(one)
        else:
            gathered.block(one, media_parts(model))
    return len(several)


def gather_tools(gathered: Gathered, tools: object) -> tuple[bool, bool]:
    """Count the declared tools. (functions are declared, the provider runs some of its own)."""
    functions = server = False
    for tool in sequence(tools):
        gathered.parts += 1
        gathered.json(tool)
        kind = mapping(tool).get("type", "function")
        if kind in ("function", "custom", "namespace", "local_shell", "apply_patch"):
            functions = True
        else:
            server = True
    return functions or server, server


def cache_lifetime(body: Mapping[str, Any], gathered: Gathered) -> str | None:
    """ "5m" (the standard rate) or "1h" (the dearer one) for content that is marked for caching, in either spelling."""
    options = mapping(body.get("prompt_cache_options"))
    if options.get("ttl") not in (None, "30m") or body.get("prompt_cache_retention") not in (None, "in_memory", "30m"):
        return "1h"
    return gathered.cache_writes or "5m"
