"""This file knows how an account is written into a snapshot, and read from one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .account import Account, Counter, Credit, Cycle, Hold, Run, Topup
from .terms import terms_data, terms_from

STATE_FORMAT = 2
"""Of `to_state`. A snapshot of another format is ignored and folded anew."""


def to_state(account: Account) -> str:
    """The account as JSON, for a snapshot. `from_state` gives an equal account."""
    return json.dumps(list(_state(account)), ensure_ascii=False, separators=(",", ":"))


def _state(account: Account) -> Iterator[Any]:
    yield account.version
    yield account.at
    yield terms_data(account.terms)
    yield [[*_head(one), one.room, one.rolls] if one.room or one.rolls else _head(one) for one in account.credits]
    yield [
        [name, h.owner, h.amount, h.draws, h.output_tokens, h.expected, h.slice, h.grows, h.counts, h.at]
        + ([h.scopes, h.metered] if h.scopes or h.metered else [])
        for name, h in account.holds.items()
    ]
    yield [[*name, one.ends, one.used, one.held, one.over, one.crossed] for name, one in account.counters.items()]
    yield [account.debt, account.charged, account.posted, account.incurred]
    more = (account.since, account.pending, account.cycle, account.runs, account.topup, account.topups_stopped)
    if any(more) or account.gone:
        yield account.since
        yield _fields(account.cycle)
        yield [account.pending[0], terms_data(account.pending[1])] if account.pending else None
        yield {name: _fields(run) for name, run in account.runs.items()}
        yield _fields(account.topup)
        yield account.topups_stopped
        yield list(account.gone.items())


def _head(credit: Credit) -> list[Any]:
    return [
        credit.grant,
        credit.remaining,
        credit.reserved,
        credit.category,
        credit.priority,
        credit.starts,
        credit.expires,
    ]


def _fields(made: Any) -> list[Any] | None:
    return None if made is None else [getattr(made, name) for name in made.__slots__]


def from_state(text: str) -> Account:
    """The account that `to_state` wrote."""
    version, at, terms, credits, holds, counters, (debt, charged, posted, incurred), *more = json.loads(text)
    account = Account(
        version,
        at,
        terms_from(terms),
        [Credit(*one) for one in credits],
        {name: _hold(*rest) for name, *rest in holds},
        {(name, window): Counter(*rest) for name, window, *rest in counters},
        debt=debt,
        charged=charged,
        posted=posted,
        incurred=incurred,
    )
    if more:
        account.since, cycle, pending, runs, topup, account.topups_stopped, gone = _tuples(more)
        account.gone = dict(gone)
        account.cycle = Cycle(*cycle) if cycle else None
        account.pending = (pending[0], terms_from(more[2][1])) if pending else None
        account.runs = {name: Run(*_tuples(run)) for name, run in runs.items()}
        account.topup = Topup(*topup) if topup else None
    return account


def _hold(
    owner: str,
    amount: int,
    draws: list[list[int]],
    output_tokens: int,
    expected: int,
    slice_: int,
    grows: bool,
    counts: list[Any],
    at: int,
    scopes: list[Any] | tuple[()] = (),
    metered: list[Any] | tuple[()] = (),
) -> Hold:
    return Hold(
        owner,
        amount,
        _tuples(draws),
        output_tokens,
        expected,
        slice_,
        grows,
        _tuples(counts),
        at,
        _tuples(scopes),
        _tuples(metered),
    )


def _tuples(value: Any) -> Any:
    """Lists as tuples, whatever their depth."""
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value
