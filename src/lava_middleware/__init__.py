"""A billing gateway inside your application: gates, meters and bills calls to AI providers, in process.

    app.add_middleware(LavaMiddleware)

See the README for the five-line start, and `Lava` for everything an operator does.
"""

from .asgi import LavaMiddleware
from .context import bind_context, charge_to, current, identify, unbilled
from .core.balance import Balance
from .core.decide import Conflict
from .core.money import Amount, AmountError
from .core.record import Record
from .core.terms import TermsError
from .core.usage import Usage
from .credits.quotes import Quote
from .credits.runs import run
from .errors import (
    AlreadyBound,
    ConfigurationError,
    CreditOnHold,
    CustomerUnknown,
    Denied,
    IdError,
    InsufficientCredit,
    LavaError,
    LedgerUnavailable,
    LimitReached,
    NotBound,
    Refused,
    RequestExceedsCredit,
    StreamCut,
    StreamStalled,
    denied,
)
from .lava import Lava
from .transport.httpx import AsyncLavaTransport, LavaTransport
from .wsgi import LavaWSGIMiddleware

__all__ = [
    "AlreadyBound",
    "Amount",
    "AmountError",
    "AsyncLavaTransport",
    "Balance",
    "ConfigurationError",
    "Conflict",
    "CreditOnHold",
    "CustomerUnknown",
    "Denied",
    "IdError",
    "InsufficientCredit",
    "Lava",
    "LavaError",
    "LavaMiddleware",
    "LavaTransport",
    "LavaWSGIMiddleware",
    "LedgerUnavailable",
    "LimitReached",
    "NotBound",
    "Quote",
    "Record",
    "Refused",
    "RequestExceedsCredit",
    "StreamCut",
    "StreamStalled",
    "TermsError",
    "Usage",
    "bind_context",
    "charge_to",
    "current",
    "denied",
    "identify",
    "run",
    "unbilled",
]
