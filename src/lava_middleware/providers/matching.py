"""This file knows how to match a request's host and path with patterns, however they are spelled."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from .row import Endpoint, Row

LONGEST_HOST = 253
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
    return name.rstrip("."), port


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


def host_pattern(pattern: str) -> re.Pattern[str]:
    """A host pattern as a regular expression: a leading `*.` is any labels, another `*` any part of one label."""
    head, rest = (r"(?:[^.]+\.)+", pattern[2:]) if pattern.startswith("*.") else ("", pattern)
    return re.compile(head + r"[^.]*".join(re.escape(part) for part in rest.split("*")))


def path_pattern(pattern: str) -> re.Pattern[str]:
    """A path pattern as a regular expression, case ignored: providers differ, and a miss would be an open door."""
    parts = []
    for segment in pattern.strip("/").split("/"):
        if segment == "**":
            parts.append(r"(?:/[^/]+)*")
        elif segment == "{model}":
            parts.append(r"/(?P<model>[^/]+)")
        else:
            parts.append("/" + r"[^/]+".join(re.escape(part) for part in segment.split("*")))
    return re.compile("".join(parts) + "/?", re.IGNORECASE)


class Paths:
    """The endpoints of one row, ready to be matched."""

    __slots__ = ("_literal", "_mine", "_patterns", "row")

    def __init__(self, row: Row) -> None:
        self.row = row
        self._patterns = [(frozenset(one.methods), path_pattern(one.path), one) for one in row.endpoints]
        self._mine = [path_pattern(path) for path in row.paths]
        self._literal = {
            (method, one.path.lower()): self._first(method, one.path)
            for one in row.endpoints
            if "*" not in one.path and "{" not in one.path
            for method in one.methods
        }

    def owns(self, path: str) -> bool:
        """Whether the path is this provider's at all."""
        return not self._mine or any(mine.fullmatch(path) for mine in self._mine)

    def match(self, method: str, path: str) -> tuple[Endpoint, str | None] | None:
        """(endpoint, model named by the path) of the first endpoint that matches."""
        return self._literal.get((method, path.lower())) or self._first(method, path)

    def _first(self, method: str, path: str) -> tuple[Endpoint, str | None] | None:
        for methods, pattern, endpoint in self._patterns:
            if method in methods and (match := pattern.fullmatch(path)) is not None:
                model = match.groupdict().get("model")
                return endpoint, None if model is None else model.replace(_SLASH_IN_SEGMENT, "/")
        return None


class Hosts:
    """Which rows a host belongs to."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._exact: dict[str, list[Row]] = {}
        self._patterns: list[tuple[re.Pattern[str], Row]] = []
        for row in rows:
            for host in row.hosts:
                if "*" in host:
                    self._patterns.append((host_pattern(host), row))
                else:
                    self._exact.setdefault(host, []).append(row)

    def rows(self, host: str) -> tuple[Row, ...]:
        """The rows of a normalised host."""
        if len(host) > LONGEST_HOST:
            return ()
        found = list(self._exact.get(host, ()))
        found += [row for pattern, row in self._patterns if pattern.fullmatch(host) and row not in found]
        return tuple(found)
