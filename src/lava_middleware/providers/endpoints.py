"""This file knows how to write down what a provider's paths mean for money."""

from __future__ import annotations

from ..dialects.dialect import Dialect
from .row import Endpoint
from .spoken import COMPLETIONS_COMPATIBLE, EMBEDDINGS, RESPONSES


def metered(path: str, dialect: Dialect) -> Endpoint:
    """A POST that is gated and billed."""
    return Endpoint(("POST",), path, dialect, door=dialect.name)


def free(door: str, *paths: str) -> tuple[Endpoint, ...]:
    """POSTs that cost nothing."""
    return tuple(Endpoint(("POST",), path, free=True, door=door) for path in paths)


def door(name: str, *paths: str) -> tuple[Endpoint, ...]:
    """Known, billable, and not metered yet."""
    return tuple(Endpoint(("POST",), path, door=name) for path in paths)


def sockets(name: str, *paths: str) -> tuple[Endpoint, ...]:
    """GETs that open a connection on which work is billed."""
    return tuple(Endpoint(("GET",), path, door=name) for path in paths)


READING = (
    Endpoint(("GET", "HEAD", "OPTIONS"), "/**", free=True, door="reading"),
    Endpoint(("DELETE", "PUT", "PATCH"), "/**", free=True, door="management"),
)
"""Reading, renaming and deleting are not billed; a retrieval shows the usage of an earlier call, which was."""

SOCKETS = sockets(
    "realtime",
    *("/**/realtime", "/**/listen", "/**/speak", "/**/stt", "/**/tts", "/**/ws", "/ws/**", "/**/conversation"),
    *("/**/stream-input", "/**/multi-stream-input", "/**/responses"),
)
"""Paths on which providers take WebSockets: reading is free, but what is said there is billed."""


def compatible(
    prefix: str, chat: Dialect, *, completions: Dialect = COMPLETIONS_COMPATIBLE, more: tuple[Endpoint, ...] = ()
) -> tuple[Endpoint, ...]:
    """The paths of a host that took over OpenAI's format, behind a prefix. Those it lacks it answers with 404, which
    costs nothing; POSTs that are not here are unknown doors. `more` stands before them all."""

    def at(*paths: str) -> tuple[str, ...]:
        return tuple(prefix + path for path in paths)

    return (
        *more,
        metered(prefix + "/chat/completions", chat),
        metered(prefix + "/completions", completions),
        metered(prefix + "/responses", RESPONSES),
        metered(prefix + "/embeddings", EMBEDDINGS),
        *free("files", *at("/files")),
        *free("cancelling", *at("/responses/*/cancel", "/batches/*/cancel")),
        *door("messages", *at("/messages")),
        *door("batches", *at("/batches")),
        *door("images", *at("/images/**", "/image/**")),
        *door("audio", *at("/audio/**")),
        *door("videos", *at("/videos", "/videos/**")),
        *door("rerank", *at("/rerank")),
        *SOCKETS,
        *READING,
    )
