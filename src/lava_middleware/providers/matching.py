"""This file knows how to match a request's host and path with patterns, however they are spelled."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv6Address, ip_address
from threading import Lock
from typing import TypeAlias
from urllib.parse import unquote

from cachetools import LRUCache

from ..forks import renew_in_child
from .row import Endpoint, Row

LONGEST_HOST = 253
LONGEST_REMEMBERED = 256
"""Characters of a path whose meaning is remembered."""

Found: TypeAlias = tuple[Endpoint, str | None] | None
"""An endpoint and the model that the path names."""

_QUERY = re.compile("[?#]")
_SLASH_IN_SEGMENT = "\0"
"""Stands for a percent-encoded slash: it belongs to its segment (a model's name), it does not end it."""


def normal_host(host: str, port: int | None = None) -> tuple[str, int | None]:
    """(host, port): lower case, without user info, brackets and trailing dot; the port from either place."""
    name = host.strip().rpartition("@")[2].lower()
    if name.startswith("["):
        name, _, rest = name[1:].partition("]")
        rest = rest.removeprefix(":")
    elif name.count(":") == 1:
        name, _, rest = name.partition(":")
    else:
        rest = ""
    if rest.isdecimal() and len(rest) <= 5:
        port = int(rest)
    return _shortest(name) if ":" in name else name.rstrip("."), port


def _shortest(address: str) -> str:
    """An IPv6 address in its one shortest spelling; what is none is left as it is."""
    try:
        return str(IPv6Address(address))
    except AddressValueError:
        return address


_OWN_NAMES = ("localhost", "test", "testserver")
"""What an application calls itself: this machine, and the names that test clients use (names below them too)."""


def is_own(host: str) -> bool:
    """Whether a normalised host is plainly this machine or this application, not somebody's service."""
    if host.rpartition(".")[2] in _OWN_NAMES:
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return not host
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    address = mapped or address
    return address.is_loopback or address.is_unspecified or address.is_link_local


def host_key(name: str, port: int | None = None) -> str:
    """A normalised host as it is listed among the operator's: gw.local, gw.local:443, [::1]:8811."""
    listed = f"[{name}]" if ":" in name else name
    return listed if port is None else f"{listed}:{port}"


def normal_path(path: str) -> str:
    """The path with its segments percent-decoded, without query, empty and dotted segments."""
    plain = _QUERY.split(path, 1)[0]
    segments: list[str] = []
    for raw in plain.split("/"):
        segment = unquote(raw).replace("/", _SLASH_IN_SEGMENT) if "%" in raw else raw
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    return "/" + "/".join(segments)


def host_matches(pattern: str, host: str) -> bool:
    """Whether a host is one of a pattern with one star: a leading `*.` is any labels, another `*` part of one label."""
    head, _, tail = pattern.partition("*")
    if len(host) <= len(head) + len(tail) or not host.startswith(head) or not host.endswith(tail):
        return False
    return pattern.startswith("*.") or "." not in host[len(head) : len(host) - len(tail)]


class PathPattern:
    """A path pattern in segments. Case is ignored: providers differ, and a miss would be an open door."""

    __slots__ = ("_head", "_model_at", "_suffix", "_tail")

    def __init__(self, pattern: str) -> None:
        segments = [_Segment(one) for one in pattern.strip("/").lower().split("/")]
        wide = next((at for at, one in enumerate(segments) if one.text == "**"), None)
        self._head = segments[:wide]
        self._tail = None if wide is None else segments[wide + 1 :]
        model_at = next((at for at, one in enumerate(segments) if one.is_model), None)
        # Behind `**` only its place from the end is known.
        after = model_at is not None and wide is not None and model_at > wide
        self._model_at = None if model_at is None else model_at - len(segments) if after else model_at
        self._suffix = "" if model_at is None else segments[model_at].suffix

    def matches(self, path: list[str]) -> bool:
        """Whether it matches these segments, in lower case."""
        head, tail = self._head, self._tail
        if tail is None:
            return len(path) == len(head) and _alike(head, path)
        if len(path) < len(head) + len(tail) or not _alike(head, path):
            return False
        return not tail or _alike(tail, path[-len(tail) :])

    def model(self, path: list[str]) -> str | None:
        """What stands in the place of `{model}`."""
        if self._model_at is None:
            return None
        named = path[self._model_at]
        return named[: len(named) - len(self._suffix)].replace(_SLASH_IN_SEGMENT, "/")


class _Segment:
    """One segment of a pattern: literal, or anything (`*`, `{model}`), or anything with a literal end."""

    __slots__ = ("is_model", "suffix", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        wild = next((one for one in ("{model}", "*") if text.startswith(one) and text != "**"), None)
        self.is_model = wild == "{model}"
        self.suffix = "" if wild is None else text[len(wild) :]
        if wild is not None:
            self.text = ""

    def fits(self, segment: str) -> bool:
        if self.text:
            return segment == self.text
        return len(segment) > len(self.suffix) and segment.endswith(self.suffix)


def _alike(pattern: list[_Segment], segments: list[str]) -> bool:
    return all(want.fits(got) for want, got in zip(pattern, segments, strict=False))


def _nothing_seen() -> LRUCache[tuple[str, str], Found]:
    return LRUCache(maxsize=1_024)


class Paths:
    """The endpoints of one row, ready to be matched."""

    __slots__ = ("__weakref__", "_lock", "_mine", "_patterns", "_seen", "row")

    def __init__(self, row: Row) -> None:
        self.row = row
        self._seen = _nothing_seen()
        """What paths meant before: most requests go to a handful of them."""
        self._lock = Lock()
        renew_in_child(self, _lock=Lock, _seen=_nothing_seen)
        self._patterns = [(one.methods, PathPattern(one.path), one) for one in row.endpoints]
        self._mine = [PathPattern(path) for path in row.paths]

    def owns(self, path: str) -> bool:
        """Whether the path is this provider's at all."""
        return not self._mine or any(mine.matches(_segments(path.lower())) for mine in self._mine)

    def match(self, method: str, path: str) -> Found:
        """(endpoint, model named by the path) of the first endpoint that matches."""
        if len(path) > LONGEST_REMEMBERED:
            return self._first(method, path)
        with self._lock:
            if (method, path) in self._seen:
                return self._seen[method, path]
        found = self._first(method, path)
        with self._lock:
            self._seen[method, path] = found
        return found

    def _first(self, method: str, path: str) -> Found:
        lowered = _segments(path.lower())
        for methods, pattern, endpoint in self._patterns:
            if method in methods and pattern.matches(lowered):
                return endpoint, pattern.model(_segments(path))
        return None


def _segments(path: str) -> list[str]:
    plain = path.strip("/")
    return plain.split("/") if plain else []


class Hosts:
    """Which rows a host belongs to."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._exact: dict[str, list[Row]] = {}
        self._patterns: list[tuple[str, Row]] = []
        for row in rows:
            for host in row.hosts:
                if "*" in host:
                    self._patterns.append((host, row))
                else:
                    self._exact.setdefault(host, []).append(row)

    def rows(self, host: str) -> tuple[Row, ...]:
        """The rows of a normalised host."""
        if len(host) > LONGEST_HOST:
            return ()
        found = list(self._exact.get(host, ()))
        found += [row for pattern, row in self._patterns if host_matches(pattern, host) and row not in found]
        return tuple(found)
