"""This file knows under which other names a model may stand in a price list: dates, prefixes, fine-tunes."""

from __future__ import annotations

import re
from collections.abc import Iterator

_DATE = re.compile(r"[-@_:](20\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?:(?<=:.{8})-v\d|(?<=:.{10})-v\d)?$")
"""gpt-4o-2024-08-06, claude-sonnet-4@20250514, gpt-5.2_2025-12-11; OpenAI's old gpt-3.5-turbo-instruct:20230824-v2."""
LATEST = "-latest"
FINE_TUNED = "ft:"


def undated(name: str) -> str:
    """The name without the date of its snapshot or "-latest"; the same name if it has neither."""
    if name.endswith(LATEST):
        return name[: -len(LATEST)]
    return _DATE.sub("", name)


def date_of(name: str) -> str:
    """The date of the snapshot as digits, or an empty string."""
    match = _DATE.search(name)
    return "".join(match.groups()) if match else ""


def spellings(provider: str, model: str) -> Iterator[str]:
    """Lower-case names under which the provider's list may have exactly this model, best first.

    Only another spelling of the same model: its provider's prefix, another way to write its date, the family of a
    fine-tune. Never a neighbour: "gpt-4o-mini-x" is not "gpt-4o-mini".
    """
    name = model.lower()
    for prefix in (f"{provider}/", "models/"):
        if name.startswith(prefix):
            yield name
            name = name[len(prefix) :]
    if name.startswith(FINE_TUNED) or ".ft-" in name:
        name = _fine_tuned(name)
    yield name
    match = _DATE.search(name)
    if match:
        bare, (year, month, day) = name[: match.start()], match.groups()
        yield from (f"{bare}-{year}-{month}-{day}", f"{bare}-{year}{month}{day}", f"{bare}@{year}{month}{day}")


def _fine_tuned(name: str) -> str:
    """The family of a fine-tune: OpenAI writes "ft:gpt-4o-2024-08-06:acme::1", Azure "gpt-4o-2024-08-06.ft-1"."""
    if name.startswith(FINE_TUNED):
        return ":".join(name.split(":")[:2])
    return FINE_TUNED + name.split(".ft-")[0]
