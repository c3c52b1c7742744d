"""The chat in the browser, with Django: the page, signing in, streamed answers, the history.

    python -m examples.django_app

Django's session keeps the token and the conversation's id on the server (whoever knows the id can
go on with the conversation); its CSRF middleware guards each POST. Stop is the browser ending its
request: the worker that streams the answer sees that when it next writes, and closes the stream,
which cancels the turn. So it works with any number of workers, also when none of them is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST

from examples.chat_page.service import STATIC, BadInputError, Service, SignedOutError, read
from fluxbase_aichat import SSE_HEADERS, AuthenticationError

__all__ = ["ask", "failed", "history", "new", "no_csrf", "not_found", "page", "sign_in", "sign_out"]

_service: Service = settings.CHAT.service()


@dataclass(frozen=True)
class Person:
    """Who asks, by their session."""

    email: str
    token: str
    conversation_id: str | None


def _person(request: HttpRequest) -> Person:
    found = cast("dict[str, Any]", request.session)
    if "token" not in found:
        raise SignedOutError
    return Person(found["email"], found["token"], found.get("conversation_id"))


@require_GET
@ensure_csrf_cookie
def page(request: HttpRequest) -> HttpResponse:
    """Answer with the page; its script asks for the rest."""
    return HttpResponse((STATIC / "index.html").read_bytes())


@require_POST
def sign_in(request: HttpRequest) -> JsonResponse:
    """Begin a session."""
    email, password = read(request.body, "email", "password")
    try:
        token = _service.sign_in(email, password)
    except AuthenticationError:
        raise BadInputError("The e-mail address or the password is not right.") from None
    request.session.flush()
    request.session.update({"email": email, "token": token})
    return JsonResponse({})


@require_POST
def sign_out(request: HttpRequest) -> JsonResponse:
    """End it."""
    request.session.flush()
    return JsonResponse({})


@require_POST
def new(request: HttpRequest) -> JsonResponse:
    """Have the next question begin a conversation."""
    _person(request)
    request.session["conversation_id"] = None
    return JsonResponse({})


@require_POST
def ask(request: HttpRequest) -> StreamingHttpResponse:
    """Stream an answer."""
    person = _person(request)
    (question,) = read(request.body, "question")
    conversation_id, stream = _service.ask(
        person.email, person.token, person.conversation_id, question
    )
    request.session["conversation_id"] = conversation_id
    return StreamingHttpResponse(stream, headers=SSE_HEADERS)


@require_GET
def history(request: HttpRequest) -> JsonResponse:
    """Answer with the messages of the conversation."""
    person = _person(request)
    messages = _service.history(person.token, person.conversation_id)
    return JsonResponse({"user": person.email, "messages": messages})


def no_csrf(request: HttpRequest, reason: str = "") -> JsonResponse:
    """Refuse what another site may have sent."""
    return JsonResponse({"error": "The page is too old. Please load it again."}, status=403)


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Answer for an address that is none."""
    return JsonResponse({"error": "Not Found."}, status=404)


def failed(request: HttpRequest) -> JsonResponse:
    """Answer when the application itself has failed."""
    return JsonResponse({"error": "Internal Server Error."}, status=500)
