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
    "subscribe": "customers",
    "cancel": "customers",
    "suspend": "customers",
    "resume": "customers",
    "balance": "customers",
    "customers": "customers",
    "runs": "customers",
    "report": "billing",
    "adjust": "billing",
    "quote": "billing",
    "check": "catalogue",
    "apply": "catalogue",
    "statement": "statement",
    "records": "records",
    "usage": "usage",
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

    def add(
        name: str, text: str, *, json: str | None = "print one JSON object", ledger: bool = True
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if ledger:
            made.add_argument("--ledger", metavar="URL", help=_LEDGER)
        if json:
            made.add_argument("--json", action="store_true", help=json)
        return made

    commands.add_parser("demo", help="see it work, with real SDKs and a stand-in for the providers", add_help=False)

    _grant(add("grant", "add credits to a customer"))
    _limit(add("limit", "put a limit on a customer, or take it away"))
    _subscribe(add("subscribe", "put a customer on a plan"))
    cancel = _customer(add("cancel", "end a customer's plan with its cycle"))
    cancel.add_argument("--now", action="store_true", help="end it at once: what it has left lapses")
    _customer(add("suspend", "let nothing more out for a customer, and stop its streams"))
    _customer(add("resume", "lift a suspension"))
    _customer(add("balance", "what a customer has, its plan, and how far its limits are used"))

    lines = "print a JSON object a line"
    customers = add("customers", "all customers, with what they have, in order of their ids", json=lines)
    customers.add_argument("--limit", type=_count, default=50, metavar="N", help="at most N (50)")
    customers.add_argument("--after", default="", metavar="CUSTOMER", help="those after this one")

    _customer(add("runs", "a customer's open runs, with what they have used", json=lines))
    statement = _customer(add("statement", "a customer's entries with the balance after each, newest last", json=lines))
    statement.add_argument("--limit", type=_count, default=50, metavar="N", help="the last N entries (50)")
    statement.add_argument("--before", type=_count, metavar="NO", help="those before entry number NO")

    records = add("records", "usage records, newest first", json=lines)
    records.add_argument("customer", nargs="?", metavar="CUSTOMER", help="only of this customer")
    records.add_argument("--limit", type=_count, default=20, metavar="N", help="at most N (20)")

    _usage(add("usage", "what was used, what it cost, and what was charged for it", json=lines))

    _report(add("report", "bill something that no call did, once for its request id"))
    _adjust(add("adjust", "correct a record: give credits back, or charge more"))
    _quote(add("quote", "what a call would hold and cost; exit code 1 if it is not affordable"))

    check = add("check", "whether a catalogue can be right, and what it means", ledger=False)
    check.add_argument("file", metavar="FILE", help="TOML file with plans, limits, meters, prices, providers")
    apply = add("apply", "put a catalogue's changed plans in force for the customers on them")
    apply.add_argument("file", metavar="FILE", help="TOML file with plans, limits, meters, prices, providers")
    apply.add_argument("--dry-run", action="store_true", help="only count whom it would change")

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


def _usage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--by",
        default="day,model",
        metavar="A,B",
        help="hour, day, month, customer, model, provider, meter, user, key, run or tag:NAME (default: day,model)",
    )
    parser.add_argument("--customer", metavar="CUSTOMER", help="only of this customer")
    parser.add_argument("--since", type=_moment, metavar="TIME", help="from 2027-01-31 on, or from a time on")
    parser.add_argument("--until", type=_moment, metavar="TIME", help="up to before 2027-02-28, or before a time")
    parser.add_argument("--zone", default="UTC", help="whose days and months they are, such as Europe/Berlin (UTC)")
    parser.add_argument("--rebuild", action="store_true", help="add the past up anew instead of taking kept sums")


def _limit(parser: argparse.ArgumentParser) -> None:
    _customer(parser)
    parser.add_argument("quantity", nargs="?", metavar="QUANTITY", help="such as 100000; of credits such as 5.00")
    parser.add_argument(
        "unit",
        nargs="?",
        default="tokens/month",
        metavar="UNIT/WINDOW",
        help="tokens, input_tokens, output_tokens, requests, credits, characters, seconds or a unit of yours, per "
        "minute to year, cycle or lifetime (default: tokens/month); or open_calls",
    )
    parser.add_argument("--zone", default="UTC", help="time zone whose months count, such as Europe/Berlin (UTC)")
    parser.add_argument("--anchor", default="", metavar="DATE", help="windows begin at this date's weekday or day")
    parser.add_argument("--name", help="names the limit, where a customer has several of a kind")
    parser.add_argument(
        "--of", type=_pair, action="append", metavar="SCOPE=VALUE", help="only of this model, user, ..."
    )
    parser.add_argument("--per", default="", metavar="SCOPE", help="for each user, key, model, meter or tag by itself")
    parser.add_argument("--warn", action="store_true", help="count and let pass")
    parser.add_argument("--strict", action="store_true", help="hold input at its hard bound")
    parser.add_argument("--at", type=_count, action="append", metavar="PERCENT", help="a threshold; may be repeated")
    parser.add_argument("--remove", action="store_true", help="take the limit away")


def _subscribe(parser: argparse.ArgumentParser) -> None:
    _customer(parser)
    parser.add_argument("plan", metavar="PLAN", help="of the catalogue (LAVA_CATALOGUE), or one described here")
    parser.add_argument("--credits", help="included in each cycle, such as 20.00")
    parser.add_argument("--cycle", help="day, week, month or year (month)")
    parser.add_argument("--anchor", metavar="DATE", help="cycles are counted from here (default: the calendar's)")
    parser.add_argument("--zone", help="the customer's time zone (UTC)")
    parser.add_argument("--rollover", help="none (the default), full, or at most so many credits")
    parser.add_argument("--overage", help="block (the default), unlimited, or at most so many credits a cycle")
    parser.add_argument("--meter", action="append", help="may be used; may be repeated (default: any)")
    parser.add_argument("--model", action="append", help='may be used, such as "gpt-4o*" (default: any)')
    parser.add_argument("--at-cycle-end", action="store_true", help="when the present cycle ends, not at once")


def _report(parser: argparse.ArgumentParser) -> None:
    _customer(parser)
    parser.add_argument("request_id", metavar="ID", help="of what is reported: repeated with the same id it bills once")
    parser.add_argument("--meter", help="how it is priced")
    parser.add_argument("--quantity", type=_quantity, help="of the meter's unit")
    parser.add_argument("--unit", help="which, where the meter has several")
    parser.add_argument("--charge", help="so many credits, whatever meters say")
    parser.add_argument("--usage", type=_units, action="append", metavar="UNIT=TOKENS", help="input=900, repeatable")
    parser.add_argument("--model", help="whose usage it is")
    parser.add_argument("--provider", help="of the model")
    parser.add_argument("--when", type=_moment, metavar="TIME", help="of the event (now)")


def _adjust(parser: argparse.ArgumentParser) -> None:
    _customer(parser)
    parser.add_argument("record", metavar="RECORD", help="id of the record")
    parser.add_argument("credits", metavar="CREDITS", help="how many more to charge; -0.50 gives back")
    parser.add_argument(
        "--key", required=True, help="names this correction: repeated with the same key it is made once"
    )
    parser.add_argument("--reason", default="", help="for the statement")


def _quote(parser: argparse.ArgumentParser) -> None:
    _customer(parser)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("input_tokens", type=_quantity, metavar="INPUT", help="tokens that go in")
    parser.add_argument("output_tokens", nargs="?", type=_quantity, metavar="OUTPUT", help="cap of what comes out")
    parser.add_argument("--provider", help="where the model runs")
    parser.add_argument("--meter", help="how it is charged")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError("must be like model=gpt-4o")
    return name, value


def _units(text: str) -> tuple[str, int]:
    name, value = _pair(text)
    return name, _quantity(value)


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
