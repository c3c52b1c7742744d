"""A chat in the browser, with Flask: the page, signing in, streamed answers, past conversations.

    python -m examples.flask_app

The signed cookie holds a random key, and the server what belongs to it: the tokens, and the id of
the conversation (`examples.chat_page.service` is what the application does with them).

Stop needs no request of its own. The browser ends its request; the worker that streams the answer
sees that when it next writes, and closes the stream, which cancels the turn. So it works with any
number of workers, also when none of them is free. Under gunicorn:

    export FLUXBASE_URL=... CHAT_SECRET_KEY=... CHAT_DATA=... CHAT_HOSTS=... CHAT_HTTPS=1
    gunicorn --preload --workers 2 --threads 16 'examples.flask_app.app:create_app()'

An answer occupies a thread; those beyond `CHAT_POOL_SIZE` are left to say that all are busy. Put a
proxy before it, for TLS, and for browsers that send or read slowly. With the worker class `sync` an
answer occupies its worker, and must end within `--timeout`.
"""

from __future__ import annotations

from typing import Final

from flask import Flask, Response, jsonify, request, session
from flask.logging import default_handler
from werkzeug.exceptions import HTTPException

from examples.chat_page.service import Service
from examples.chat_page.settings import Settings
from examples.chat_page.web import (
    CONTENT_POLICY,
    EXPECTED,
    STATIC,
    BadInputError,
    log,
    logger,
    problem,
    read,
)
from fluxbase_aichat import SSE_HEADERS

__all__ = ["create_app"]

_LARGEST: Final = 64 * 1024


def create_app() -> Flask:
    """Make the application, by the variables of `Settings`."""
    settings = Settings.from_env()
    service = Service(settings)
    app = Flask(__name__, static_folder=STATIC, static_url_path="/static")
    app.config.update(
        SECRET_KEY=settings.secret_key,
        # With that prefix no other host of the domain can set it.
        SESSION_COOKIE_NAME="__Host-session" if settings.https else "session",
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=settings.https,
        TRUSTED_HOSTS=settings.hosts,
        MAX_CONTENT_LENGTH=_LARGEST,
    )
    logger.addHandler(default_handler)

    def key() -> str:
        return str(session.get("key", ""))

    @app.before_request
    def only_json() -> None:
        """Take no form, which another site could send with this one's cookie."""
        if request.method == "POST" and request.mimetype != "application/json":
            raise BadInputError("The request is no JSON object.")

    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.post("/sign-in")
    def sign_in() -> Response:
        email, password = read(request.get_data(), "email", "password")
        session["key"] = service.sign_in(key(), email, password)
        return jsonify({})

    @app.post("/sign-out")
    def sign_out() -> Response:
        service.sign_out(session.pop("key", ""))
        return jsonify({})

    @app.post("/new")
    def new() -> Response:
        service.new(key())
        return jsonify({})

    @app.post("/open")
    def open_past() -> Response:
        (conversation,) = read(request.get_data(), "conversation")
        service.open(key(), conversation)
        return jsonify({})

    @app.post("/ask")
    def ask() -> Response:
        (question,) = read(request.get_data(), "question")
        return Response(service.ask(key(), question), headers=SSE_HEADERS)

    @app.get("/history")
    def history() -> Response:
        return jsonify(service.history(key()))

    def failed(error: Exception) -> tuple[Response, int, dict[str, str]]:
        found = problem(error)
        log(f"{request.method} {request.path}", error)
        return jsonify(error=found.message), found.status, found.headers

    for kind in EXPECTED:
        app.register_error_handler(kind, failed)

    @app.errorhandler(HTTPException)
    def wrong(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=f"{error.name}."), error.code or 500

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return app
