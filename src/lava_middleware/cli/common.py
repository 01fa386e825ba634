"""This file knows what all commands share: the ledger they mean, how they speak, and how they end early."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..lava import Lava, open_journal
from ..ledger.journal import Journal
from ..settings import Settings, configure


class Stop(Exception):
    """The command cannot be done. The message is one line and says what to do."""


def settings_of(ledger: str | None) -> Settings:
    return configure(ledger, {})


@contextmanager
def reading(ledger: str | None) -> Iterator[Journal]:
    """The journal of an existing ledger. Starts nothing that writes."""
    journal = open_journal(existing(settings_of(ledger)))
    try:
        yield journal
    finally:
        journal.close()


@contextmanager
def lava_of(ledger: str | None, *, create: bool = False) -> Iterator[Lava]:
    """A Lava on the ledger, which must exist unless the command may create it."""
    if not create:
        existing(settings_of(ledger))
    lava = Lava(ledger)
    try:
        yield lava
    finally:
        lava.close()


def existing(settings: Settings) -> Settings:
    path = settings.ledger
    if path is None:
        raise Stop("a ledger in memory is of its process alone: name a file with --ledger or LAVA_LEDGER")
    if isinstance(path, str):
        from ..ledger.postgres.journal import exists

        if not exists(path):
            raise Stop("there is no ledger in this database: look at its URL, or make it with lava grant")
        return settings
    # Only asked whether it is there, never opened: nobody but SQLite may open a ledger (T34).
    if not os.path.exists(path):
        raise Stop(f"there is no ledger {path}: name one with --ledger or LAVA_LEDGER, or make it with lava grant")
    return settings


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def say_json(document: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    say(json.dumps(document, ensure_ascii=False, separators=(",", ":")))
