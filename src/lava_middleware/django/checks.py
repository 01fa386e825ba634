"""This file knows what a Django project can have wrong with it, before its first request.

| id | |
| --- | --- |
| lava_middleware.E001 | the LAVA setting cannot be read: an unknown setting, or a value that cannot work |
| lava_middleware.E002 | CUSTOMER (or LAVA) is not what it must be |
| lava_middleware.E003 | the ledger is in memory while DEBUG is off: gone at a restart, and another for each worker |
| lava_middleware.E004 | the ledger's directory is not there, or cannot be written |
| lava_middleware.E005 | the ledger is on a network file system |
| lava_middleware.W001 | LavaMiddleware is not in MIDDLEWARE |
| lava_middleware.W002 | LavaMiddleware stands before AuthenticationMiddleware |
| lava_middleware.W003 | nobody says who pays: no CUSTOMER, and no AuthenticationMiddleware |
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning

from ..errors import ConfigurationError
from ..ledger import filesystem
from ..settings import Settings, configure
from .configured import Configured, customer_of, lava_of, read

OURS = "lava_middleware.django.LavaMiddleware"
OURS_IN_FULL = "lava_middleware.django.middleware.LavaMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"


def check(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """All that is wrong. Opens no ledger and asks nobody."""
    try:
        configured = read()
        ruled = configure(None, configured.keywords) if configured.lava is None else None
    except ConfigurationError as error:
        return [Error(str(error), id="lava_middleware.E001")]
    return [*_names(configured), *_ledger(ruled), *_middleware(configured)]


def _names(configured: Configured) -> Iterator[CheckMessage]:
    for look_up in (customer_of, lava_of):
        try:
            look_up(configured)
        except ConfigurationError as error:
            yield Error(str(error), id="lava_middleware.E002")
    if configured.lava is not None and configured.keywords:
        names = ", ".join(name.upper() for name in configured.keywords)
        yield Error(
            f"LAVA['LAVA'] is a Lava, so {names} beside it has no effect",
            hint="Give settings to Lava(...) where it is made.",
            id="lava_middleware.E002",
        )


def _ledger(ruled: Settings | None) -> Iterator[CheckMessage]:
    if ruled is None or isinstance(ruled.ledger, str):  # a server is asked when it is used, not by a check
        return
    if ruled.ledger is None:
        if not settings.DEBUG:
            yield Error(
                "the ledger is in memory: it ends with its process, and every worker has another",
                hint="Set LAVA = {'LEDGER': 'sqlite:////var/lib/app/lava.db'}, or the variable LAVA_LEDGER.",
                id="lava_middleware.E003",
            )
        return
    # Asked about, never opened: nobody but SQLite may open a ledger (T34).
    directory = ruled.ledger.parent
    unfit = ruled.ledger if ruled.ledger.exists() and not os.access(ruled.ledger, os.W_OK) else directory
    if not directory.is_dir() or not os.access(unfit, os.W_OK | (os.X_OK if unfit == directory else 0)):
        yield Error(
            f"the ledger cannot be written: {unfit}",
            hint="SQLite needs to write the file and its directory; make it, and let the server's user write there.",
            id="lava_middleware.E004",
        )
        return
    yield from _place(ruled.ledger)


def _place(ledger: Path) -> Iterator[CheckMessage]:
    judged = filesystem.check(os.path.realpath(ledger), filesystem.read_mountinfo())
    if isinstance(judged, filesystem.Refused):
        yield Error(judged.message, id="lava_middleware.E005")


def _middleware(configured: Configured) -> Iterator[CheckMessage]:
    installed = list(settings.MIDDLEWARE)
    mine = [place for place, name in enumerate(installed) if name in (OURS, OURS_IN_FULL)]
    if not mine:
        yield Warning(
            "LavaMiddleware is not in MIDDLEWARE: calls made while a request is served are on nobody's account",
            hint=f"Add {OURS!r}, after AuthenticationMiddleware.",
            id="lava_middleware.W001",
        )
    elif AUTHENTICATION in installed and mine[0] < installed.index(AUTHENTICATION):
        yield Warning(
            "LavaMiddleware stands before AuthenticationMiddleware: calls that middleware between them makes are on "
            "nobody's account",
            hint=f"Move {OURS!r} below {AUTHENTICATION!r}.",
            id="lava_middleware.W002",
        )
    elif AUTHENTICATION not in installed and configured.customer is None:
        yield Warning(
            "nobody says who pays: there is neither AuthenticationMiddleware nor LAVA['CUSTOMER']",
            hint="Add one of them, call identify() in the views and silence this, or calls are refused.",
            id="lava_middleware.W003",
        )
