"""This file knows how to run a `lava` command on the project's own ledger: `manage.py lava balance acme`."""

from __future__ import annotations

import sys
from argparse import REMAINDER, ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ....cli import main
from ....errors import ConfigurationError
from ....settings import configure
from ...configured import lava_of, read

WITHOUT_LEDGER = ("demo",)


class Command(BaseCommand):
    help = "The command lava, on the ledger of the LAVA setting: manage.py lava balance CUSTOMER."
    requires_system_checks = []  # noqa: RUF012 - Django's own way

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("words", nargs=REMAINDER, metavar="command ...", help="as the command lava takes them")

    def handle(self, *_: Any, words: list[str], **__: Any) -> None:
        if words and not words[0].startswith("-") and words[0] not in WITHOUT_LEDGER and not _names_ledger(words):
            words = [words[0], "--ledger", _ledger(), *words[1:]]
        code = main(words)
        if code:
            sys.exit(code)


def _names_ledger(words: list[str]) -> bool:
    return any(word == "--ledger" or word.startswith("--ledger=") for word in words)


def _ledger() -> str:
    """The URL of the project's ledger."""
    try:
        configured = read()
        named = lava_of(configured)
        ruled = configure(None, configured.keywords) if named is None else named.settings
    except ConfigurationError as error:
        raise CommandError(str(error)) from None
    return "memory://" if ruled.ledger is None else f"sqlite:///{ruled.ledger}"
