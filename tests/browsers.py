"""Browsers for the tests of the web applications: one that only knows HTTP, and a real one."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.cookies
import json
from collections.abc import Iterator
from typing import Any, Self

from servers import WAIT

__all__ = ["Answer", "HttpBrowser"]


class Answer:
    """A response that is read as it comes."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        self.status = self._response.status
        self.headers = self._response.headers

    def until(self, text: str) -> None:
        """Read lines until one has this text."""
        while text not in (line := self._response.readline().decode()):
            assert line, f"it ended without {text!r}"

    def read(self) -> bytes:
        """Read the rest, and end."""
        with self:
            return self._response.read()

    def json(self) -> dict[str, Any]:
        """Read it as JSON."""
        return json.loads(self.read())

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Read it as events."""
        blocks = [block.split("\n") for block in self.read().decode().split("\n\n")]
        return [
            (kind.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
            for kind, data in (block for block in blocks if len(block) == 2)
        ]

    def close(self) -> None:
        """Go, as a browser does whose Stop was pressed."""
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HttpBrowser:
    """Keeps cookies, and sends what the page's script sends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._cookies: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
        with self.get("/") as page:
            assert 200 == page.status
            self.headers = page.headers

    def get(self, path: str) -> Answer:
        """Get a page."""
        return self.request("GET", path)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """Post JSON."""
        return self.request("POST", path, json.dumps(body).encode(), **headers)

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Send anything."""
        sent = {"Content-Type": "application/json"}
        sent["Cookie"] = "; ".join(f"{c.key}={c.coded_value}" for c in self._cookies.values())
        if "csrftoken" in self._cookies:
            sent["X-CSRFToken"] = self._cookies["csrftoken"].value
        sent |= headers
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT)
        connection.request(method, path, body, sent)
        answer = Answer(connection)
        for line in answer.headers.get_all("Set-Cookie", []):
            self._cookies.load(line)
        return answer

    def sign_in(self, name: str = "ann") -> None:
        """Sign in as one of the dev server's users."""
        body = {"email": f"{name}@example.com", "password": f"{name}-password"}
        with self.post("/sign-in", body) as answer:
            assert 200 == answer.status

    def known(self) -> str:
        """Return what the cookies tell whoever looks into them."""
        return "\n".join(text for cookie in self._cookies.values() for text in _read(cookie.value))


def _read(cookie: str) -> Iterator[str]:
    yield cookie
    for part in cookie.split("."):
        with contextlib.suppress(ValueError):
            yield base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode("latin-1")
