"""This file knows how to serve a Flask application's requests on somebody's account.

app = Flask(__name__)
LavaFlask(app, customer=lambda request: session.get("account"))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from . import adapter, context
from .context import Override, Unbilled
from .errors import ConfigurationError, Refused, StreamCut
from .settings import EXAMPLES, PREFIX
from .wsgi import LavaWSGIMiddleware

try:
    import flask
    from flask import Request, Response
    from werkzeug.exceptions import HTTPException
except ImportError as missing:
    raise ImportError("lava_middleware.flask needs Flask: pip install 'lava-middleware[flask]'") from missing

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .lava import Lava

FlaskCustomer: TypeAlias = "Callable[[Request], str | Unbilled | Override | None]"
"""customer=: given Flask's request, whoever pays; None: nobody is known."""

EXTENSION = "lava"
"""Under which `app.extensions` has the Lava."""


class LavaFlask:
    """Binds each request to its customer, and answers refusals that no handler of the application's takes.

    `LavaFlask(app)`, or `init_app(app)` in an application factory. Settings come from `app.config["LAVA_..."]` and
    LAVA_* variables; `lava=` takes a Lava that exists. `customer=` is a plain function of the request, called at the
    first provider call, or, for a body that is streamed, when the view has returned: flask.session and flask_login's
    current_user are there for it. Without it, the application says who pays with identify().

    Instruments the HTTP libraries. Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        app: flask.Flask | None = None,
        lava: Lava | None = None,
        customer: FlaskCustomer | None = None,
        **settings: Any,
    ) -> None:
        self._lava = lava
        self._customer = customer
        self._settings = settings
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask, lava: Lava | None = None, customer: FlaskCustomer | None = None) -> None:
        """Install it. What is not given here is what the constructor was given."""
        if EXTENSION in app.extensions:
            raise ConfigurationError("this Flask application has LavaFlask already")
        lava, customer = lava or self._lava, customer or self._customer
        if customer is not None:
            adapter.check_plain(customer)
        settings = self._settings if lava is not None else {**_configured(app), **self._settings}
        asked = None if customer is None else _by_environ(app, customer)
        middleware = LavaWSGIMiddleware(app.wsgi_app, lava, asked, **settings)
        app.wsgi_app = middleware  # type: ignore[method-assign]  # as Flask documents it
        app.extensions[EXTENSION] = middleware.lava
        if customer is not None:
            app.after_request(_bind_stream)
        # The last resort of each kind: the application's own handlers stay, and more specific ones come first.
        for kind in (Refused, StreamCut, Exception):
            if kind not in app.error_handler_spec[None][None]:
                app.register_error_handler(kind, _answer)


def _configured(app: flask.Flask) -> dict[str, Any]:
    """The settings in app.config. Other keys that begin with LAVA_ may belong to others."""
    names = {PREFIX + name.upper(): name for name in EXAMPLES}
    return {names[key]: value for key, value in app.config.items() if key in names}


def _by_environ(app: flask.Flask, customer: FlaskCustomer) -> adapter.Customer:
    def asked(environ: WSGIEnvironment) -> str | Unbilled | Override | None:
        if flask.has_request_context() and flask.request.environ is environ:
            return customer(flask.request)
        return customer(app.request_class(environ))

    return asked


def _bind_stream(response: Response) -> Response:
    """Ask who pays for a body that is made after the request's own context is gone, and flask.session with it."""
    binding = context.binding()
    if binding is not None and response.is_streamed and not response.direct_passthrough:
        binding.payer()
    return response


def _answer(error: Exception) -> Response | HTTPException:
    """A refusal as problem details; any other error passes."""
    if isinstance(error, HTTPException):  # the handler of Exception is asked for these too
        return error
    binding = context.binding()
    problem = None if binding is None or binding.lava is None else adapter.refusal(error, binding, binding.lava)
    if problem is None:
        raise error
    headers = [(name.decode(), value.decode()) for name, value in problem.headers]
    return flask.current_app.response_class(problem.body, problem.status, headers)
