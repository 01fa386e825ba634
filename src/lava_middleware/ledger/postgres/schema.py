"""This file knows what tables a ledger in PostgreSQL has, and how an older one becomes current in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ..journal import Busy, JournalUnavailable
from .psycopg import Link

CLUSTER = "(SELECT system_identifier::text FROM pg_control_system())"
"""Who numbers the transactions: a ledger that was dumped and restored elsewhere meets other numbers."""

NEWEST_ERA = f"""(SELECT era FROM {{schema}}.eras
    WHERE era = (SELECT max(era) FROM {{schema}}.eras) AND cluster = {CLUSTER})"""
"""The number of the present cluster; NULL where nothing has been appended since the ledger came here."""


@dataclass(frozen=True, slots=True)
class Step:
    """From one schema to the next. `{schema}` stands for the quoted name of the PostgreSQL schema."""

    statements: tuple[str, ...]
    oldest: int
    """Releases that know this schema, or a newer one, go on after the step. A step that only adds (a table, a column
    that is NULL or has a default) leaves it as it was, so that old and new releases serve side by side."""


_VERSION_1 = Step(
    (
        "CREATE SEQUENCE {schema}.journal_seq",
        # Everything unique has the account in it, so the table can be partitioned by it. The order in which entries
        # can be followed is (era, xid, seq): a smaller seq may be committed later, a smaller xid below the oldest
        # running transaction may not (T46).
        """CREATE TABLE {schema}.journal (
            account text COLLATE "C" NOT NULL,
            version bigint NOT NULL,
            kind text NOT NULL,
            key text COLLATE "C",
            balance_after bigint NOT NULL,
            event text NOT NULL,
            record text,
            at bigint NOT NULL,
            seq bigint NOT NULL DEFAULT nextval('{schema}.journal_seq'),
            era integer NOT NULL,
            xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
            CONSTRAINT journal_version PRIMARY KEY (account, version))""",
        "CREATE UNIQUE INDEX journal_key ON {schema}.journal (account, key) WHERE key IS NOT NULL",
        "CREATE INDEX journal_followed ON {schema}.journal (era, xid, seq)",
        "CREATE INDEX journal_by_seq ON {schema}.journal (seq)",
        "CREATE TABLE {schema}.eras (era integer PRIMARY KEY, cluster text NOT NULL, since timestamptz NOT NULL)",
        f"INSERT INTO {{schema}}.eras SELECT 1, {CLUSTER}, clock_timestamp()",
        """CREATE TABLE {schema}.snapshots (
            account text COLLATE "C" PRIMARY KEY,
            version bigint NOT NULL,
            at bigint NOT NULL,
            format integer NOT NULL,
            state text NOT NULL)""",
        """CREATE TABLE {schema}.cursors (
            follower text COLLATE "C" PRIMARY KEY,
            seq bigint NOT NULL,
            era integer,
            xid xid8)""",
        """CREATE TABLE {schema}.leases (follower text COLLATE "C" PRIMARY KEY, owner text NOT NULL)""",
        """CREATE TABLE {schema}.dead_letters (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            follower text NOT NULL,
            seq bigint NOT NULL,
            reason text NOT NULL,
            UNIQUE (follower, seq))""",
        "CREATE TABLE {schema}.notes (name text PRIMARY KEY, text text NOT NULL)",
        """CREATE TABLE {schema}.bumps (
            day text COLLATE "C" NOT NULL,
            reason text COLLATE "C" NOT NULL,
            host text COLLATE "C" NOT NULL,
            count bigint NOT NULL,
            PRIMARY KEY (day, reason, host))""",
        """CREATE TABLE {schema}.owners (
            owner text PRIMARY KEY,
            low_seq bigint NOT NULL,
            beat timestamptz NOT NULL)""",
    ),
    oldest=1,
)

_TABLES = "SELECT tablename::text FROM pg_catalog.pg_tables WHERE schemaname = $1"

STEPS: tuple[Step, ...] = (_VERSION_1,)
"""STEPS[n] makes schema n + 1 of schema n. A step that has been released is never edited."""


def lock_number(*names: str) -> int:
    """The advisory lock of whatever has these names: the same in every process."""
    digest = blake2b("\0".join(names).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def prepare(link: Link, schema: str, steps: Sequence[Step] = STEPS) -> str:
    """Make it an up-to-date ledger, or leave it untouched and say why not; the ledger's own id.

    Safe for any number of processes at once. A current one is only read, so its user need not own the tables.
    """
    found, ledger = _found(link, schema, len(steps))
    if found < len(steps):
        with link.transaction():
            link.fetch(
                "SELECT set_config('lock_timeout', '3s', true), set_config('idle_in_transaction_session_timeout', "
                "'15s', true), pg_advisory_xact_lock($1::bigint)",
                (lock_number("schema", schema),),
            )
            _migrate(link, schema, steps)
        found, ledger = _found(link, schema, len(steps))
    return ledger


def is_there(link: Link, schema: str) -> bool:
    """Whether the schema holds a ledger that this release can use. Raises JournalUnavailable for any other's."""
    return _found(link, schema, len(STEPS))[0] > 0


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _migrate(link: Link, name: str, steps: Sequence[Step]) -> None:
    found, _ = _found(link, name, len(steps))  # once more, now that nobody else can be at it
    if found >= len(steps):
        return
    schema = _quoted(name)
    if not found:
        link.write(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        link.write(f"CREATE TABLE {schema}.meta (name text PRIMARY KEY, value text NOT NULL)")
        link.write(
            f"INSERT INTO {schema}.meta VALUES ('ledger', gen_random_uuid()::text), "
            "('created', clock_timestamp()::text), ('schema', '0'), ('oldest', '0')"
        )
    for step in steps[found:]:
        for statement in step.statements:
            link.write(statement.format(schema=schema))
        link.write(f"UPDATE {schema}.meta SET value = $1 WHERE name = 'oldest'", (str(step.oldest),))
    link.write(f"UPDATE {schema}.meta SET value = $1 WHERE name = 'schema'", (str(len(steps)),))


def _found(link: Link, schema: str, newest: int) -> tuple[int, str]:
    """(the schema that is there, 0 for none; the ledger's id). Raises JournalUnavailable for one we must not touch."""
    # Asked of the catalogue's own rows: to_regclass() may answer from before a lock that we waited for.
    tables = {table for (table,) in link.fetch(_TABLES, (schema,))}
    if "meta" not in tables:
        if "journal" in tables:
            raise JournalUnavailable(f"the schema {schema} has a table journal that is not a ledger's: name another")
        return 0, ""
    meta: dict[str, str] = dict(link.fetch(f"SELECT name, value FROM {_quoted(schema)}.meta"))
    if not {"ledger", "schema", "oldest"} <= meta.keys():
        raise JournalUnavailable(f"the schema {schema} is another program's, not a ledger: name another")
    found, oldest = int(meta["schema"]), int(meta["oldest"])
    if oldest > newest:
        raise JournalUnavailable(
            f"the ledger was changed by a newer release (it needs schema {oldest}, this one knows {newest}): "
            "upgrade lava-middleware"
        )
    return found, str(meta["ledger"])


def patiently_prepare(link: Link, schema: str, steps: Sequence[Step] = STEPS, tries: int = 5) -> str:
    """The same, again where another process was just at it or the tables were in use."""
    for left in reversed(range(tries)):
        try:
            return prepare(link, schema, steps)
        except Busy:
            if not left:
                raise JournalUnavailable("the ledger's tables are locked by another program: try again") from None
    raise AssertionError
