"""Which view answers which path."""

from django.urls import path
from django.views.decorators.http import require_GET, require_POST

from . import views

urlpatterns = [
    path("chat", require_POST(views.chat)),
    path("answer", require_POST(views.answer)),
    path("answers", require_POST(views.answers)),
    path("balance", require_GET(views.balance)),
]
