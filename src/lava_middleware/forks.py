"""This file knows how to give a forked child fresh locks, for the thread that held one in its parent is not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

_owners: dict[tuple[str, Callable[[], Any]], WeakSet[Any]] = {}
"""(attribute, what makes a new one) → the objects and modules that have it."""


def renew_in_child(owner: object, **makers: Callable[[], Any]) -> None:
    """In every child that is forked from now on, set each of these attributes anew: renew_in_child(self, _lock=Lock).

    For locks, and for what they guard if a child may find it half changed. The owner (an object or a module) is held
    weakly. The makers are kept: functions of a module, never made for one owner.
    """
    for name, make in makers.items():
        owners = _owners.get((name, make))
        if owners is None:
            owners = _owners.setdefault((name, make), WeakSet())
        owners.add(owner)


def _renew() -> None:
    for (name, make), owners in _owners.items():
        for owner in list(owners):
            setattr(owner, name, make())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
