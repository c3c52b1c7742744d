"""The chat in the browser, with Django: the page, signing in, streamed answers, past conversations.

    python -m examples.django_app

Django's signed cookie holds a random key, and the server what belongs to it: the tokens, and the id
of the conversation (`examples.chat_page.service` is what the application does with them). The CSRF
middleware guards each POST.

Stop needs no request of its own. The browser ends its request; the worker that streams the answer
sees that when it next writes, and closes the stream, which cancels the turn. So it works with any
number of workers, also when none of them is free.
"""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import rotate_token
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST

from examples.chat_page.service import Service
from examples.chat_page.web import STATIC, read
from fluxbase_aichat import SSE_HEADERS

__all__ = [
    "ask",
    "failed",
    "history",
    "new",
    "no_csrf",
    "not_found",
    "open_past",
    "page",
    "sign_in",
    "sign_out",
]

_service = Service(settings.CHAT)


def _key(request: HttpRequest) -> str:
    return str(request.session.get("key", ""))


@require_GET
@ensure_csrf_cookie
def page(request: HttpRequest) -> HttpResponse:
    """Answer with the page; its script asks for the rest."""
    return HttpResponse((STATIC / "index.html").read_bytes())


@require_POST
def sign_in(request: HttpRequest) -> JsonResponse:
    """Begin a session."""
    email, password = read(request.body, "email", "password")
    request.session["key"] = _service.sign_in(_key(request), email, password)
    rotate_token(request)
    return JsonResponse({})


@require_POST
def sign_out(request: HttpRequest) -> JsonResponse:
    """End it."""
    _service.sign_out(_key(request))
    request.session.flush()
    return JsonResponse({})


@require_POST
def new(request: HttpRequest) -> JsonResponse:
    """Have the next question begin a conversation."""
    _service.new(_key(request))
    return JsonResponse({})


@require_POST
def open_past(request: HttpRequest) -> JsonResponse:
    """Go back to a conversation."""
    (conversation,) = read(request.body, "conversation")
    _service.open(_key(request), conversation)
    return JsonResponse({})


@require_POST
def ask(request: HttpRequest) -> StreamingHttpResponse:
    """Stream an answer."""
    (question,) = read(request.body, "question")
    return StreamingHttpResponse(_service.ask(_key(request), question), headers=SSE_HEADERS)


@require_GET
def history(request: HttpRequest) -> JsonResponse:
    """Answer with the messages of the conversation, and with the past ones."""
    return JsonResponse(_service.history(_key(request)))


def no_csrf(request: HttpRequest, reason: str = "") -> JsonResponse:
    """Refuse what another site may have sent."""
    return JsonResponse({"error": "The page is too old. Please load it again."}, status=403)


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Answer for an address that is none."""
    return JsonResponse({"error": "Not Found."}, status=404)


def failed(request: HttpRequest) -> JsonResponse:
    """Answer when the application itself has failed."""
    return JsonResponse({"error": "Internal Server Error."}, status=500)
