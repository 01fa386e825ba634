"""This file knows what tables a ledger file has, and how an older file becomes a current one."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime

from .connection import in_transaction
from .journal import JournalUnavailable

APPLICATION_ID = 0x4C415641
"""Stands in the file's header, so that no other program's database is taken for a ledger: "LAVA" in ASCII."""

_VERSION_1 = (
    # seq is the rowid: followers read in its order, which on SQLite is the order of commits.
    """CREATE TABLE journal (
        seq INTEGER PRIMARY KEY,
        account TEXT NOT NULL,
        version INTEGER NOT NULL,
        kind TEXT NOT NULL,
        key TEXT,
        balance_after INTEGER NOT NULL,
        event TEXT NOT NULL,
        record TEXT,
        at INTEGER NOT NULL)""",
    "CREATE UNIQUE INDEX journal_version ON journal (account, version)",
    # Partial: entries that nobody repeats have no key, and cost nothing here.
    "CREATE UNIQUE INDEX journal_key ON journal (account, key) WHERE key IS NOT NULL",
    """CREATE TABLE snapshots (
        account TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        at INTEGER NOT NULL,
        format INTEGER NOT NULL,
        state TEXT NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE cursors (follower TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE dead_letters (
        id INTEGER PRIMARY KEY,
        follower TEXT NOT NULL,
        seq INTEGER NOT NULL,
        reason TEXT NOT NULL,
        UNIQUE (follower, seq))""",
    "CREATE TABLE notes (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE bumps (
        day TEXT NOT NULL,
        reason TEXT NOT NULL,
        host TEXT NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (day, reason, host)) WITHOUT ROWID""",
    "CREATE TABLE owners (owner TEXT PRIMARY KEY, byte INTEGER NOT NULL, low_seq INTEGER NOT NULL) WITHOUT ROWID",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1,)
"""MIGRATIONS[n] makes schema n + 1 of schema n. A step that has been released is never edited."""


def prepare(raw: sqlite3.Connection, path: str, steps: tuple[tuple[str, ...], ...] = MIGRATIONS) -> None:
    """Make the file an up-to-date ledger, or leave it untouched and say why not.

    Safe for any number of processes at once. May raise SQLite's errors, "database is locked" among them.
    """
    schema = _schema(raw, path, len(steps))
    raw.execute("PRAGMA page_size=2048")  # only a new file listens
    (mode,) = raw.execute("PRAGMA journal_mode=WAL").fetchone()  # a copy made by VACUUM INTO is not in WAL mode
    if mode != "wal":
        raise JournalUnavailable(f"{path} cannot be used in WAL mode here (it stays {mode!r}): use a local disk")
    if schema < len(steps):
        in_transaction(raw, lambda _: _migrate(raw, path, steps))


def _migrate(raw: sqlite3.Connection, path: str, steps: tuple[tuple[str, ...], ...]) -> None:
    schema = _schema(raw, path, len(steps))  # once more, now that nobody else can be at it
    if schema == 0:
        raw.execute(f"PRAGMA application_id={APPLICATION_ID}")
        raw.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        raw.execute("INSERT INTO meta VALUES ('created', ?), ('schema', '0')", (created,))
    for step in steps[schema:]:
        for statement in step:
            raw.execute(statement)
    raw.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (str(len(steps)),))


def _schema(raw: sqlite3.Connection, path: str, newest: int) -> int:
    """The file's schema; 0 for an empty file. Raises JournalUnavailable for a file that we must not touch."""
    (application,) = raw.execute("PRAGMA application_id").fetchone()
    if application == 0 and raw.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
        return 0
    if application != APPLICATION_ID:
        raise JournalUnavailable(f"{path} is another program's SQLite database, not a ledger: name another file")
    (text,) = raw.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if int(text) > newest:
        raise JournalUnavailable(
            f"the ledger {path} was written by a newer release (schema {text}, this one knows {newest}): "
            "upgrade lava-middleware"
        )
    return int(text)
