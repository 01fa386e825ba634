"""This file knows how to do what every web adapter does: get ready, ask who pays, and answer a refusal that escaped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from . import context
from .context import Binding, Identity, Unbilled, checked_id
from .errors import ConfigurationError, Denied, denied, logger, say_once
from .inbound import Problem, problem

if TYPE_CHECKING:
    from .lava import Lava

Customer: TypeAlias = "Callable[[Any], str | Unbilled | context.Override | None]"
"""customer=: given the request, whoever pays; None: nobody is known."""

STABLE_IDS = ("identity", "pk", "id")
"""Where a user object keeps an id that never changes hands, best first. Never a user name, display name or address:
they can be given up by one person and taken by another."""

BINDING_KEY = "lava_middleware.binding"
"""Under which an ASGI scope or a WSGI environ carries its Binding."""


def ready(lava: Lava | None, customer: Customer | None, settings: Mapping[str, Any]) -> Lava:
    """The Lava that the adapter serves with, instrumented. Raises ConfigurationError for what cannot work."""
    if lava is not None and settings:
        raise ConfigurationError(
            f"{', '.join(settings)}: settings belong to the Lava that is passed as lava=; give them to Lava(...)"
        )
    if customer is not None:
        check_plain(customer)
    if lava is None:
        from .lava import Lava

        lava = Lava.from_env(**settings)
    if context.default() in (None, lava):  # another default has instrumented this process already
        lava.instrument()
    return lava


def check_plain(customer: object) -> None:
    """Raises ConfigurationError for a customer= that cannot be asked."""
    if not callable(customer):
        raise ConfigurationError("customer= must be a function of the request, such as lambda request: request.user.id")
    if inspect.iscoroutinefunction(customer) or inspect.iscoroutinefunction(getattr(customer, "__call__", None)):  # noqa: B004
        raise ConfigurationError(
            "customer= must be a plain function: it is called in whichever thread makes a provider call. "
            "Await in a dependency or view, and call identify() there"
        )


def is_inner(carrier: Mapping[str, Any], lava: Lava, customer: Customer | None) -> bool:
    """Added twice for the same Lava (by a mounted application, say): the outer one's Binding stays."""
    outer = carrier.get(BINDING_KEY)
    return customer is None and outer is not None and outer.lava is lava


def asked(customer: Customer, request: object) -> Identity | Unbilled | None:
    """What customer= says of the request. Raises IdError for what cannot be a customer: then nobody is bound."""
    found: object = customer(request)
    if found is None or isinstance(found, Unbilled):
        return found
    if isinstance(found, context.Override) and isinstance(found.who, Unbilled):
        return found.who
    if inspect.iscoroutine(found):
        found.close()
    return Identity(checked_id(found), "resolver")


def authenticated(user: object, ids: Iterable[str] = STABLE_IDS) -> Identity | None:
    """A user whom the host's own authentication vouches for, by an id that never changes hands."""
    if user is None:
        return None
    known = getattr(user, "is_authenticated", False)
    if callable(known):
        known = known()
    if known is not True:
        return None
    for name in ids:
        try:
            found = getattr(user, name, None)
        except NotImplementedError:  # starlette's BaseUser
            continue
        if isinstance(found, int | UUID) and not isinstance(found, bool):
            found = str(found)
        if isinstance(found, str) and found:
            return Identity(checked_id(found), "session")
    return None


def refusal(error: BaseException, binding: Binding, lava: Lava) -> Problem | None:
    """What the client is answered for an error that escaped the application; None if it is no refusal.

    What the answer hides, a mistake of the application's, is told to the operator.
    """
    decision = denied(error)
    if decision is None:
        return None
    _tell_operator(decision, error)
    return problem(decision, request_id=binding.request_id, settings=lava.settings)


def _tell_operator(decision: Denied, error: BaseException) -> None:
    if decision.absent:
        say_once("absent", "lava answered 403 customer_unknown: %s. This is said once per process.", decision.message)
    for mistake in _leaves(error):
        if denied(mistake, implied=False) is None:
            logger.error("lava answered a refusal; this was raised while, or beside, it was handled", exc_info=mistake)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
