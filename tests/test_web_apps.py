"""The web applications in examples/, preloaded by gunicorn, over real HTTP."""

from __future__ import annotations

import copy
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from browsers import CHROMIUM, Chromium, HttpBrowser
from scripts.process import Script
from servers import WAIT

from fluxbase_aichat import ApiError, ConnectTimeoutError
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.devserver._auth import Auth, BadTokenError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="gunicorn needs fork")

# Gunicorn leaves its listener to the end of the process.
STRICT = ("-W", "error", "-W", "ignore::ResourceWarning")
ROOT = Path(__file__).parent.parent
QUESTION = "Show me the top 3 users by order count"
SIGN_IN = "You are not signed in, or not any more. Please sign in."
DOWN = "The chat server cannot be reached. Please try again later."


class Site:
    """An application under gunicorn, and the dev server that it asks."""

    def __init__(self, server: DevServer, data: Path, script: Script) -> None:
        self.server = server
        self.data = data
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
            return Site(server, tmp_path, stack.enter_context(script))

        yield open_site


@pytest.fixture
def alone(name, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Be the one command that the example's docstring has."""
    with subprocess.Popen(  # noqa: S603 - our own
        [sys.executable, "-W", "error", "-m", f"examples.{name}", "--port", "0"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_one_command_runs_it(alone, tmp_path: Path, end: signal.Signals) -> None:
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
    assert [*tmp_path.rglob("sessions.db")]
    alone.send_signal(end)
    assert ("", "", 0) == (*alone.communicate(), alone.returncode)
    assert [] == [*tmp_path.iterdir()], "tokens are left behind"


def refused(*command: str, **variables: str) -> str:
    """Return the one line with which a command ends."""
    ran = subprocess.run(  # noqa: S603 - our own
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (1, "", 1) == (ran.returncode, ran.stdout, ran.stderr.count("\n")), ran.stderr
    return ran.stderr.strip()


def test_missing_settings_are_named(name) -> None:
    """In one line, and with no traceback."""
    module = {"flask_app": "app import create_app; create_app()", "django_app": "wsgi import *"}
    told = refused("-c", f"from examples.{name}.{module[name]}", CHAT_DATA="")
    assert "please set FLUXBASE_URL, CHAT_SECRET_KEY, CHAT_DATA" == told


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CHAT_POOL_SIZE", "many", "CHAT_POOL_SIZE must be a number, not 'many'"),
        ("CHAT_POOL_SIZE", "0", "size must be"),
        ("FLUXBASE_URL", "example.com", "must begin with ws://"),
        ("FLUXBASE_URL", "ws://192.0.2.1", "unencrypted"),
    ],
)
def test_wrong_settings_are_told_at_the_start(name, variable, value, said) -> None:
    """In one line too, and not at the first request."""
    settings = {"FLUXBASE_URL": "ws://127.0.0.1:9", variable: value}
    assert said in refused("-m", f"examples.{name}", "--port", "0", **settings)


def test_a_port_that_is_taken_is_one_line(name) -> None:
    """It says what else there is."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused("-m", f"examples.{name}", "--port", str(port))
    assert told.startswith(f"cannot listen on port {port}: ")
    assert "--port 0" in told


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
    told = site.end().rstrip("\n").split("\n")
    expected = [
        "POST /ask: AuthenticationError: ",
        "POST /ask: RateLimitError: ",
        "POST /ask: ConnectError: ",
        "POST /sign-in: ConnectError: ",
        "an answer: ConnectionLostError: ",
    ]
    assert len(expected) == len(told), told
    for text, line in zip(expected, told, strict=True):
        assert text in line


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
    told = site.end().rstrip("\n").split("\n")
    assert ["ask: ConnectTimeoutError", "sign-in: ConnectTimeoutError"] == [
        line.partition("POST /")[2].partition("Error: ")[0] + "Error" for line in told
    ], told


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


class Tokens:
    """Has the dev server's tokens expire, and its refresh tokens be good for one use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refreshed: list[str] = []
        self._issued: set[str] = set()
        self._expired: set[str] = set()
        self._together = threading.Barrier(1)
        make, check = Auth.tokens, Auth.user_of

        def tokens(auth, user):
            made = make(auth, user)
            self._issued.add(made["access_token"])
            return made

        def user_of(auth, token, kind="access"):
            if kind == "refresh":
                bad = token in self.refreshed
                self.refreshed.append(token)
            elif bad := token in self._expired:
                self._together.wait(WAIT)
            if bad:
                raise BadTokenError("Invalid or expired Bearer token")
            return check(auth, token, kind)

        monkeypatch.setattr(Auth, "tokens", tokens)
        monkeypatch.setattr(Auth, "user_of", user_of)

    def expire(self, together: int) -> None:
        """End those that were issued; so many requests are refused at the same moment."""
        self._expired |= self._issued
        self._together = threading.Barrier(together)


@pytest.mark.parametrize(
    ("worker", "settings"), [("sync", {"WORKERS": "2"}), ("gthread", {"WORKERS": "1"})]
)
def test_an_expired_token_is_renewed(
    opened: Open, worker: str, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, also when two workers find it expired; when it cannot be, the page asks to sign in."""
    tokens = Tokens(monkeypatch)
    site = opened(worker, **settings)
    browser = site.browser()
    with ThreadPoolExecutor(2) as threads:
        for times in (1, 2):
            tokens.expire(together=2)
            both = [threads.submit(browser.get, "/history") for _ in range(2)]
            assert [200, 200] == [answer.result().status for answer in both]
            for answer in both:
                answer.result().close()
            assert times == len(tokens.refreshed)
    tokens.expire(together=1)
    assert "Hello" == text_of(browser.post("/ask", {"question": "say Hello"}).events())
    assert 3 == len(tokens.refreshed) == len(set(tokens.refreshed))

    tokens.expire(together=1)
    with closing(sqlite3.connect(site.data / "sessions.db")) as database, database:
        database.execute("UPDATE sessions SET refresh_token = ?", tokens.refreshed[:1])
    assert SIGN_IN == browser.get("/history").json()["error"]
    browser.sign_in()
    browser.get("/history").close()
    assert ["AuthenticationError"] == re.findall(r"\w+Error", site.end())


def test_past_conversations(opened: Open) -> None:
    """They are listed without their ids, opened again, and gone on with; nobody else's are."""
    site = opened("gthread", WORKERS="1")
    browser = site.browser()
    for question in ("say One", "say Two"):
        browser.post("/new", {}).close()
        browser.post("/ask", {"question": question}).read()
    told = browser.get("/history").read().decode()
    second, first = browser.get("/history").json()["conversations"]
    assert ("say Two", True, "say One", False) == (
        *(second["title"], second["current"]),
        *(first["title"], first["current"]),
    )
    browser.post("/open", {"conversation": first["handle"]}).close()
    browser.post("/ask", {"question": "say Three"}).read()
    history = browser.get("/history").json()
    contents = [message["content"] for message in history["messages"]]
    assert ["say One", "One", "say Three", "Three"] == contents

    sent = [frame.frame for frame in site.server.received if frame.frame["type"] == "message"]
    one, two, three = (frame["conversation_id"] for frame in sent)
    assert one == three != two
    assert not [known for known in (one, two) if known in f"{told}{history}"]

    # A handle is of use to the session that got it alone, and an id to nobody.
    bob, elsewhere = site.browser("bob"), site.browser()
    assert 2 == len(elsewhere.get("/history").json()["conversations"])
    assert [] == bob.get("/history").json()["conversations"]
    for other in (bob, elsewhere, browser):
        for handle in (one, "\N{SNOWMAN}", *([first["handle"]] if other is not browser else [])):
            refused = other.post("/open", {"conversation": handle})
            expected = {"error": "There is no such conversation."}
            assert (400, expected) == (refused.status, refused.json())
    assert [] == bob.get("/history").json()["messages"]
    assert "" == site.end()


def test_a_session_ends(opened: Open) -> None:
    """After a day, when another begins in its browser, and for whoever has its old cookie."""
    site = opened("sync", WORKERS="1")
    browser, copied = site.browser(), HttpBrowser(site.port)
    copied.cookies = copy.deepcopy(browser.cookies)
    with copied.get("/history") as answer:
        assert 200 == answer.status
    browser.sign_in()
    assert SIGN_IN == copied.get("/history").json()["error"]
    copied.cookies = copy.deepcopy(browser.cookies)
    browser.post("/sign-out", {}).close()
    assert SIGN_IN == copied.get("/history").json()["error"]
    browser.sign_in()
    with closing(sqlite3.connect(site.data / "sessions.db")) as database, database:
        database.execute("UPDATE sessions SET since = datetime('now', '-2 days')")
    assert SIGN_IN == browser.get("/history").json()["error"]
    assert "" == site.end()


def test_behind_tls(opened: Open, name: str) -> None:
    """Cookies are for TLS and for this host alone; other hosts' names and pages are refused."""
    site = opened("sync", WORKERS="1", CHAT_HTTPS="1", CHAT_HOSTS="chat.example,127.0.0.1")
    browser = HttpBrowser(site.port)
    ours = {"Host": "chat.example", "Origin": "https://chat.example"}
    ours["Referer"] = "https://chat.example/"
    with browser.post("/sign-in", BOB, **ours) as answer:
        assert 200 == answer.status
    (cookie,) = [line for line in browser.set_cookies if line.startswith("__Host-session=")]
    assert {"secure", "httponly", "path=/", "samesite=lax"} <= set(cookie.lower().split("; "))
    assert not [line for line in browser.set_cookies if "secure" not in line.lower()]
    with browser.get("/history") as answer:
        assert 200 == answer.status
    with browser.request("GET", "/", Host="evil.example") as answer:
        assert 400 == answer.status
    if name == "django_app":  # Flask's takes JSON alone, for which a browser asks beforehand
        with browser.post("/new", {}, **ours | {"Origin": "https://evil.example"}) as answer:
            assert 403 == answer.status


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module of what both applications share."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: import_module(f"examples.chat_page.{name}")


def test_secrets_stay_where_they_are(part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file that is its owner's, and not in what a debugger or a log shows."""
    tmp_path.chmod(0o755)
    monkeypatch.setenv("FLUXBASE_URL", "ws://127.0.0.1:1")
    monkeypatch.setenv("CHAT_SECRET_KEY", "hidden-key")
    monkeypatch.setenv("CHAT_DATA", str(tmp_path))
    sessions = part("sessions").Sessions(tmp_path)
    key = sessions.begin("ann@example.com", "hidden-token", "hidden-refresh")
    sessions.go_on(key, "hidden-id")
    assert "hidden" not in f"{sessions.get(key)}{part('settings').Settings.from_env()}"
    with sessions.alone(key, 0):
        assert [0o600] == [path.stat().st_mode & 0o777 for path in tmp_path.glob("sessions.db")]


def test_a_renewal_waits_only_so_long(part, tmp_path: Path) -> None:
    """For another one of the same session; those of others go on."""
    sessions = part("sessions").Sessions(tmp_path)
    with sessions.alone("ann", 1):
        with sessions.alone("bob", 0):
            assert sessions.get("ann") is None
        with pytest.raises(ConnectTimeoutError, match="still renews"), sessions.alone("ann", 0):
            pass
    with sessions.alone("ann", 0):
        pass


def test_a_log_line_is_one_line(part, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is in the path, and whatever the server has said."""
    web = part("web")
    with caplog.at_level(logging.INFO, "chat"):
        web.log("POST /a\n[error] forged", web.BadInputError("red \x1b[31m \r\n text"))
    assert ["POST /a [error] forged: BadInputError: red [31m text"] == caplog.messages


@pytest.mark.parametrize(("status", "told"), [(502, 503), (503, 503), (504, 503), (500, 502)])
def test_a_proxy_before_a_server_that_is_down(part, status: int, told: int) -> None:
    """It answers in the server's place: for a person that is the same as nobody there."""
    found = part("web").problem(ApiError("get_conversation failed", status=status))
    assert (told, told == 503) == (found.status, found.message == DOWN)


LAST = "document.querySelector('.answer:last-child')"
READY = "document.body.dataset.state === 'ready'"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(tmp_path / "profile") as browser:
        yield browser


def arrive(page: Chromium, site: Site) -> None:
    page.open(f"http://127.0.0.1:{site.port}/")
    page.until("document.body.dataset.state === 'signed-out'")
    assert [SIGN_IN] == page.texts("#notice")


def sign_in(page: Chromium) -> None:
    page.evaluate("document.getElementById('email').value = ''")
    page.type("#email", "ann@example.com")
    page.type("#password", "ann-password\n")
    page.until(READY)


def ask(page: Chromium, question: str, number: int) -> None:
    """Type a question, and wait for the whole answer, which is the one of that number."""
    page.type("#question", f"{question}\n")
    page.until(f"{READY} && document.querySelectorAll('.answer').length === {number}")


# A browser has at most six connections to a host; each occupies a sync worker, also an idle one.
@needs_chromium
@pytest.mark.parametrize(("worker", "workers"), [("sync", "7"), ("gthread", "2")])
def test_in_a_browser(opened: Open, page: Chromium, worker: str, workers: str) -> None:
    """Sign in, type, watch it stream, stop, load again, see the history, go back to it."""
    site = opened(worker, WORKERS=workers)
    arrive(page, site)
    page.type("#email", "ann@example.com")
    page.type("#password", "guessed\n")
    page.until("document.getElementById('notice').textContent.includes('not right')")
    sign_in(page)

    ask(page, QUESTION, 1)
    assert ["Calm Heron", "34", "4076.6"] == page.texts("tbody tr:first-child td")
    assert ["3 rows", ""] == page.texts(".progress, caption")
    assert ["Calm Heron"] == page.texts(".text strong")

    # It stops after some words, as a model that thinks does.
    site.server.faults.set(stall="turn", after=6)
    stopped = "Who are the top 5 users by revenue?"
    page.type("#question", f"{stopped}\n")
    page.until("document.querySelector('.answer ~ .answer .text')?.textContent")
    assert "streaming" == page.evaluate("document.body.dataset.state")
    assert "" != page.texts(".answer:last-child .progress")[0]
    page.click("#stop")
    page.until(READY)
    assert "Stopped. The server may still" in page.texts(".answer:last-child .progress")[0]
    page.reload()
    page.until(READY)
    assert [QUESTION, stopped] == page.texts(".question")
    assert "No answer is kept: it was" in page.texts(".answer:last-child .progress")[0]
    site.server.faults.clear()

    page.click("#new")
    page.until(f"{READY} && !{LAST}")
    assert ["Conversations"] == page.texts("#past option:checked")
    ask(page, "say Hello", 1)
    page.reload()
    page.until(READY)
    assert ["say Hello"] == page.texts("#past option:checked")
    page.choose("#past", QUESTION)
    page.until(f"{READY} && document.querySelector('td')?.textContent === 'Calm Heron'")
    assert [QUESTION, stopped] == page.texts(".question")
    assert ["Calm Heron", "34", "4076.6"] == page.texts(".answer td")[:3]
    assert "Calm Heron" in page.texts(".text strong")

    shown = page.evaluate("document.documentElement.outerHTML + document.cookie")
    ids = {sent.frame.get("conversation_id") for sent in site.server.received} - {None}
    assert 2 == len(ids)
    assert not [known for known in ids if known in shown]

    page.leave("#sign-out")
    page.until("document.body.dataset.state === 'signed-out'")
    assert [] == page.texts(".question, .answer, #past option")
    assert [""] == page.texts("#who")


@needs_chromium
def test_a_failed_query_is_told_in_one_line(opened: Open, page: Chromium) -> None:
    """There is no table, whose width would break the sentence at each word."""
    site = opened("gthread")
    arrive(page, site)
    sign_in(page)
    ask(page, "How many orders were refunded?", 1)
    told = (
        "[...document.querySelectorAll('.answer *')]"
        ".find(e => !e.children.length && e.textContent === 'Query failed to execute')"
    )
    assert page.evaluate(f"{told}.getBoundingClientRect().height") < 30
    assert [] == page.texts("table")


@needs_chromium
def test_what_a_browser_shows(opened: Open, page: Chromium) -> None:
    """No HTML, all digits, and of a long table its beginning; loaded again it is the same."""
    site = opened("gthread")
    arrive(page, site)
    sign_in(page)
    mean = "<img src=x onerror=document.title='hit'>"
    ask(page, f"say {mean}", 1)
    long = f'sql select u.name as "{mean}", 9007199254740993 as big from users u, orders o'  # noqa: S608
    ask(page, long, 2)
    for _ in range(2):
        assert [f"say {mean}", long] == page.texts(".question")
        assert mean in page.texts(".text")
        assert ["100 rows, of which these are the first 50"] == page.texts("caption")
        assert [mean, "big"] == page.texts("th")
        assert ["9007199254740993"] * 50 == page.texts("td:last-child")
        assert [0, "Ask the data"] == page.evaluate("[document.images.length, document.title]")
        page.reload()
        page.until(READY)
    assert [f"say {mean}"] == page.texts("#past option:checked")
    # And if the page's script had a mistake: the browser refuses.
    insert = "try { document.body.innerHTML = '<img>' } catch (error) { error.name }"
    assert "TypeError" == page.evaluate(insert)


@needs_chromium
def test_failures_in_a_browser(opened: Open, page: Chromium) -> None:
    """Each is one line, and the page goes on: 429, 401, a server that is down, and up again."""
    site = opened("gthread")

    def fails(notice: str, state: str = "ready") -> None:
        page.evaluate("document.getElementById('question').value = ''")
        page.type("#question", "say Hello\n")
        page.until(
            f"document.body.dataset.state === '{state}' && "
            f"document.getElementById('notice').textContent.includes('{notice}')"
        )

    arrive(page, site)
    sign_in(page)
    site.server.faults.set(status=429, retry_after=900)
    fails("come back in 15 minutes")
    site.server.faults.clear()
    site.server.kill()
    fails(DOWN)
    site.server.start()
    site.server.faults.unauthorized = True
    fails(SIGN_IN, "signed-out")
    site.server.faults.clear()
    sign_in(page)
    page.evaluate("document.getElementById('question').value = ''")
    ask(page, "say Hello", 1)
    assert ["Hello"] == page.texts(".text")
