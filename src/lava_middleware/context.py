"""This file knows who pays for a call that is made here and now.

Two things, never mixed (T37). The *Binding* is one object per inbound request, shared by everything the request
starts; its customer is set once, by identify() or by asking the resolver at the first provider call. A *frame* is an
immutable override that charge_to() and unbilled() push on a context variable; it never writes the Binding. The
transport asks payer() once per exchange, before it first awaits.
"""

from __future__ import annotations

import inspect
import re
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token, copy_context
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeAlias, TypeVar, cast

from .core.money import Amount, Ticks
from .core.record import Record
from .errors import AlreadyBound, ConfigurationError, IdError, OutsideRequest, say_once
from .forks import renew_in_child

if TYPE_CHECKING:
    from .lava import Lava

P = ParamSpec("P")
T = TypeVar("T")

ID_LENGTH: Final = 255
TAGS_MAX: Final = 16
RECORDS_MAX: Final = 1_000
"""How many records of one request are kept for current(); the sum of charges goes on beyond them."""

_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def checked_id(value: object, what: str = "customer", *, longest: int = ID_LENGTH) -> str:
    """The id as a plain str. Raises IdError, which never repeats it (it may be 10 kB of somebody's input)."""
    if not isinstance(value, str):
        raise IdError(f"a {what} must be a str, not {type(value).__name__}; write str(...) around an integer or UUID")
    if not value or value.isspace():
        raise IdError(f"a {what} must not be empty")
    if len(value) > longest:
        raise IdError(f"a {what} has at most {longest} characters; this one has {len(value):,}")
    if _UNFIT.search(value):
        raise IdError(f"a {what} must not contain control characters, line separators or lone surrogates")
    return str.__str__(value)


Tags: TypeAlias = tuple[tuple[str, str], ...]


def _checked_tags(tags: Mapping[str, str] | None) -> Tags:
    if not tags:
        return ()
    if len(tags) > TAGS_MAX:
        raise IdError(f"at most {TAGS_MAX} tags; these are {len(tags):,}")
    return tuple(
        sorted(
            (checked_id(name, "tag name", longest=64), checked_id(value, "tag value")) for name, value in tags.items()
        )
    )


@dataclass(frozen=True, slots=True)
class Unbilled:
    """Nobody pays, on purpose, and why."""

    reason: str
    binding: Binding | None = field(default=None, repr=False)
    lava: Lava | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Payer:
    """Who pays for an exchange, and how that is known."""

    customer: str = field(repr=False)
    user: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    """Id of the API key that the end user came with; never the key itself."""
    basis: str = "explicit"
    """"explicit" (charge_to), "identified" (identify), "resolver" (customer=), "session" (the host's own
    authentication)."""
    meter: str | None = None
    tags: Tags = field(default=(), repr=False)
    binding: Binding | None = field(default=None, repr=False)
    """The inbound request it happens in; None outside one."""
    runs: tuple[str, ...] = field(default=(), repr=False)
    """Ids of the runs it is a part of, outermost first."""
    lava: Lava | None = field(default=None, repr=False)

    @property
    def after_request(self) -> bool:
        """The inbound request has already been answered."""
        return self.binding is not None and self.binding.ended


@dataclass(frozen=True, slots=True)
class Identity:
    """What a resolver found: a customer and on what basis."""

    customer: str = field(repr=False)
    basis: str
    user: str | None = field(default=None, repr=False)


Resolver: TypeAlias = Callable[[], "Identity | Unbilled | None"]


class Binding:
    """One inbound request: who pays for it, and what it has cost so far. Any thread may use it."""

    __slots__ = (
        "__weakref__",
        "_charge",
        "_lock",
        "_payer",
        "_records",
        "_resolved",
        "_resolver",
        "ended",
        "lava",
        "request_id",
        "route",
        "stopped",
    )

    def __init__(
        self, lava: Lava | None, resolver: Resolver | None = None, *, request_id: str, route: str = ""
    ) -> None:
        self.lava = lava
        self.request_id = request_id
        self.route = route
        """The path of the inbound request, for meters that are chosen by it. It is not recorded."""
        self.ended = False
        """The request has been answered: what is opened from now on is marked so."""
        self.stopped = False
        """An exchange of it was cut."""
        self._resolver = resolver
        self._resolved = resolver is None
        self._payer: Payer | Unbilled | None = None
        self._lock = threading.RLock()  # a resolver may call identify()
        renew_in_child(self, _lock=threading.RLock)
        self._records: deque[Record] = deque(maxlen=RECORDS_MAX)
        self._charge: Ticks = 0

    def __repr__(self) -> str:
        state = "absent" if self._payer is None else "unbilled" if isinstance(self._payer, Unbilled) else "bound"
        return f"<Binding {self.request_id} {state}{' ended' if self.ended else ''}>"

    def payer(self) -> Payer | Unbilled | None:
        """Who pays: what identify() said, else what the resolver finds, asked once by whoever is first."""
        if self._payer is None and not self._resolved:
            with self._lock:  # others wait here for the answer instead of asking again
                self._resolve()
                self._resolved = True
        return self._payer

    def _resolve(self) -> None:
        resolver, self._resolver = self._resolver, None
        if resolver is None or self._payer is not None:
            return
        found = _ask(resolver)
        if self._payer is not None:  # the resolver itself called identify(), which is the more explicit
            return
        if isinstance(found, Unbilled):
            self._payer = replace(found, binding=self, lava=self.lava)
        elif found is not None:
            self._payer = Payer(found.customer, found.user, basis=found.basis, binding=self, lava=self.lava)

    def identify(self, customer: str, *, user: str | None = None, key: str | None = None) -> None:
        """Set who pays, once. The same again is fine; raises AlreadyBound for another, IdError for none."""
        customer = checked_id(customer)
        user = None if user is None else checked_id(user, "user")
        key = None if key is None else checked_id(key, "key")
        with self._lock:
            bound = self._payer
            if bound is None:
                self._payer = Payer(customer, user, key, "identified", binding=self, lava=self.lava)
            elif isinstance(bound, Unbilled) or bound.customer != customer:
                raise AlreadyBound(
                    "this request is bound to another customer already; identify() sets it once. "
                    "For single calls on somebody else's account use charge_to()"
                )
            else:
                for named, there in ((user, bound.user), (key, bound.key)):
                    if named is not None and there is not None and named != there:
                        raise AlreadyBound(
                            "this request is bound to another user or key of the customer already; identify() sets it "
                            "once"
                        )
                self._payer = replace(bound, user=user or bound.user, key=key or bound.key)

    def add(self, record: Record) -> None:
        """Remember what one exchange has cost. From any thread, also after the request."""
        with self._lock:
            self._records.append(record)
            self._charge += record.charge.ticks
            self.stopped = self.stopped or bool(record.facts.get("stopped"))

    def end(self) -> None:
        """The request has been answered. It settles nothing: what it opened ends by itself."""
        self.ended = True


def _ask(resolver: Resolver) -> Identity | Unbilled | None:
    """What the resolver finds. If it raises, nobody is bound: an error here would reach the SDK, which retries it."""
    try:
        return resolver()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        # Neither the message nor the traceback: they may hold ids.
        say_once(
            f"resolver {where.filename}:{where.lineno}",
            "lava: finding the customer of a request failed with %s at %s:%s in %s(), so the request counts as having "
            "none. This is said once per process.",
            f"IdError ({error})" if isinstance(error, IdError) else type(error).__name__,
            where.filename,
            where.lineno,
            where.name,
        )
        return None


@dataclass(frozen=True, slots=True)
class _Frame:
    """One override. Immutable; each points to the one it covers."""

    who: Payer | Unbilled
    pushed_by: object
    below: _Frame | None


_binding: ContextVar[Binding | None] = ContextVar("lava_middleware.binding", default=None)
_frame: ContextVar[_Frame | None] = ContextVar("lava_middleware.frame", default=None)


def payer() -> Payer | Unbilled | None:
    """Who pays for a call made here: the innermost frame, else the request's Binding. None: nobody was named.

    The transport reads it once per exchange, before its first await. Never raises.
    """
    frame, binding = _frame.get(), _binding.get()
    if frame is None:
        return None if binding is None else binding.payer()
    if binding is None and frame.who.lava is not None:
        return frame.who
    return replace(frame.who, binding=binding, lava=acting())


def acting() -> Lava | None:
    """Which Lava acts here: the frame's, else the Binding's, else the process default."""
    frame, binding = _frame.get(), _binding.get()
    if frame is not None and frame.who.lava is not None:
        return frame.who.lava
    if binding is not None and binding.lava is not None:
        return binding.lava
    return _default


_default: Lava | None = None
_default_lock = threading.Lock()
renew_in_child(sys.modules[__name__], _default_lock=threading.Lock)


def default() -> Lava | None:
    """The Lava that acts where no request and no frame says otherwise."""
    return _default


def set_default(lava: Lava) -> None:
    """Make it the process default. The same again is fine; raises ConfigurationError if another is."""
    global _default
    with _default_lock:
        if _default is not None and _default is not lava:
            raise ConfigurationError(
                "another Lava is instrumented as this process's default; close() that one first, "
                "or use this one through LavaMiddleware(lava=...), its own charge_to(), or LavaTransport"
            )
        _default = lava


def drop_default(lava: Lava) -> None:
    """Give it up, if it is the default."""
    global _default
    with _default_lock:
        if _default is lava:
            _default = None


_off = 0
"""How many `billing_off()` are in force in this process."""


def switch_billing(*, off: bool) -> None:
    """For `lava_middleware.testing.billing_off`. Each switching off wants one switching on."""
    global _off
    with _default_lock:
        _off += 1 if off else -1


def billing_is_off() -> bool:
    """Whether all calls of this process pass, neither gated nor metered nor recorded."""
    return _off > 0


OpenRequest: TypeAlias = "tuple[Token[Binding | None], Token[_Frame | None]]"


def open_request(binding: Binding) -> OpenRequest:
    """Enter a request: for the web adapters. Frames of whoever started the server do not reach into it."""
    if binding.lava is not None:
        binding.lava.awake()
    return _binding.set(binding), _frame.set(None)


def close_request(opened: OpenRequest) -> None:
    """Leave it, in a `finally`. In another context than it was entered in there is nothing to put back."""
    try:
        _frame.reset(opened[1])
        _binding.reset(opened[0])
    except ValueError:  # a server that closes the coroutine from elsewhere (collector, shutdown)
        pass


def binding() -> Binding | None:
    """The inbound request this code runs in."""
    return _binding.get()


def identify(customer: str, *, user: str | None = None, key: str | None = None) -> None:
    """Say who pays for this request. In a dependency, a view or middleware, sync or async; before the first call.

    `user` and `key` (the id of the API key it came with, never the key itself) are for limits and records.
    Set once: the same again is fine, raises AlreadyBound for another. Raises OutsideRequest outside a request.
    """
    here = _binding.get()
    if here is None:
        raise OutsideRequest(
            "identify() was called outside a request. Is LavaMiddleware added, and is this a thread that lost the "
            "request's context (then pass it bind_context(function))? Elsewhere use charge_to()"
        )
    here.identify(customer, user=user, key=key)


@dataclass(frozen=True, slots=True)
class Current:
    """The request being served, so far."""

    _of: Binding = field(repr=False)

    @property
    def request_id(self) -> str:
        return self._of.request_id

    @property
    def records(self) -> tuple[Record, ...]:
        """Its usage records, oldest first (the last thousand)."""
        with self._of._lock:
            return tuple(self._of._records)

    @property
    def charge(self) -> Amount:
        """What they come to."""
        return Amount(self._of._charge)

    @property
    def available(self) -> Amount | None:
        """What the customer who pays here can spend now; None: nobody pays. Reads the ledger."""
        who, lava = payer(), acting()
        if lava is None or not isinstance(who, Payer):
            return None
        return lava.balance(who.customer).available

    @property
    def stopped(self) -> bool:
        """An answer of the provider was cut because credit or a limit had run out."""
        return self._of.stopped


def current() -> Current:
    """The request being served: its records so far, `.charge`, `.available`, `.stopped`, `.request_id`.

    Raises OutsideRequest outside one.
    """
    here = _binding.get()
    if here is None:
        raise OutsideRequest("current() was called outside a request, or in a thread that lost its context")
    return Current(here)


# Frames --------------------------------------------------------------------------------------------------------------


class Override:
    """Pushes a frame: `with`, `async with`, or a decorator of any kind of function. May be reused and nested."""

    __slots__ = ("who",)

    def __init__(self, who: Payer | Unbilled) -> None:
        self.who = who

    def __enter__(self) -> None:
        below = _frame.get()
        who = self.who
        if who.lava is None and below is not None and below.who.lava is not None:
            who = replace(who, lava=below.who.lava)
        if below is not None:
            who = _in_runs_of(who, below.who)
        _frame.set(_Frame(who, self, below))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not by token: one object may be entered in many tasks at once, and left in a context that never entered it
        # (a generator that is closed by the collector). There it finds no frame of its own and changes nothing.
        _frame.set(_without(_frame.get(), self))

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return inside(lambda: self, function)

    def __repr__(self) -> str:
        return "<unbilled>" if isinstance(self.who, Unbilled) else "<charge_to>"


def _in_runs_of(who: Payer | Unbilled, outer: Payer | Unbilled) -> Payer | Unbilled:
    """A frame for the customer of a run around it stays in that run: naming the customer again escapes no budget."""
    if isinstance(who, Payer) and isinstance(outer, Payer) and not who.runs and who.customer == outer.customer:
        return replace(who, runs=outer.runs)
    return who


def _without(top: _Frame | None, pushed_by: object) -> _Frame | None:
    """The frames without the last one that this object pushed."""
    if top is None or top.pushed_by is pushed_by:
        return None if top is None else top.below
    below = _without(top.below, pushed_by)
    return top if below is top.below else replace(top, below=below)


def charge_to(
    customer: str,
    *,
    meter: str | None = None,
    user: str | None = None,
    key: str | None = None,
    tags: Mapping[str, str] | None = None,
    lava: Lava | None = None,
) -> Override:
    """Charge the calls made inside to this customer: `with`, `async with`, or a decorator.

    `meter`, `user`, `key` (the id of an API key, never the key itself) and `tags` are for prices, limits and records.

    Overrides the request's own customer without changing it; frames nest, the innermost counts. Raises IdError.

    Decorate generators: a `with` around a `yield` covers what their consumer does between the steps too. And a `with`
    around the `yield` of a FastAPI dependency reaches the endpoint only if the dependency is async, for a sync one runs
    in a copy of the context.
    """
    return Override(
        Payer(
            checked_id(customer),
            None if user is None else checked_id(user, "user"),
            None if key is None else checked_id(key, "key"),
            "explicit",
            None if meter is None else checked_id(meter, "meter", longest=64),
            _checked_tags(tags),
            lava=lava,
        )
    )


def with_details(
    payer: Payer, *, meter: str | None = None, user: str | None = None, tags: Mapping[str, str] | None = None
) -> Payer:
    """The same payer with what is named more closely. Raises IdError."""
    if meter is None and user is None and tags is None:
        return payer
    return replace(
        payer,
        meter=payer.meter if meter is None else checked_id(meter, "meter", longest=64),
        user=payer.user if user is None else checked_id(user, "user"),
        tags=payer.tags if tags is None else _checked_tags(tags),
    )


def unbilled(reason: str = "", *, lava: Lava | None = None) -> Override:
    """Let the calls made inside pass without being charged to anybody; they are counted under this reason.

    `with`, `async with`, or a decorator; `customer=` of the middleware may return it too.
    """
    return Override(Unbilled(reason and checked_id(reason, "reason", longest=64), lava=lava))


@contextmanager
def _as_in(there: Binding | None, above: _Frame | None) -> Generator[None]:
    """In a request and its frames as they were elsewhere."""
    here = _binding.get(), _frame.get()
    _binding.set(there)
    _frame.set(above)
    try:
        yield
    finally:
        _binding.set(here[0])
        _frame.set(here[1])


def bind_context(function: Callable[P, T]) -> Callable[P, T]:
    """The function, made to run in today's context wherever it is called: in a thread, a pool, a callback.

    `pool.submit(bind_context(work), ...)`. It may be called many times and at once.
    """
    if _kind(function) is not _call:  # its body runs after the call returned
        there, above = _binding.get(), _frame.get()
        return inside(lambda: _as_in(there, above), function)
    context = copy_context()

    @wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> T:
        # A copy per call: a Context cannot be entered twice at once.
        return context.copy().run(function, *args, **kwargs)

    return bound


# What a decorator must do depends on when the function's body runs ----------------------------------------------------

_Entered: TypeAlias = Callable[[], AbstractContextManager[None]]


def _call(entered: _Entered, function: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with entered():
            return function(*args, **kwargs)

    return inside


def _coroutine(entered: _Entered, function: Callable[..., Any]) -> Callable[..., Any]:
    async def inside(*args: Any, **kwargs: Any) -> Any:
        with entered():
            return await function(*args, **kwargs)

    return inside


class _Between:
    """Enters for each step of a generator, and keeps the frames that its body has pushed while its caller runs.

    Without it a `with charge_to()` around a yield would be the caller's too, and another's in the body's next step.
    """

    __slots__ = ("_base", "_entered", "_top")

    def __init__(self, entered: _Entered) -> None:
        self._entered = entered
        self._base: _Frame | None = None
        self._top: _Frame | None = None

    @contextmanager
    def __call__(self) -> Generator[None]:
        callers = _frame.get()
        try:
            with self._entered():
                if self._top is None:
                    self._base = _frame.get()
                else:
                    _frame.set(self._top)
                try:
                    yield
                finally:
                    top = _frame.get()
                    self._top = None if top is self._base else top
        finally:
            _frame.set(callers)


def _generator(entered: _Entered, function: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        steps = function(*args, **kwargs)
        entered_again = _Between(entered)
        step = partial(next, steps)
        while True:
            try:
                with entered_again():  # around each step: between them the caller runs, and pays for itself
                    item = step()
            except StopIteration as stop:
                return stop.value
            try:
                step = partial(steps.send, (yield item))
            except GeneratorExit:
                with entered_again():
                    steps.close()
                raise
            except BaseException as error:
                step = partial(steps.throw, error)

    return inside


def _async_generator(entered: _Entered, function: Callable[..., Any]) -> Callable[..., Any]:
    async def inside(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps = function(*args, **kwargs)
        entered_again = _Between(entered)
        step = partial(anext, steps)
        while True:
            try:
                with entered_again():
                    item = await step()
            except StopAsyncIteration:
                return
            try:
                step = partial(steps.asend, (yield item))
            except GeneratorExit:
                with entered_again():
                    await steps.aclose()
                raise
            except BaseException as error:
                step = partial(steps.athrow, error)

    return inside


def _kind(function: Callable[..., Any]) -> Callable[[_Entered, Callable[..., Any]], Callable[..., Any]]:
    for one in (function, getattr(function, "__call__", None)):  # noqa: B004 - objects with an async __call__
        if inspect.iscoroutinefunction(one):
            return _coroutine
        if inspect.isasyncgenfunction(one):
            return _async_generator
        if inspect.isgeneratorfunction(one):
            return _generator
    return _call


def inside(entered: _Entered, function: Callable[P, T]) -> Callable[P, T]:
    """The function, with its body run inside what `entered()` enters, whatever kind of function it is."""
    return cast("Callable[P, T]", wraps(function)(_kind(function)(entered, function)))
