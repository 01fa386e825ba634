"""The public names are a promise: exactly these, no more."""

from __future__ import annotations

import ast
from pathlib import Path

import lava_middleware

NAMES = {
    # what one configures and installs
    "Lava",
    "LavaMiddleware",
    "LavaWSGIMiddleware",
    "LavaTransport",
    "AsyncLavaTransport",
    # who pays
    "identify",
    "charge_to",
    "unbilled",
    "run",
    "bind_context",
    "current",
    # what one reads
    "Amount",
    "Usage",
    "Record",
    "Balance",
    "Quote",
    "Denied",
    "denied",
    # what one catches
    "LavaError",
    "Refused",
    "InsufficientCredit",
    "RequestExceedsCredit",
    "CreditOnHold",
    "LimitReached",
    "CustomerUnknown",
    "NotBound",
    "LedgerUnavailable",
    "StreamCut",
    "StreamStalled",
    "AlreadyBound",
    "ConfigurationError",
    "Conflict",
    "AmountError",
    "IdError",
    "TermsError",
}


def test_the_exported_names_are_exactly_these() -> None:
    assert set(lava_middleware.__all__) == NAMES


def test_every_exported_name_is_there_and_documented() -> None:
    for name in NAMES:
        assert getattr(lava_middleware, name).__doc__, name


def test_the_typing_test_uses_every_exported_name() -> None:
    """`make lint` checks tests/typing/api.py as a user's type checker would."""
    tree = ast.parse((Path(__file__).parent / "typing" / "api.py").read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used >= NAMES
