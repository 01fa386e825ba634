"""This file knows how to make the small values of which every call makes several: commands and events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(made: type[T]) -> type[T]:
    """A dataclass with slots that is frozen for the type checker alone.

    What would keep it frozen at run time makes it more than twice as slow to make: 1.9 µs for ten fields, not 0.8.
    """
    return dataclass(slots=True, unsafe_hash=True)(made)
