"""Settings of the Django site that the tests serve. The ledger and the provider come from LAVA_* variables."""

from __future__ import annotations

import os

DEBUG = False
SECRET_KEY = "of the tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.frameworks.sites.django_site"
WSGI_APPLICATION = "tests.frameworks.sites.django_site.wsgi"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "lava_middleware.django",
]
MIDDLEWARE = [
    "tests.frameworks.sites.django_site.authentication",
    "lava_middleware.django.LavaMiddleware",
    "django.middleware.common.CommonMiddleware",
]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("SITE_DATABASE", ":memory:")},
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
LAVA: dict[str, object] = {}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["console"], "level": "WARNING", "propagate": False}},
}
