"""What holds for every response: one line about what failed, and the headers of the page."""

from __future__ import annotations

from collections.abc import Callable

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponseBase, JsonResponse

from examples.chat_page.web import CONTENT_POLICY, EXPECTED, BadInputError, log, problem

__all__ = ["Problems"]


class Problems:
    """Turns what a view raises into a status and one readable line."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Add the headers."""
        response = self._get_response(request)
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> JsonResponse | None:
        """Answer for a view that has raised; what is a mistake of ours stays Django's."""
        if isinstance(error, RequestDataTooBig):
            error = BadInputError("The request is too large.")
        if not isinstance(error, EXPECTED):
            return None
        log(f"{request.method} {request.path}", error)
        found = problem(error)
        return JsonResponse({"error": found.message}, status=found.status, headers=found.headers)
