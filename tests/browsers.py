"""Browsers for the tests of the web applications: one that only knows HTTP, and a real one."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.cookies
import itertools
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import websocket
from servers import WAIT

__all__ = ["CHROMIUM", "Answer", "Chromium", "HttpBrowser"]

CHROMIUM: Final = shutil.which("chromium")
"""Where Debian's package puts it; `None` where it is not installed."""

_PATIENCE: Final = 20.0
"""Seconds for one command: starting takes a browser some seconds where all cores are busy."""


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
        self.cookies: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
        self.set_cookies: list[str] = []
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
        sent["Cookie"] = "; ".join(f"{c.key}={c.coded_value}" for c in self.cookies.values())
        if "csrftoken" in self.cookies:
            sent["X-CSRFToken"] = self.cookies["csrftoken"].value
        sent |= headers
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT)
        connection.request(method, path, body, sent)
        answer = Answer(connection)
        for line in answer.headers.get_all("Set-Cookie", []):
            self.cookies.load(line)
            self.set_cookies.append(line)
        return answer

    def sign_in(self, name: str = "ann") -> None:
        """Sign in as one of the dev server's users."""
        body = {"email": f"{name}@example.com", "password": f"{name}-password"}
        with self.post("/sign-in", body) as answer:
            assert 200 == answer.status

    def known(self) -> str:
        """Return what the cookies tell whoever looks into them."""
        return "\n".join(text for cookie in self.cookies.values() for text in _read(cookie.value))


def _read(cookie: str) -> Iterator[str]:
    yield cookie
    for part in cookie.split("."):
        with contextlib.suppress(ValueError):
            yield base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode("latin-1")


class Chromium:
    """A headless Chromium with one page, driven over the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        self._process = subprocess.Popen(  # noqa: S603 - it is Debian's
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "--window-size=880,640",
                "--disable-background-networking",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--no-first-run",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        log = self._process.stderr
        says = "DevTools listening on "
        url = next((line for line in log if line.startswith(says)), says).removeprefix(says)
        # What it says later must not fill the pipe.
        self._drain = threading.Thread(target=log.read)
        self._drain.start()
        self._numbers = itertools.count(1)
        self._events: list[str] = []
        self._session: dict[str, str] = {}
        try:
            # With an Origin it would take us for a page.
            self._socket = websocket.create_connection(
                url.strip(), timeout=_PATIENCE, suppress_origin=True
            )
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = {"sessionId": attached["sessionId"]}
            self.call("Page.enable")
        except BaseException:
            self._kill()
            raise

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        call = {"id": number, "method": method, "params": parameters} | self._session
        self._socket.send(json.dumps(call))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._events.append(message.get("method", ""))

    def open(self, url: str) -> None:
        """Load a page."""
        self._load("Page.navigate", url=url)

    def reload(self) -> None:
        """Load it again."""
        self._load("Page.reload")

    def _load(self, method: str, **parameters: Any) -> None:
        self._events.clear()
        self.call(method, **parameters)
        self._loaded()

    def leave(self, selector: str) -> None:
        """Press what has a page loaded."""
        self._events.clear()
        self.click(selector)
        self._loaded()

    def _loaded(self) -> None:
        while "Page.loadEventFired" not in self._events:
            self._events.append(json.loads(self._socket.recv()).get("method", ""))

    def evaluate(self, expression: str) -> Any:
        """Return the value of JavaScript, or what its promise gives."""
        told = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until it holds, asking again whenever the page changes."""
        self.evaluate(
            f"""new Promise((resolve) => {{
                const look = () => {{
                    if (!({condition})) return;
                    observer.disconnect();
                    resolve();
                }};
                const observer = new MutationObserver(look);
                observer.observe(document, {{
                    subtree: true, childList: true, characterData: true, attributes: true
                }});
                look();
            }})"""
        )

    def click(self, selector: str) -> None:
        """Press the mouse where an element is."""
        box = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        at = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def type(self, selector: str, text: str) -> None:
        """Type into a field, and press Enter for a text that ends with a line end."""
        self.click(selector)
        self.call("Input.insertText", text=text.rstrip("\n"))
        if text.endswith("\n"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self.call("Input.dispatchKeyEvent", type="keyDown", **key)
            self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def choose(self, selector: str, text: str) -> None:
        """Choose the option of a list that has this text."""
        self.evaluate(
            f"((list) => {{ list.selectedIndex = [...list.options].findIndex("
            f"(option) => option.text === {json.dumps(text)});"
            f"list.dispatchEvent(new Event('change')) }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def texts(self, selector: str) -> list[str]:
        """Return what these elements say."""
        return self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"
        )

    def picture(self) -> bytes:
        """Return a PNG of the page."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = {}
            self.call("Browser.close")  # its processes end, and let go of the profile
            self._process.wait(_PATIENCE)
        finally:
            self._socket.close()
            self._kill()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._drain.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
