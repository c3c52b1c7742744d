"""A chat in the browser, with Flask: the page, signing in, streamed answers, the history.

    python -m examples.flask_app

The cookie holds a signed random key, and the server what belongs to it: the token, and the id of
the conversation, which no browser gets to see (whoever knows one can go on with it).

Stop needs no request of its own. The browser ends its request; the worker that streams the answer
sees that when it next writes, and closes the stream, which cancels the turn. So it works with any
number of workers, also when none of them is free. Under gunicorn:

    export FLUXBASE_URL=... CHAT_SECRET_KEY=... CHAT_DATA=...
    gunicorn --preload --workers 2 --threads 8 'examples.flask_app.app:create_app()'

With the worker class `sync` an answer occupies its worker, and must end within `--timeout`; such
workers belong behind a proxy, for a browser's idle connection occupies one as well.
"""

from __future__ import annotations

from typing import Final

from flask import Flask, Response, jsonify, request, session
from werkzeug.exceptions import HTTPException

from examples.chat_page.service import (
    CONTENT_POLICY,
    STATIC,
    BadInputError,
    SignedOutError,
    log,
    problem,
    read,
)
from examples.chat_page.settings import Settings
from fluxbase_aichat import SSE_HEADERS, AuthenticationError, FluxbaseChatError

from .sessions import Session, Sessions

__all__ = ["create_app"]

_LARGEST: Final = 64 * 1024


def create_app() -> Flask:
    """Make the application, by the variables of `Settings`."""
    settings = Settings.from_env()
    service = settings.service()
    sessions = Sessions(settings.data / "sessions.db")
    app = Flask(__name__, static_folder=STATIC, static_url_path="/static")
    app.config.update(
        SECRET_KEY=settings.secret_key,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=settings.https,
        MAX_CONTENT_LENGTH=_LARGEST,
    )

    def here() -> Session:
        found = sessions.get(session.get("key", ""))
        if found is None:
            raise SignedOutError
        return found

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
        try:
            token = service.sign_in(email, password)
        except AuthenticationError:
            raise BadInputError("The e-mail address or the password is not right.") from None
        sessions.end(session.get("key", ""))
        session["key"] = sessions.begin(email, token)
        return jsonify({})

    @app.post("/sign-out")
    def sign_out() -> Response:
        sessions.end(session.pop("key", ""))
        return jsonify({})

    @app.post("/new")
    def new() -> Response:
        here()
        sessions.go_on(session["key"], None)
        return jsonify({})

    @app.post("/ask")
    def ask() -> Response:
        person = here()
        (question,) = read(request.get_data(), "question")
        conversation_id, stream = service.ask(
            person.email, person.token, person.conversation_id, question
        )
        sessions.go_on(session["key"], conversation_id)
        return Response(stream, headers=SSE_HEADERS)

    @app.get("/history")
    def history() -> Response:
        person = here()
        messages = service.history(person.token, person.conversation_id)
        return jsonify(user=person.email, messages=messages)

    @app.errorhandler(BadInputError)
    @app.errorhandler(SignedOutError)
    @app.errorhandler(FluxbaseChatError)
    def failed(error: Exception) -> tuple[Response, int, dict[str, str]]:
        found = problem(error)
        log(app.logger, f"{request.method} {request.path}", error)
        return jsonify(error=found.message), found.status, found.headers

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
