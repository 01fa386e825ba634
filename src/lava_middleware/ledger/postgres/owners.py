"""This file knows which processes, on whatever hosts, have the ledger open, and which of them are dead.

Liveness is a heartbeat on the server's clock. Nobody compares it with a clock of his own: an owner is dead once a
sweeper, looking all the while, has seen the same beat for a whole TTL on its own monotonic clock. So clocks may differ,
and after an outage, in which nobody could beat or look, everybody gets a whole TTL again.
"""

from __future__ import annotations

import os
import secrets
import time
from _thread import allocate_lock
from collections.abc import Callable

from ..journal import Busy, JournalUnavailable, OwnerMark
from .psycopg import Link

TTL_S = 20.0
"""After so long without a beat a process is dead. What one that was only stopped says later are adjustments."""

_MINE: dict[str, str] = {}
"""Ledger id → the owner id of this process. It outlives a closed journal."""
_UNHEARD: set[str] = set()
"""Owner ids that are given and of which the ledger does not know yet."""
_LOW: dict[str, int] = {}
"""Owner id → from where on it may have open holds, as last said; for the row that somebody else took away."""


class _Beats:
    """The heartbeats of one ledger's owners, as this process has seen them."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float]] = {}
        """Owner → (its last beat, since when we have been seeing that one)."""
        self._looked_at = float("-inf")

    def look(self, beats: dict[str, object], now: float, ttl_s: float) -> dict[str, float]:
        """Owner → for how many seconds we have been looking at the same beat."""
        if now - self._looked_at > ttl_s / 2:
            self._seen = {}  # nobody knows what happened while we did not look
        self._looked_at = now
        self._seen = {
            owner: seen if (seen := self._seen.get(owner)) is not None and seen[0] == beat else (beat, now)
            for owner, beat in beats.items()
        }
        return {owner: now - since for owner, (_, since) in self._seen.items()}


_BEATS: dict[str, _Beats] = {}
"""Ledger id → what all its journals in this process have seen."""


class Owners:
    """The owners of one ledger, as this process sees them."""

    def __init__(
        self, link: Link, schema: str, ledger: str, ttl_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._link = link
        self._schema = schema
        self._ledger = ledger
        self._ttl_s = ttl_s
        self._monotonic = monotonic
        self._lock = allocate_lock()
        self._beats = _BEATS.setdefault(ledger, _Beats())
        self._beat_at = float("-inf")

    def name(self) -> str:
        """This process's owner id. Asks nobody."""
        with self._lock:
            return self._named()

    def _named(self) -> str:
        mine = _MINE.get(self._ledger)
        if mine is None:
            mine = f"pg-{os.getpid()}-{secrets.token_hex(8)}"
            _UNHEARD.add(mine)
            _MINE[self._ledger] = mine
        return mine

    def register(self) -> str:
        """This process's owner id, and its row. Safe to repeat."""
        with self._lock:
            mine = self._named()
            if mine in _UNHEARD:
                self._insert(mine, f"(SELECT coalesce(max(seq), 0) + 1 FROM {self._schema}.journal)")
                _UNHEARD.discard(mine)
            else:
                self._insert(mine, str(_LOW.get(mine, 1)))
            return mine

    def _insert(self, owner: str, low_seq: str) -> None:
        self._link.save(
            f"INSERT INTO {self._schema}.owners VALUES ($1, {low_seq}, clock_timestamp()) "
            "ON CONFLICT (owner) DO UPDATE SET beat = clock_timestamp()",
            (owner,),
        )
        self._beat_at = self._monotonic()

    def beat(self) -> None:
        """Show that this process lives, if it is time to. Raises what a write raises."""
        mine = _MINE.get(self._ledger)
        if mine is None or mine in _UNHEARD or self._monotonic() - self._beat_at < self._ttl_s / 5:
            return
        # What was taken for dead and done with has made holds since: it comes back, or nobody would ever end them.
        self._insert(mine, str(_LOW.get(mine, 1)))

    def advance(self, owner: str, low_seq: int) -> None:
        self._link.save(
            f"UPDATE {self._schema}.owners SET low_seq = greatest(low_seq, $2::bigint), beat = clock_timestamp() "
            "WHERE owner = $1",
            (owner, low_seq),
        )
        if owner == _MINE.get(self._ledger):
            _LOW[owner] = max(low_seq, _LOW.get(owner, 1))

    def marks(self) -> list[OwnerMark]:
        rows = self._link.fetch(f"SELECT owner, low_seq, beat FROM {self._schema}.owners ORDER BY low_seq, owner")
        with self._lock:
            since = self._beats.look({owner: beat for owner, _, beat in rows}, self._monotonic(), self._ttl_s)
        mine = _MINE.get(self._ledger)
        return [OwnerMark(owner, low, owner == mine or since[owner] < self._ttl_s) for owner, low, _ in rows]

    def forget(self, owner: str) -> None:
        self._link.save(f"DELETE FROM {self._schema}.owners WHERE owner = $1", (owner,))

    def take_lease(self, follower: str) -> bool:
        """Whether this process may be at work for the follower: nobody alive is. Raises what a write raises."""
        mine = self.name()
        if mine in _UNHEARD:
            self.register()
        self.beat()
        taken = self._link.save(
            f"INSERT INTO {self._schema}.leases VALUES ($1, $2) ON CONFLICT (follower) DO UPDATE SET owner = $2 "
            f"WHERE leases.owner = $2 OR NOT EXISTS (SELECT 1 FROM {self._schema}.owners o "
            "WHERE o.owner = leases.owner) RETURNING follower",
            (follower, mine),
        )
        return bool(taken) or self._take_from_the_dead(follower, mine)

    def _take_from_the_dead(self, follower: str, mine: str) -> bool:
        dead = [mark.owner for mark in self.marks() if not mark.alive]
        return bool(dead) and bool(
            self._link.save(
                f"UPDATE {self._schema}.leases SET owner = $2 WHERE follower = $1 AND owner = ANY($3) "
                "RETURNING follower",
                (follower, mine, dead),
            )
        )

    def give_up_lease(self, follower: str) -> None:
        self._link.save(
            f"DELETE FROM {self._schema}.leases WHERE follower = $1 AND owner = $2",
            (follower, _MINE.get(self._ledger, "")),
        )

    def quietly_beat(self) -> None:
        """`beat` for whoever has nobody to tell."""
        try:
            self.beat()
        except (Busy, JournalUnavailable):
            return

    def forget_parent(self) -> None:
        self._lock = allocate_lock()
        self._beats = _BEATS[self._ledger] = _Beats()
        _MINE.pop(self._ledger, None)
        self._beat_at = float("-inf")
