"""This file knows how to read the LAVA setting of a Django project, and keeps the one Lava that it describes.

LAVA = {
    "LEDGER": "sqlite:////var/lib/shop/lava.db",  # any setting of Lava(), in capitals
    "CUSTOMER": "shop.billing.customer",  # a function of the request, or its dotted path
    "LAVA": "shop.billing.lava",  # a Lava that exists, or its dotted path, instead of settings
}
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from .. import adapter
from ..errors import ConfigurationError
from ..forks import renew_in_child

if TYPE_CHECKING:
    from ..lava import Lava

SETTING = "LAVA"


@dataclass(frozen=True, slots=True)
class Configured:
    """The LAVA setting, read."""

    keywords: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Settings of Lava()."""
    customer: object = None
    """Not looked up yet: a dotted path may lead to a module that needs the models."""
    lava: object = field(default=None, repr=False)


def read() -> Configured:
    """The setting as it stands now. Raises ConfigurationError if it is no dict of strings."""
    given = getattr(settings, SETTING, None) or {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigurationError("LAVA must be a dict of settings, such as {'LEDGER': 'sqlite:////var/lib/lava.db'}")
    keywords = {name.lower(): value for name, value in given.items()}
    if len(keywords) != len(given):
        raise ConfigurationError("LAVA has a setting twice, in capitals and in small letters")
    return Configured(customer=keywords.pop("customer", None), lava=keywords.pop("lava", None), keywords=keywords)


def customer_of(configured: Configured) -> adapter.Customer | None:
    """The function that CUSTOMER is, or names. Raises ConfigurationError if it cannot be one."""
    found = _looked_up(configured.customer, "CUSTOMER")
    if found is not None:
        adapter.check_plain(found)
    return found  # type: ignore[no-any-return]  # checked to be callable; what it returns is checked when it does


def lava_of(configured: Configured) -> Lava | None:
    """The Lava that the key LAVA is, or names. Raises ConfigurationError if it is none."""
    from ..lava import Lava

    found = _looked_up(configured.lava, "LAVA")
    if found is not None and not isinstance(found, Lava):
        raise ConfigurationError("LAVA['LAVA'] must be a Lava, or the dotted path of one")
    return found


def _looked_up(found: object, name: str) -> Any:
    if not isinstance(found, str):
        return found
    try:
        return import_string(found)
    except ImportError as error:
        raise ConfigurationError(f"LAVA[{name!r}] names something that cannot be imported: {error}") from error


_lock = threading.Lock()
renew_in_child(sys.modules[__name__], _lock=threading.Lock)
_lava: Lava | None = None
_ours = False
"""Whether we made it, and so close it."""


def lava() -> Lava:
    """The project's Lava: what the LAVA setting names, else one made from it when first needed, instrumented.

    For webhooks, tasks and commands: `lava().grant("acme", "5.00", key=event.id)`. Raises ConfigurationError.
    """
    global _lava, _ours
    with _lock:
        if _lava is None:
            configured = read()
            named = lava_of(configured)
            _lava = adapter.ready(named, None, configured.keywords)
            _ours = named is None
        return _lava


def _forget(*, setting: str, **_: object) -> None:
    """The LAVA setting was changed, by override_settings: the next who asks gets another Lava."""
    global _lava
    if setting != SETTING:
        return
    with _lock:
        found, _lava = _lava, None
    if found is not None and _ours:
        found.close()


setting_changed.connect(_forget, dispatch_uid="lava_middleware.django")
