"""This file knows which provider and which endpoint a request is for.

A path that is missing on a host we know is an unknown door: it is refused under a money gate, never passed at zero.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from types import MappingProxyType

from cachetools import LRUCache

from ..forks import renew_in_child
from . import rows
from .matching import LONGEST_HOST, Hosts, Paths, host_key, host_matches, is_own, normal_host, normal_path
from .others import ROWS_WITHOUT_ENDPOINTS
from .row import OPERATOR, Endpoint, Match, Row
from .rows import unlisted
from .spoken import CHAT, EMBEDDINGS, MESSAGES, RESPONSES

__all__ = ["CHAT", "EMBEDDINGS", "KNOWN_OTHER_HOSTS", "MESSAGES", "RESPONSES", "ROWS", "UNVERIFIED"]
__all__ += ["find", "find_by_path", "how_to_allow", "is_unlisted", "known_host"]

ROWS: Mapping[str, Row] = MappingProxyType({row.name: row for row in reversed(rows.ROWS)})
"""Providers by name, as operators write them in `hosts`; of several rows with one name the first."""

UNVERIFIED: tuple[str, ...] = tuple(sorted({row.name for row in rows.ROWS if not row.evidence}))
"""Providers whose format was neither recorded nor found on a dated page of theirs: refused by default."""


_NOT_VERIFIED = ", not verified"
"""Ends the door of a provider that is not verified."""


def _as_doors(row: Row) -> Row:
    """A row that is not verified, as its own hosts have it: nothing is metered there."""
    endpoints = (
        one if one.dialect is None else Endpoint(one.methods, one.path, door=row.name + _NOT_VERIFIED)
        for one in row.endpoints
    )
    return replace(row, endpoints=tuple(endpoints))


def how_to_allow(match: Match, host: str) -> str:
    """What to tell somebody whose call met a provider that is not verified; empty: that is not why it is refused."""
    if match.endpoint is None or not match.endpoint.door.endswith(_NOT_VERIFIED):
        return ""
    name, at = match.row.name, host_key(*normal_host(host))
    return (
        f"how {name} reports usage was not verified, so nothing was sent; once you have tried it, name it with "
        f'hosts={{"{at}": "{name}"}} or LAVA_HOSTS={at}={name}, and its calls are metered'
    )


_BY_PATHS_FIRST = sorted(rows.ROWS, key=lambda row: not row.paths)
_ALL = (*(row if row.evidence else _as_doors(row) for row in _BY_PATHS_FIRST), *ROWS_WITHOUT_ENDPOINTS)
_UNLISTED = tuple(Paths(row) for row in unlisted.ROWS)

KNOWN_OTHER_HOSTS: Mapping[str, str] = MappingProxyType(
    {host: row.name for row in ROWS_WITHOUT_ENDPOINTS if not row.paths for host in row.hosts}
)
"""Host patterns of providers without a dialect yet → the provider's name."""

_hosts = Hosts(_ALL)
_paths: dict[int, Paths] = {}


def _new_cache() -> LRUCache[str, tuple[Row, ...]]:
    return LRUCache(maxsize=1_024)


_of_host = _new_cache()
_lock = Lock()
renew_in_child(sys.modules[__name__], _lock=Lock, _of_host=_new_cache)


def find(
    method: str,
    host: str,
    path: str,
    hosts: Mapping[str, tuple[Row, ...]] | None = None,
    port: int | None = None,
    *,
    by_path: bool = False,
) -> Match | None:
    """What a request is for; None: it is not for a provider.

    `hosts` are the operator's own: "127.0.0.1:8811" or a bare name (as host_key() writes them), or either with a star
    → rows, told apart by path. There the API may be mounted below a prefix, with or without its `/v1`. Without a port
    it is some scheme's own: what is listed at 443 or 80 is met.
    `by_path`: a host that nobody listed is met where its path is a known format's, unless it is plainly the
    application itself.
    """
    if hosts:
        mine = _of_operator(hosts, *normal_host(host, port))
        if mine and (found := _at_operators_host(method.upper(), normal_path(path), mine)) is not None:
            return found
    rows = _rows_of(host)
    if not rows:
        found = find_by_path(method, path) if by_path else None
        return None if found is None or is_own(normal_host(host)[0]) else found
    method, plain = method.upper(), normal_path(path)
    for row in rows:
        paths = _paths_of(row)
        if paths.owns(plain):
            endpoint, model = paths.match(method, plain) or (None, None)
            return Match(row, endpoint, model)
    return None


def _of_operator(hosts: Mapping[str, tuple[Row, ...]], name: str, port: int | None) -> tuple[Row, ...]:
    keys = [host_key(name, one) for one in ((443, 80) if port is None else (port,))] + [host_key(name)]
    for key in keys:
        if (rows := hosts.get(key)) is not None:
            return rows
    patterns = [one for one in hosts if "*" in one]
    return next((hosts[one] for key in keys for one in patterns if host_matches(one, key)), ())


def is_unlisted(match: Match) -> bool:
    """Whether the host is nobody's that we know: only the path spoke for a provider, and the body has yet to."""
    return any(match.row is paths.row for paths in _UNLISTED)


def find_by_path(method: str, path: str) -> Match | None:
    """What a request to a host that nobody knows would be for, if its path is one of a known format's; else None.

    Only for operators who ask for it: some other service may have a path of that name, and a body that the dialect
    cannot read is then no provider's at all.
    """
    method, plain = method.upper(), normal_path(path)
    for paths in _UNLISTED:
        if (found := paths.match(method, plain)) is not None:
            return Match(paths.row, *found)
    return None


def known_host(host: str, path: str | None = None) -> str | None:
    """The name of the provider that a host belongs to; of a host with other services too, only if the path is given
    and is the provider's."""
    plain = None if path is None else normal_path(path)
    for row in _rows_of(host):
        if not row.paths or (plain is not None and _paths_of(row).owns(plain)):
            return row.name
    return None


def _rows_of(host: str) -> tuple[Row, ...]:
    """The rows of a host, however it is written. Answers are kept for hosts of a sane length."""
    with _lock:
        rows = _of_host.get(host)
    if rows is None:
        rows = _hosts.rows(normal_host(host)[0])
        if len(host) <= LONGEST_HOST:
            with _lock:
                _of_host[host] = rows
    return rows


def _paths_of(row: Row) -> Paths:
    """The row's patterns, made when they are first needed. They keep the row alive, so that its id stays its own."""
    paths = _paths.get(id(row))
    if paths is None:
        paths = _paths[id(row)] = Paths(row)
    return paths


def _at_operators_host(method: str, path: str, rows: tuple[Row, ...]) -> Match | None:
    """The first row with an endpoint for the path as it is, else with a metered or a read one for the path without
    its first segments. None: the operator's rows name the paths that are theirs, and this is none of them."""
    # Only an operator's own row is believed about its paths: at another host a shipped one may be mounted elsewhere.
    rows = tuple(row for row in rows if row.evidence != OPERATOR or _paths_of(row).owns(path))
    for row in rows:
        if (found := _paths_of(row).match(method, path)) is not None:
            return Match(row, *found)
    segments = path.strip("/").split("/")
    for start in range(min(len(segments), 5)):
        rest = "/" + "/".join(segments[start:])
        for candidate in (rest, "/v1" + rest):
            for row in rows:
                found = _paths_of(row).match(method, candidate)
                if found is not None and found[0].dialect is not None:
                    return Match(row, *found)
    return Match(rows[0], None) if rows else None
