"""This file knows which commands there are, what they take, and that every error is one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn, TypeAlias

Command: TypeAlias = Callable[[argparse.Namespace], int]

_LEDGER = "URL of the ledger, such as sqlite:///lava.db (default: LAVA_LEDGER, else ./lava.db)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 1: done, and the answer is bad news; 2: it could not be done."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "demo":
        arguments.rest = rest  # it has options of its own
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        code = _command(arguments.command)(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        _complain(arguments.command, str(error) or type(error).__name__)
        return 2


def _complain(command: str, message: str) -> None:
    sys.stderr.write(f"lava {command}: {' '.join(message.split())}\n")


def _expected() -> tuple[type[BaseException], ...]:
    """What a command may meet that is no mistake of ours. Asked for only when something was raised."""
    from ..core.decide import LedgerRuleError
    from ..errors import LavaError
    from ..ledger.journal import Busy, JournalUnavailable
    from ..ledger.ticket import LedgerUnavailable
    from .common import Stop

    return Stop, LavaError, LedgerRuleError, Busy, JournalUnavailable, LedgerUnavailable, ValueError, OSError


_PLACES = {
    # command → the module that has a function of that name. Imported when it is used: `lava --help` is quick.
    "demo": "demo",
    "grant": "customers",
    "limit": "customers",
    "balance": "customers",
    "statement": "statement",
    "records": "records",
    "doctor": "doctor",
    "prices": "prices",
}


def _command(name: str) -> Command:
    found: Command = getattr(importlib.import_module(f".{_PLACES[name]}", __package__), name)
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as all errors are."""
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lava", description="Credits, limits and usage of the AI calls that an application makes.")
    parser.add_argument("--version", action="version", version=f"lava-middleware {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def add(name: str, text: str, *, json: str | None = "print one JSON object") -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.add_argument("--ledger", metavar="URL", help=_LEDGER)
        if json:
            made.add_argument("--json", action="store_true", help=json)
        return made

    commands.add_parser("demo", help="see it work, with real SDKs and a stand-in for the providers", add_help=False)

    _grant(add("grant", "add credits to a customer"))
    _limit(add("limit", "put a limit on a customer, or take it away"))
    _customer(add("balance", "what a customer has, and how far its limits are used"))

    lines = "print a JSON object a line"
    statement = _customer(add("statement", "a customer's entries with the balance after each, newest last", json=lines))
    statement.add_argument("--limit", type=_count, default=50, metavar="N", help="the last N entries (50)")
    statement.add_argument("--before", type=_count, metavar="NO", help="those before entry number NO")

    records = add("records", "usage records, newest first", json=lines)
    records.add_argument("customer", nargs="?", metavar="CUSTOMER", help="only of this customer")
    records.add_argument("--limit", type=_count, default=20, metavar="N", help="at most N (20)")

    add("doctor", "check that the ledger adds up, and list what needs attention; exit code 1 if it does not add up")

    prices = add("prices", "what a model costs, by which list", json=lines)
    prices.add_argument("model", metavar="MODEL", help="its name, or a part of it; provider/model for one provider")
    return parser


def _customer(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("customer", metavar="CUSTOMER", help="id of the customer, as the application names it")
    return parser


def _grant(parser: argparse.ArgumentParser) -> None:
    _customer(parser)
    parser.add_argument("credits", metavar="CREDITS", help="how many, such as 5.00")
    parser.add_argument(
        "--key", help="names this grant, such as an invoice: repeated with the same key it is made once"
    )
    parser.add_argument("--category", default="top_up", help="promo, plan, bundle or top_up (the default)")
    parser.add_argument(
        "--expires", type=_moment, metavar="TIME", help="2027-01-31, or with a time and zone; UTC if none"
    )


def _limit(parser: argparse.ArgumentParser) -> None:
    _customer(parser)
    parser.add_argument("quantity", nargs="?", type=_quantity, metavar="QUANTITY", help="such as 100000")
    parser.add_argument(
        "unit",
        nargs="?",
        default="tokens/month",
        metavar="UNIT/WINDOW",
        help="tokens, input_tokens, output_tokens or requests, per month (default: tokens/month)",
    )
    parser.add_argument("--zone", default="UTC", help="time zone whose months count, such as Europe/Berlin (UTC)")
    parser.add_argument("--name", help="names the limit, where a customer has several of a kind")
    parser.add_argument("--remove", action="store_true", help="take the limit away")


def _count(text: str) -> int:
    number = _quantity(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _quantity(text: str) -> int:
    digits = text.replace(",", "").replace("_", "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 17):
        raise argparse.ArgumentTypeError("must be a whole number such as 100000")
    return int(digits)


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        message = "must be a date such as 2027-01-31 or a time such as 2027-01-31T18:00+01:00"
        raise argparse.ArgumentTypeError(message) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _version() -> str:
    try:
        return version("lava-middleware")
    except PackageNotFoundError:
        return "(not installed)"
