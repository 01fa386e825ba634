"""This file knows which gate an explicit transport asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import context
from ..errors import ConfigurationError
from .gate import Gate

if TYPE_CHECKING:
    from ..lava import Lava


def gate_of(lava: Lava | None) -> Gate:
    """The gate of this Lava; without one, of the Lava that acts where the request is sent."""
    return Gate(_acting if lava is None else lambda: lava)


def _acting() -> Lava:
    lava = context.acting()
    if lava is None:  # a transport that was asked to gate must not let everything through
        raise ConfigurationError(
            "this transport has no Lava to ask: give it one, LavaTransport(lava=...), or make one the process default"
        )
    return lava
