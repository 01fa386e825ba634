"""This file knows how the journal is kept in PostgreSQL: any number of hosts, many accounts' appends in one statement.

Every append is one statement that carries its own proof, takes the account's advisory lock and is its own transaction.
"""

from __future__ import annotations

import os
import weakref
from _thread import get_ident
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from ..journal import Appended, Busy, Entry, JournalUnavailable, Outcome, OwnerMark, Snapshot, check_consecutive
from . import owners
from .owners import Owners
from .psycopg import Clash, Link, Missing, Rows, Statement
from .schema import CLUSTER, NEWEST_ERA, is_there, lock_number, patiently_prepare

Durability: TypeAlias = Literal["power_loss", "process_crash"]

SCHEMA = "lava"
TIMEOUT_S = 2.0
BULK_TIMEOUT_S = 15.0
"""For a follower's and an operator's reads, which no call waits for."""
_PLACES = 64
"""Positions of followers remembered, so that no look into the journal is needed to know where a seq stands."""
_OFTEN = 8
"""Of so many attempts at a lock that somebody sits on, one is as patient as if nobody waited beside it."""
_LEAST_MS = 5
_HELD_MOST = 1000
_BEGINNING = (0, "0", 0)

_COLUMNS = "account, version, kind, key, balance_after, event, record, at, seq"
_BARE = _COLUMNS.replace("record", "NULL")

_LOCKED = """settings AS MATERIALIZED (
    SELECT set_config('lock_timeout', $13::text, true){durable}
), locked AS MATERIALIZED (
    SELECT count(pg_advisory_xact_lock(o.lock)) AS taken
    FROM settings, (SELECT DISTINCT lock FROM unnest($4::bigint[]) AS l (lock) ORDER BY lock) o
)"""
"""Sorted, so that two who lock several accounts never wait for each other."""

_DURABLE = """, set_config('synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END,
        true)"""

_APPEND = """WITH {locked}, proof AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS p (account, version, at, number)
), checked AS MATERIALIZED (
    SELECT p.number, p.account,
        p.version = 0 OR EXISTS (
            SELECT FROM {schema}.journal j WHERE j.account = p.account AND j.version = p.version AND j.at = p.at
        ) AS follows,
        EXISTS (
            SELECT FROM {schema}.journal j WHERE j.account = p.account AND j.version = p.version + 1
        ) AS taken
    FROM proof p, locked
), added AS (
    INSERT INTO {schema}.journal (account, version, kind, key, balance_after, event, record, at, era)
    SELECT c.account, r.version, r.kind, r.key, r.balance_after, r.event, r.record, r.at, {era}
    FROM unnest($5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::bigint[], $10::text[], $11::text[],
            $12::bigint[]) WITH ORDINALITY AS r (of, version, kind, key, balance_after, event, record, at, number)
        JOIN checked c ON c.number = r.of AND c.follows AND NOT c.taken
    ORDER BY r.number
    RETURNING account, version, seq
)
SELECT c.follows, (SELECT array_agg(a.seq ORDER BY a.version) FROM added a WHERE a.account = c.account)
FROM checked c ORDER BY c.number"""
"""One row for each account: whether its predecessor is there, and the seq of each entry if all were appended. Who was
overtaken before this statement began is left out; who is overtaken while it waits for its lock meets the unique
index, and all of it is rolled back."""

_READ = f"""SELECT {_COLUMNS}, era, xid::text AS number FROM {{schema}}.journal
WHERE (era, xid, seq) > ($1::integer, $2::xid8, $3::bigint)
    AND (era < coalesce({{era}}, 2147483647) OR xid < pg_snapshot_xmin(pg_current_snapshot()))
ORDER BY era, xid, seq LIMIT $4"""
"""What can no longer be preceded by anything: below the oldest transaction that still runs in this cluster."""


_TAILS = f"""SELECT j.account, j.version, {_BARE.removeprefix("account, version, ")}
FROM unnest($1::text[], $2::bigint[]) AS w (account, version)
    JOIN {{schema}}.journal j ON j.account = w.account AND j.version >= w.version
ORDER BY j.account, j.version"""

_ALONE = """SELECT set_config('lock_timeout', $2::text, true),
    set_config('idle_in_transaction_session_timeout', '5s', true),
    (SELECT count(pg_advisory_xact_lock(l.lock)) FROM unnest($1::bigint[]) AS l (lock))"""


class _Alone:
    def __init__(self, journal: PostgresJournal, tails: dict[str, list[Entry]]) -> None:
        self._journal = journal
        self.tails = tails

    def commit(self, appends: Sequence[tuple[Sequence[Entry], tuple[int, int]]]) -> list[Appended]:
        return self._journal._commit(appends)


class PostgresJournal:
    """The journal in a PostgreSQL database, in tables of a schema of its own (`?schema=` in the URL, else "lava").

    `durability`: "power_loss" sees to it that a commit is on the server's disk before it is answered, whatever the
    server's synchronous_commit; "process_crash" leaves that to the server. `timeout_s`: how long a statement may take,
    and how long an outage that has just begun is waited for. `owner_ttl_s`: after so long without a heartbeat a
    process is dead.
    """

    batches = True

    def __init__(
        self,
        url: str,
        durability: Durability = "power_loss",
        *,
        timeout_s: float = TIMEOUT_S,
        owner_ttl_s: float | None = None,
    ) -> None:
        url, self._schema_name = split_schema(url)
        self._schema = '"' + self._schema_name.replace('"', '""') + '"'
        self._writer = Link(url, timeout_s)
        self._tail = Link(url, timeout_s)
        self._bulk = Link(url, max(BULK_TIMEOUT_S, timeout_s))
        self._writing_thread = 0
        self._alone_thread = 0
        self._places: OrderedDict[int, tuple[int, str, int]] = OrderedDict()
        """seq → where it stands among all that can be followed."""
        self._closed = False
        self._lock_ms, self._brief_ms = max(int(timeout_s * 125), _LEAST_MS), int(timeout_s * 25)
        self._held: dict[str, int] = {}
        """Account → how often its lock could not be had since we last had it."""
        locked = _LOCKED.format(durable=_DURABLE if durability == "power_loss" else "")
        era = NEWEST_ERA.format(schema=self._schema)
        self._append_sql = _APPEND.format(locked=locked, schema=self._schema, era=era)
        self._tails_sql = _TAILS.format(schema=self._schema)
        self._read_sql = _READ.format(schema=self._schema, era=era)
        try:
            self._ledger = patiently_prepare(self._writer, self._schema_name)
        except BaseException:
            self._writer.close()
            raise
        self._owners = Owners(self._tail, self._schema, self._ledger, owner_ttl_s or owners.TTL_S)
        _OPEN.add(self)

    @property
    def identity(self) -> str:
        """The same for every journal on this ledger, and for no other."""
        return f"postgres:{self._ledger}"

    @property
    def statements(self) -> int:
        """How many were sent so far, in this process."""
        return self._writer.statements + self._tail.statements + self._bulk.statements

    # -- entries

    def append(self, entries: Sequence[Entry], predecessor: tuple[int, int]) -> tuple[Outcome, int]:
        (appended,) = self.append_many([(entries, predecessor)])
        return appended.outcome, appended.seqs[-1] if appended.seqs else 0

    def append_many(self, appends: Sequence[tuple[Sequence[Entry], tuple[int, int]]]) -> list[Appended]:
        for entries, predecessor in appends:
            check_consecutive(entries, predecessor)
        told: dict[str, Appended] = {}
        free = [one for one in appends if one[0][0].account not in self._held]
        if len(free) > 1:
            with suppress(Busy, Clash):  # one is overtaken in the last moment, or sat on: the others have not lost
                told = dict(zip((one[0][0].account for one in free), self._append(free, self._lock_ms), strict=True))
        left = [one for one in appends if one[0][0].account not in told]
        for one in left:
            told[one[0][0].account] = self._append_one(one, beside=len(appends) - 1)
        if all(one.outcome is Outcome.BUSY for one in told.values()):
            raise Busy
        return [told[entries[0].account] for entries, _ in appends]

    def _append_one(self, one: tuple[Sequence[Entry], tuple[int, int]], beside: int) -> Appended:
        """`beside`: how many others wait meanwhile. A process that is stopped may have its lock for seconds."""
        account = one[0][0].account
        try:
            (appended,) = self._append([one], self._patience_ms(account, beside))
        except Busy:
            self._not_had(account)
            return Appended(Outcome.BUSY)
        except Clash as clash:
            appended = Appended(Outcome.CONFLICT, key_taken=clash.index == "journal_key")
        self._held.pop(account, None)
        return appended

    def _patience_ms(self, account: str, beside: int) -> int:
        """Brief where others wait for it, but not always: where many processes write, a lock is had in turn."""
        tried = self._held.get(account, 0)
        if tried % _OFTEN == (_OFTEN - 1 if tried or beside else 0):
            return self._lock_ms
        return max(self._brief_ms // max(beside, 1), _LEAST_MS)

    def _not_had(self, account: str) -> None:
        if len(self._held) >= _HELD_MOST:
            self._held.clear()
        self._held[account] = self._held.get(account, 0) + 1

    def _append(self, appends: Sequence[tuple[Sequence[Entry], tuple[int, int]]], lock_ms: int) -> list[Appended]:
        """All of it in one statement, or none where it raises Busy or Clash."""
        values = self._values(appends, lock_ms)
        while True:
            try:
                rows = self._writer.write(self._append_sql, values)
            except Missing:
                self._begin_era()
            else:
                return [_appended(follows, seqs) for follows, seqs in rows]

    def _values(self, appends: Sequence[tuple[Sequence[Entry], tuple[int, int]]], lock_ms: int) -> tuple[str, ...]:
        accounts = [entries[0].account for entries, _ in appends]
        lines = [(number, entry) for number, (entries, _) in enumerate(appends, 1) for entry in entries]
        return (
            _texts(accounts),
            _numbers(version for _, (version, _) in appends),
            _numbers(at for _, (_, at) in appends),
            _numbers(lock_number(self._schema_name, account) for account in accounts),
            _numbers(number for number, _ in lines),
            _numbers(entry.version for _, entry in lines),
            _texts([entry.kind for _, entry in lines]),
            _texts([entry.key for _, entry in lines]),
            _numbers(entry.balance_after for _, entry in lines),
            _texts([entry.event for _, entry in lines]),
            _texts([entry.record for _, entry in lines]),
            _numbers(entry.at for _, entry in lines),
            f"{lock_ms}ms",
        )

    def _commit(self, appends: Sequence[tuple[Sequence[Entry], tuple[int, int]]]) -> list[Appended]:
        """`append_many` at the end of a transaction of `alone`."""
        try:
            rows = self._writer.finish(self._append_sql, self._values(appends, self._lock_ms))
        except Clash as clash:
            return [Appended(Outcome.CONFLICT, key_taken=clash.index == "journal_key") for _ in appends]
        except Missing:
            raise Busy from None  # whoever appends without being alone begins the new era
        return [_appended(follows, seqs) for follows, seqs in rows]

    def _begin_era(self) -> None:
        """The ledger has come to another cluster, whose transactions are numbered anew."""
        with self._writer.transaction():
            self._writer.write("SELECT pg_advisory_xact_lock($1::bigint)", (lock_number("schema", self._schema_name),))
            self._writer.write(
                f"INSERT INTO {self._schema}.eras SELECT max(era) + 1, {CLUSTER}, clock_timestamp() "
                f"FROM {self._schema}.eras HAVING {NEWEST_ERA.format(schema=self._schema)} IS NULL"
            )

    def tails(self, wanted: Sequence[tuple[str, int]]) -> dict[str, list[Entry]]:
        return _by_account(wanted, self._reader.fetch(*self._tails(wanted)))

    def _tails(self, wanted: Sequence[tuple[str, int]]) -> Statement:
        return self._tails_sql, (_texts([account for account, _ in wanted]), _numbers(version for _, version in wanted))

    @contextmanager
    def alone(self, wanted: Sequence[tuple[str, int]]) -> Iterator[_Alone]:
        """See BatchJournal. The locks are taken in a statement before that of the tails, so these are not of before."""
        accounts = [account for account, _ in wanted]
        locks = _numbers(sorted({lock_number(self._schema_name, account) for account in accounts}))
        lock_ms = min(self._patience_ms(account, beside=0) for account in accounts)
        with ExitStack() as stack:
            try:
                first = (_ALONE, (locks, f"{lock_ms}ms")), self._tails(wanted)
                _, rows = stack.enter_context(self._writer.transaction(*first))
            except Busy:
                if len(accounts) == 1:
                    self._not_had(accounts[0])
                raise
            for account in accounts:
                self._held.pop(account, None)
            self._alone_thread = get_ident()
            try:
                yield _Alone(self, _by_account(wanted, rows))
            finally:
                self._alone_thread = 0

    def writes_here(self, here: bool = True) -> None:
        if here:
            self._writing_thread = get_ident()
        elif self._writing_thread == get_ident():
            self._writing_thread = 0

    @property
    def _reader(self) -> Link:
        return self._writer if get_ident() in (self._writing_thread, self._alone_thread) else self._tail

    def since(self, account: str, version: int) -> list[Entry]:
        return self._entries_of(
            self._reader,
            f"SELECT {_BARE} FROM {self._schema}.journal WHERE account = $1 AND version >= $2 ORDER BY version",
            (_escaped(account), version),
        )

    def find(self, account: str, keys: Sequence[str]) -> list[Entry]:
        if not keys:
            return []
        return self._entries_of(
            self._reader,
            f"SELECT {_COLUMNS} FROM {self._schema}.journal WHERE account = $1 AND key = ANY($2::text[]) "
            "ORDER BY version",
            (_escaped(account), _texts(list(dict.fromkeys(keys)))),
        )

    def entries(self, account: str, *, before: int | None = None, limit: int = 100) -> list[Entry]:
        below = 2**62 if before is None else before
        return self._entries_of(
            self._bulk,
            f"SELECT {_COLUMNS} FROM {self._schema}.journal WHERE account = $1 AND version < $2 "
            "ORDER BY version DESC LIMIT $3",
            (_escaped(account), below, limit),
        )

    def read(self, after: int, limit: int = 500) -> list[Entry]:
        """See Journal. The order is that in which entries became final: an entry's seq may be below the one before."""
        rows = self._bulk.fetch(self._read_sql, (*self._place_of(after), limit))
        for row in rows[-1:]:
            self._places[row[8]] = row[9], row[10], row[8]
            while len(self._places) > _PLACES:
                self._places.popitem(last=False)
        return [_entry(row[:9]) for row in rows]

    def _place_of(self, seq: int) -> tuple[int, str, int]:
        """Where this entry stands. One that is not there (any more) stands where the last one below it does."""
        place = self._places.get(seq)
        if seq <= 0 or place is not None:
            return place or _BEGINNING
        rows = self._bulk.fetch(
            f"SELECT era, xid::text, seq FROM {self._schema}.journal WHERE seq = $1 "
            f"UNION ALL SELECT era, xid::text, seq FROM {self._schema}.cursors WHERE seq = $1 AND era IS NOT NULL "
            f"UNION ALL (SELECT era, xid::text, seq FROM {self._schema}.journal WHERE seq < $1 "
            "ORDER BY seq DESC LIMIT 1)",
            (seq,),
        )
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else _BEGINNING

    def last_seq(self) -> int:
        ((seq,),) = self._tail.fetch(f"SELECT coalesce(max(seq), 0) FROM {self._schema}.journal")
        return int(seq)

    def accounts(self, *, after: str = "", limit: int = 500) -> list[str]:
        # One step in the index for each account; DISTINCT would walk over all of their entries.
        journal = f"{self._schema}.journal"
        sql = f"""WITH RECURSIVE walk (account) AS (
            (SELECT account FROM {journal} WHERE account > $1 ORDER BY account LIMIT 1)
            UNION ALL
            SELECT (SELECT j.account FROM {journal} j WHERE j.account > walk.account ORDER BY j.account LIMIT 1)
            FROM walk WHERE walk.account IS NOT NULL)
            SELECT account FROM walk WHERE account IS NOT NULL LIMIT $2"""
        return [_unescaped(account) for (account,) in self._bulk.fetch(sql, (_escaped(after), limit))]

    def _entries_of(self, link: Link, sql: str, values: tuple[Any, ...]) -> list[Entry]:
        return [_entry(row) for row in link.fetch(sql, values)]

    # -- what is kept beside the entries

    def snapshots(self, accounts: Sequence[str]) -> dict[str, Snapshot]:
        sql = (
            f"SELECT account, version, at, format, state FROM {self._schema}.snapshots WHERE account = ANY($1::text[])"
        )
        rows = self._reader.fetch(sql, (_texts(accounts),))
        return {
            (name := _unescaped(account)): Snapshot(name, version, at, form, _unescaped(state))
            for account, version, at, form, state in rows
        }

    def snapshot(self, account: str) -> Snapshot | None:
        return self.snapshots([account]).get(account)

    def save_snapshots(self, snapshots: Iterable[Snapshot]) -> None:
        last = {one.account: one for one in snapshots}
        some = [last[account] for account in sorted(last)]  # sorted: two who save the same ones do not deadlock
        if some:
            self._tail.save(
                f"INSERT INTO {self._schema}.snapshots SELECT * FROM "
                "unnest($1::text[], $2::bigint[], $3::bigint[], $4::integer[], $5::text[]) "
                "ON CONFLICT (account) DO UPDATE SET version = excluded.version, at = excluded.at, "
                "format = excluded.format, state = excluded.state",
                (
                    _texts([one.account for one in some]),
                    _numbers(one.version for one in some),
                    _numbers(one.at for one in some),
                    _numbers(one.format for one in some),
                    _texts([one.state for one in some]),
                ),
            )

    def cursor(self, follower: str) -> int:
        rows = self._bulk.fetch(f"SELECT seq FROM {self._schema}.cursors WHERE follower = $1", (follower,))
        return int(rows[0][0]) if rows else 0

    def cursors(self) -> list[tuple[str, int]]:
        rows = self._bulk.fetch(f"SELECT follower, seq FROM {self._schema}.cursors ORDER BY follower")
        return [(follower, seq) for follower, seq in rows]

    def save_cursor(self, follower: str, seq: int, last: Entry | None = None) -> None:
        """The row says where the entry stands as well: by its transaction, and in which cluster that was numbered."""
        same: tuple[Any, ...] = (None,) * 4
        if last is not None:
            key = None if last.key is None else _escaped(last.key)
            same = (_escaped(last.account), last.version, last.at, key)
        self._bulk.save(
            f"INSERT INTO {self._schema}.cursors (follower, seq, era, xid) "
            f"SELECT $1::text, $2::bigint, j.era, j.xid FROM (SELECT) one LEFT JOIN {self._schema}.journal j "
            "ON j.seq = $2::bigint WHERE $3::text IS NULL OR (j.account = $3 AND j.version = $4::bigint "
            "AND j.at = $5::bigint AND j.key IS NOT DISTINCT FROM $6::text) ON CONFLICT (follower) DO UPDATE "
            "SET seq = excluded.seq, era = excluded.era, xid = excluded.xid",
            (follower, seq, *same),
        )

    def bury(self, follower: str, seq: int, reason: str) -> None:
        self._bulk.save(
            f"INSERT INTO {self._schema}.dead_letters (follower, seq, reason) VALUES ($1, $2, $3) "
            "ON CONFLICT DO NOTHING",
            (follower, seq, _escaped(reason)),
        )

    def dead_letters(self, *, limit: int = 100) -> list[tuple[str, int, str]]:
        sql = f"SELECT follower, seq, reason FROM {self._schema}.dead_letters ORDER BY id DESC LIMIT $1"
        return [(follower, seq, _unescaped(reason)) for follower, seq, reason in self._bulk.fetch(sql, (limit,))]

    def note(self, name: str) -> str | None:
        rows = self._tail.fetch(f"SELECT text FROM {self._schema}.notes WHERE name = $1", (name,))
        return _unescaped(rows[0][0]) if rows else None

    def save_note(self, name: str, text: str) -> None:
        sql = f"INSERT INTO {self._schema}.notes VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET text = excluded.text"
        self._tail.save(sql, (name, _escaped(text)))

    def bump(self, day: str, reason: str, host: str, count: int) -> None:
        self._tail.write(
            f"INSERT INTO {self._schema}.bumps AS b VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (day, reason, host) DO UPDATE SET count = b.count + excluded.count",
            (day, reason, _escaped(host), count),
        )

    def bumps(self) -> list[tuple[str, str, str, int]]:
        sql = f"SELECT day, reason, host, count FROM {self._schema}.bumps ORDER BY day DESC, reason, host"
        return [(day, reason, _unescaped(host), count) for day, reason, host, count in self._bulk.fetch(sql)]

    # -- owners

    def name_owner(self) -> str:
        return self._owners.name()

    def register_owner(self) -> str:
        return self._owners.register()

    def advance_owner(self, owner: str, low_seq: int) -> None:
        self._owners.advance(owner, low_seq)

    def owners(self) -> list[OwnerMark]:
        return self._owners.marks()

    def forget_owner(self, owner: str) -> None:
        self._owners.forget(owner)

    def take_lease(self, follower: str) -> bool:
        """Whether this process may be the one that is at work for the follower. Cheap to ask again and again."""
        return self._owners.take_lease(follower)

    def give_up_lease(self, follower: str) -> None:
        self._owners.give_up_lease(follower)

    # -- between calls

    def maintain(self) -> None:
        if not self._closed:
            self._owners.quietly_beat()

    def sync(self, timeout_s: float) -> bool:
        """Nothing to wait for: a commit that was answered is on the server's disk."""
        return True

    @property
    def generation(self) -> int:
        return 0

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for link in (self._writer, self._tail, self._bulk):
                link.close()

    def _forget_parent(self) -> None:
        self._writing_thread = self._alone_thread = 0
        self._owners.forget_parent()


def split_schema(url: str) -> tuple[str, str]:
    """The URL as libpq understands it, and the name of the schema in it. Raises JournalUnavailable for an odd one."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    names = [value for name, value in pairs if name == "schema"]
    schema = names[-1] if names else SCHEMA
    if not schema or len(schema.encode()) > 63 or "\0" in schema or "{" in schema or "}" in schema:
        raise JournalUnavailable("the schema of the ledger's URL must be a name of 1 to 63 bytes")
    query = urlencode([pair for pair in pairs if pair[0] != "schema"], quote_via=quote)
    return urlunsplit(parts._replace(query=query)), schema


def exists(url: str) -> bool:
    """Whether there is a ledger. Makes none. Raises JournalUnavailable."""
    plain, schema = split_schema(url)
    link = Link(plain, TIMEOUT_S)
    try:
        return is_there(link, schema)
    finally:
        link.close()


def _by_account(wanted: Sequence[tuple[str, int]], rows: Rows) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {account: [] for account, _ in wanted}
    for row in rows:
        entry = _entry(row)
        found[entry.account].append(entry)
    return found


def _appended(follows: bool, seqs: list[int] | None) -> Appended:
    if seqs:
        return Appended(Outcome.APPENDED, seqs)
    return Appended(Outcome.CONFLICT if follows else Outcome.NO_PREDECESSOR)


# PostgreSQL's text has no zero byte. It is written as two signs; so is the sign that says so. The order of texts stays.


def _escaped(text: str) -> str:
    if "\0" in text or "\1" in text:
        return text.replace("\1", "\1" + "1").replace("\0", "\1" + "0")
    return text


def _unescaped(text: Any) -> str:
    if "\1" in text:
        return str(text).replace("\1" + "0", "\0").replace("\1" + "1", "\1")
    return str(text)


def _entry(row: tuple[Any, ...]) -> Entry:
    account, version, kind, key, balance, event, record, at, seq = row
    return Entry(
        _unescaped(account),
        version,
        kind,
        None if key is None else _unescaped(key),
        balance,
        _unescaped(event),
        None if record is None else _unescaped(record),
        at,
        seq,
    )


# An array as PostgreSQL writes it down (postgresql.org/docs/current/arrays.html#ARRAYS-INPUT): a fifth of the time that
# a driver takes to make one of 64 records.


def _numbers(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


def _texts(texts: Sequence[str | None]) -> str:
    quoted = ["NULL" if one is None else '"' + one.replace("\\", "\\\\").replace('"', '\\"') + '"' for one in texts]
    return _escaped("{" + ",".join(quoted) + "}")


_OPEN: weakref.WeakSet[PostgresJournal] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for journal in list(_OPEN):
        journal._forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
