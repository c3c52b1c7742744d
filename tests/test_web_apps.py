"""The web applications in examples/, preloaded by gunicorn, over real HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browsers import CHROMIUM, Chromium, HttpBrowser
from scripts.process import Script

from fluxbase_aichat.devserver import DevServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="gunicorn needs fork")

# Gunicorn leaves its listener to the end of the process.
STRICT = ("-W", "error", "-W", "ignore::ResourceWarning")
ROOT = Path(__file__).parent.parent
QUESTION = "Show me the top 3 users by order count"
SIGN_IN = "You are not signed in, or not any more. Please sign in."
DOWN = "The chat server cannot be reached. Please try again later."


class Site:
    """An application under gunicorn, and the dev server that it asks."""

    def __init__(self, server: DevServer, script: Script) -> None:
        self.server = server
        self._script = script
        self.port = int(script.line())

    def browser(self, name: str = "ann") -> HttpBrowser:
        """Return a browser whose user has signed in."""
        browser = HttpBrowser(self.port)
        browser.sign_in(name)
        return browser

    def end(self) -> str:
        """End it, and return its log."""
        self._script.terminate()
        status, out, err = self._script.end()
        assert (0, "") == (status, out)
        return err


Open = Callable[..., Site]


@pytest.fixture(params=["flask_app", "django_app"])
def name(request) -> str:
    """Be the name of an example."""
    pytest.importorskip(request.param.removesuffix("_app"))
    return request.param


@pytest.fixture
def opened(name, tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_site(worker: str, **variables: str) -> Site:
            server = stack.enter_context(DevServer())
            settings = {
                "FLUXBASE_URL": server.ws_url,
                "CHAT_SECRET_KEY": "a key for tests",
                "CHAT_DATA": str(tmp_path),
            }
            chosen = [f"{key}={value}" for key, value in (settings | variables).items()]
            script = Script("web_app.py", name, worker, *chosen, options=STRICT)
            return Site(server, stack.enter_context(script))

        yield open_site


@pytest.fixture
def alone(name) -> Iterator[subprocess.Popen[str]]:
    """Be the one command that the example's docstring has."""
    with subprocess.Popen(  # noqa: S603 - our own
        [sys.executable, "-W", "error", "-m", f"examples.{name}", "--port", "0"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_one_command_runs_it(alone) -> None:
    """With a dev server of its own; it says where it is and who can sign in, and Ctrl-C ends it."""
    assert alone.stdout is not None
    found = re.fullmatch(
        r"http://127.0.0.1:(\d+)/   sign in as (\w+)@example.com with \2-password\n",
        alone.stdout.readline(),
    )
    assert found
    browser = HttpBrowser(int(found[1]))
    browser.sign_in(found[2])
    assert text_of(browser.post("/ask", {"question": QUESTION}).events())
    with browser.get("/static/chat.js") as script:
        assert script.headers["Content-Type"].startswith("text/javascript")
    alone.send_signal(signal.SIGINT)
    assert ("", "", 0) == (*alone.communicate(), alone.returncode)


def test_missing_settings_are_named(name) -> None:
    """In one line, and with no traceback."""
    module = {"flask_app": "app import create_app; create_app()", "django_app": "wsgi import *"}
    ran = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", f"from examples.{name}.{module[name]}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CHAT_DATA": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    expected = "please set FLUXBASE_URL, CHAT_SECRET_KEY, CHAT_DATA\n"
    assert (1, "", expected) == (ran.returncode, ran.stdout, ran.stderr)


def text_of(events) -> str:
    """Return the text that has come."""
    return "".join(data["delta"] for kind, data in events if kind == "content")


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_a_conversation(opened: Open, worker: str) -> None:
    """Sign in, ask, see it stream, go on, load the history; the id of it all stays inside."""
    site = opened(worker)
    browser = site.browser()
    answer = browser.post("/ask", {"question": QUESTION})
    assert "text/event-stream; charset=utf-8" == answer.headers["Content-Type"]
    events = answer.events()
    assert "progress" == events[0][0]
    assert "done" == events[-1][0]
    (result,) = [data for kind, data in events if kind == "result"]
    assert (3, ["name", "orders", "revenue"]) == (len(result["rows"]), result["columns"])
    assert text_of(events).startswith("Let me count")
    more = browser.post("/ask", {"question": "say <b>More</b>"}).events()
    assert "<b>More</b>" == text_of(more)

    told = browser.get("/history").read().decode()
    history = browser.get("/history").json()
    assert "ann@example.com" == history["user"]
    assert [QUESTION, "say <b>More</b>"] == [
        message["content"] for message in history["messages"] if message["role"] == "user"
    ]
    (table,) = history["messages"][1]["results"]
    assert "34" == table["rows"][0]["orders"]

    (used,) = {
        sent.frame["conversation_id"]
        for sent in site.server.received
        if sent.frame["type"] == "message"
    }
    seen = f"{events}{more}{told}{browser.known()}"
    assert used not in seen
    assert "eyJhbGci" not in browser.known(), "a token is in a cookie"

    assert [] == HttpBrowser.get(site.browser("bob"), "/history").json()["messages"]
    with browser.post("/new", {}) as begun:
        assert 200 == begun.status
    assert [] == browser.get("/history").json()["messages"]
    browser.post("/sign-out", {}).close()
    assert SIGN_IN == browser.get("/history").json()["error"]
    assert "" == site.end()


@pytest.mark.parametrize(
    ("worker", "settings"),
    [
        ("sync", {"WORKERS": "2"}),
        ("gthread", {"WORKERS": "1", "CHAT_POOL_SIZE": "2", "CHAT_POOL_SECONDS": "5"}),
    ],
)
def test_stop_frees_its_worker(opened: Open, worker: str, settings: dict[str, str]) -> None:
    """With an answer in each worker or connection the next question waits until one is stopped."""
    site = opened(worker, **settings)
    browser = site.browser()
    first, second = [browser.post("/ask", {"question": "say One\npause 60"}) for _ in range(2)]
    first.until("One")
    second.until("One")
    assert 2 == site.server.running
    first.close()
    # A cancel does not stop the model (PROTOCOL 4.6), so it is seen by what is free again.
    assert "Two" == text_of(browser.post("/ask", {"question": "say Two"}).events())
    second.close()
    assert "Three" == text_of(browser.post("/ask", {"question": "say Three"}).events())
    assert "" == site.end()


def test_failures_are_one_line(opened: Open) -> None:
    """In the page and in the log; the next question finds everything in order."""
    site = opened("gthread", WORKERS="1")
    browser = site.browser()
    question = {"question": "say Hello"}
    site.server.faults.unauthorized = True
    answer = browser.post("/ask", question)
    assert (401, {"error": SIGN_IN}) == (answer.status, answer.json())
    site.server.faults.set(unauthorized=False, status=429, retry_after=30)
    answer = browser.post("/ask", question)
    assert (429, "30") == (answer.status, answer.headers["Retry-After"])
    assert "That was too much at once. Please come back in 30 seconds." == answer.json()["error"]
    site.server.faults.clear()
    site.server.kill()
    for refused in (browser.post("/ask", question), HttpBrowser(site.port).post("/sign-in", BOB)):
        assert (503, {"error": DOWN}) == (refused.status, refused.json())
    site.server.start()
    assert "Hello" == text_of(browser.post("/ask", question).events())
    kind, data = browser.post("/ask", {"question": "say One\ncut"}).events()[-1]
    assert ("error", "CONNECTION_LOST") == (kind, data["code"])
    log = site.end().rstrip("\n").split("\n")
    kinds = ["AuthenticationError", "RateLimitError", "ConnectError", "ConnectError"]
    assert len(kinds) == len(log), log
    for line, expected, path in zip(log, kinds, ["ask", "ask", "ask", "sign-in"], strict=True):
        assert f"POST /{path}: {expected}: " in line


BOB = {"email": "bob@example.com", "password": "bob-password"}


def test_a_server_that_hangs_hangs_no_worker(opened: Open) -> None:
    """Its one worker gives up in time, whatever it has asked for, and serves the next."""
    site = opened("sync", WORKERS="1", CHAT_SECONDS="1")
    browser = site.browser()
    site.server.faults.stall = "handshake"
    for path, body in (("/ask", {"question": "say Hello"}), ("/sign-in", BOB)):
        answer = browser.post(path, body)
        assert (503, {"error": DOWN}) == (answer.status, answer.json())
    site.server.faults.clear()
    assert "Hello" == text_of(browser.post("/ask", {"question": "say Hello"}).events())
    log = site.end().rstrip("\n").split("\n")
    assert ["ask: ConnectTimeoutError", "sign-in: ConnectTimeoutError"] == [
        line.partition("POST /")[2].partition("Error: ")[0] + "Error" for line in log
    ], log


def test_a_full_pool_says_so(opened: Open) -> None:
    """A request waits no longer than it may, and its worker serves the next."""
    site = opened("gthread", WORKERS="1", CHAT_POOL_SIZE="1", CHAT_POOL_SECONDS="0.05")
    browser = site.browser()
    busy = browser.post("/ask", {"question": "say One\npause 60"})
    busy.until("One")
    answer = browser.post("/ask", {"question": "say Two"})
    assert (503, "5") == (answer.status, answer.headers["Retry-After"])
    expected = "All connections are busy. Please try again in a moment."
    assert expected == answer.json()["error"]
    with browser.get("/history") as other:
        assert 200 == other.status
    busy.close()
    assert "PoolTimeoutError: no connection came free within 0.05 s" in site.end()


def test_bad_input_is_refused(opened: Open) -> None:
    """Each with a status and one line; nothing of it reaches the chat."""
    site = opened("sync", WORKERS="1")
    browser = HttpBrowser(site.port)
    for path in ("/ask", "/new"):
        with browser.post(path, {"question": "Hi"}) as answer:
            assert 401 == answer.status
    wrong = browser.post("/sign-in", BOB | {"password": "guessed"})
    expected = "The e-mail address or the password is not right."
    assert (400, {"error": expected}) == (wrong.status, wrong.json())
    browser.sign_in()
    for body, expected in (
        (b"", "The request is no JSON object."),
        (b"[1]", "The request is no JSON object."),
        (b"\xff", "The request is no JSON object."),
        (b"[" * 60_000, "The request is no JSON object."),
        (b"{}", "Please give a question."),
        (b'{"question": 1}', "Please give a question."),
        (b'{"question": " "}', "Please give a question."),
        (b'{"question": "\\ud800"}', "The question is no text."),
        (b'{"question": "%s"}' % (b"x" * 4001), "The question is longer than 4000 characters."),
    ):
        answer = browser.request("POST", "/ask", body)
        assert (400, {"error": expected}) == (answer.status, answer.json())
    for method, path, body, status in (
        ("GET", "/ask", b"", {405}),
        ("GET", "/nothing", b"", {404}),
        ("GET", "/static/../app.py", b"", {400, 404}),
        ("POST", "/ask", b"x" * 70_000, {400, 413}),
    ):
        with browser.request(method, path, body) as answer:
            assert answer.status in status
    # What another site can send with the cookie: a form, and no token of ours.
    stranger = {"Content-Type": "text/plain", "X-CSRFToken": "-"}
    with browser.request("POST", "/new", b"{}", **stranger) as answer:
        assert answer.status in {400, 403}
    assert "script-src 'self'" in browser.headers["Content-Security-Policy"]
    assert [] == site.server.received
    assert "" == site.end()


LAST = "document.querySelector('.answer:last-child')"
READY = "document.body.dataset.state === 'ready'"


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_in_a_browser(opened: Open, tmp_path: Path) -> None:
    """Sign in, type, watch it stream, stop, see what is no HTML, load again, see the history."""
    site = opened("gthread")
    with Chromium(tmp_path / "profile") as browser:
        browser.open(f"http://127.0.0.1:{site.port}/")
        browser.until("document.body.dataset.state === 'signed-out'")
        assert [SIGN_IN] == browser.texts("#notice")
        browser.type("#email", "ann@example.com")
        browser.type("#password", "guessed\n")
        browser.until("document.getElementById('notice').textContent.includes('not right')")
        browser.type("#password", "ann-password\n")
        browser.until(READY)

        browser.type("#question", f"{QUESTION}\n")
        browser.until(f"{READY} && {LAST}")
        assert ["Calm Heron", "34", "4076.6"] == browser.texts("tbody tr:first-child td")
        assert ["3 rows", ""] == browser.texts(".progress, caption")

        assert ["Calm Heron"] == browser.texts(".text strong")

        # It stops after some words, as a model that thinks does.
        site.server.faults.set(stall="turn", after=6)
        browser.type("#question", "Who are the top 5 users by revenue?\n")
        browser.until("document.querySelector('.answer ~ .answer .text')?.textContent")
        assert "streaming" == browser.evaluate("document.body.dataset.state")
        assert "" != browser.texts(".answer:last-child .progress")[0]
        browser.click("#stop")
        browser.until(READY)
        assert ["Stopped."] == browser.texts(".answer:last-child .progress")
        site.server.faults.clear()

        mean = "say <img src=x onerror=document.title='hit'>"
        browser.type("#question", f"{mean}\n")
        browser.until(f"{READY} && document.querySelectorAll('.answer').length === 3")
        assert [mean.removeprefix("say ")] == browser.texts(".answer:last-child .text")

        browser.reload()
        browser.until(READY)
        assert {QUESTION, mean} <= set(browser.texts(".question"))
        assert ["Calm Heron", "34", "4076.6"] == browser.texts(".answer td")[:3]
        assert mean.removeprefix("say ") in browser.texts(".text")
        assert "Calm Heron" in browser.texts(".text strong")
        assert [0, "Ask the data"] == browser.evaluate("[document.images.length, document.title]")
        shown = browser.evaluate("document.documentElement.outerHTML + document.cookie")
        ids = {sent.frame.get("conversation_id") for sent in site.server.received} - {None}
        assert ids
        assert not [known for known in ids if known in shown]


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_failures_in_a_browser(opened: Open, tmp_path: Path) -> None:
    """Each is one line, and the page goes on: 429, 401, a server that is down, and up again."""
    site = opened("gthread")
    with Chromium(tmp_path / "profile") as browser:

        def sign_in() -> None:
            browser.evaluate("document.getElementById('email').value = ''")
            browser.type("#email", "ann@example.com")
            browser.type("#password", "ann-password\n")
            browser.until(READY)

        def ask(notice: str, state: str = "ready") -> None:
            browser.evaluate("document.getElementById('question').value = ''")
            browser.type("#question", "say Hello\n")
            browser.until(
                f"document.body.dataset.state === '{state}' && "
                f"document.getElementById('notice').textContent.includes('{notice}')"
            )

        browser.open(f"http://127.0.0.1:{site.port}/")
        browser.until("document.body.dataset.state === 'signed-out'")
        sign_in()
        site.server.faults.set(status=429, retry_after=900)
        ask("come back in 15 minutes")
        site.server.faults.clear()
        site.server.kill()
        ask(DOWN)
        site.server.start()
        site.server.faults.unauthorized = True
        ask(SIGN_IN, "signed-out")
        site.server.faults.clear()
        sign_in()
        ask("")
        browser.until("document.querySelector('.text')?.textContent === 'Hello'")
