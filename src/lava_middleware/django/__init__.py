"""This file knows what a Django project uses: the middleware, and the Lava that its LAVA setting describes.

MIDDLEWARE = [..., "django.contrib.auth.middleware.AuthenticationMiddleware", "lava_middleware.django.LavaMiddleware"]
INSTALLED_APPS = [..., "lava_middleware.django"]  # for the system checks and `manage.py lava`
LAVA = {"LEDGER": "sqlite:////var/lib/shop/lava.db", "CUSTOMER": "shop.billing.customer"}
"""

from __future__ import annotations

try:
    import django as _django  # noqa: F401
except ImportError as missing:
    raise ImportError("lava_middleware.django needs Django: pip install 'lava-middleware[django]'") from missing

from .configured import lava
from .middleware import LavaMiddleware

__all__ = ["LavaMiddleware", "lava"]
