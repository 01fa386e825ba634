"""This file knows how to be a Django application: it brings system checks and `manage.py lava`, and no models."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class LavaConfig(AppConfig):
    name = "lava_middleware.django"
    label = "lava_middleware"
    verbose_name = "lava_middleware"

    def ready(self) -> None:
        from .checks import check

        checks.register(check)
