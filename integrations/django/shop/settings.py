"""Settings of the example project. What lava_middleware needs is marked with (1) to (3)."""

import os

DEBUG = os.environ.get("DEBUG") == "1"
SECRET_KEY = os.environ.get("SECRET_KEY", "an example, reachable from this machine only")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "shop.urls"
INSTALLED_APPS = ["lava_middleware.django"]  # (1) the system checks, and `manage.py lava`
MIDDLEWARE = [
    "django.middleware.common.CommonMiddleware",
    "shop.accounts.authentication",  # yours may be django.contrib.auth's: request.user pays
    "lava_middleware.django.LavaMiddleware",  # (2) the gateway, after whoever sets request.user
]
LAVA = {  # (3) any setting of Lava(); LAVA_* variables count too
    "LEDGER": os.environ.get("LAVA_LEDGER", "sqlite:///lava.db"),
    "MARKUP": "1.20",
}
OPENAI_API_KEY = os.environ.get("OPENAI_API_KEY", "not set")
SILENCED_SYSTEM_CHECKS = ["lava_middleware.W003"]  # there is somebody who says who pays: shop.accounts
