"""This file knows how to switch billing off for the tests of an application that uses it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import ParamSpec, TypeVar

from .. import context

P = ParamSpec("P")
T = TypeVar("T")


class billing_off(AbstractContextManager[None]):
    """Inside it nothing is gated, metered or recorded, in this whole process: every call passes as it is.

    `with billing_off():`, or a decorator of any kind of function. May be nested. For pytest:

        @pytest.fixture(autouse=True)
        def no_billing():
            with billing_off():
                yield
    """

    def __enter__(self) -> None:
        context.switch_billing(off=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        context.switch_billing(off=False)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return context.inside(billing_off, function)
