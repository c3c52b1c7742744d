"""`bots`, `history`, `login`, `doctor` and `completion`: all that is no talk."""

# ruff: noqa: F401, F811 - fixtures are imported by name

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import errno
import io
import json
import socket
import ssl
import stat
import threading
from pathlib import Path

import helpers
import pytest
import trustme
from click.testing import CliRunner, Result
from commands import ESCAPE, Process, failure, home, interruptible, invoke, run, server
from proxies import Tunnel
from servers import WAIT, Gate, Peer, RawServer, refusing_port

from fluxbase_aichat import ConnectError, FluxbaseAI, FluxbaseAIChat, ProviderError
from fluxbase_aichat.cli import _files, _logins
from fluxbase_aichat.cli._app import app
from fluxbase_aichat.cli._errors import advice_of
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.stored import Chatbot

STEPS = ["name", "TCP", "TLS", "upgrade", "credentials", "feature", "chatbots", "round trip"]


def talk(server: DevServer, *texts: str) -> str:
    """Hold a conversation that is stored; return its id."""
    with FluxbaseAIChat(server.ws_url, server.token()) as chat:
        conversation = chat.conversation("keeper")
        for text in texts:
            conversation.ask(text)
        return conversation.start()


# -- bots -------------------------------------------------------------------------------------


def test_bots_are_listed(server) -> None:
    """As a table, as JSON and as CSV; nobody has to sign in."""
    result = invoke(server, "bots", token=None)
    assert result.exception is None
    assert (
        "sql-assistant   default     Answers questions about the shop with SQL\n" in result.stdout
    )
    assert "hidden" not in result.stdout
    values = json.loads(invoke(server, "bots", "--json").stdout)
    assert "sql-assistant" in [value["name"] for value in values]
    rows = list(csv.DictReader(io.StringIO(invoke(server, "bots", "--csv").stdout)))
    assert [value["id"] for value in values] == [row["id"] for row in rows]
    assert {"true"} == {row["enabled"] for row in rows}


def test_columns_that_are_none(server) -> None:
    """Some environments say 0; the list is shown all the same."""
    assert "name" in run("bots", FLUXBASE_URL=server.url, COLUMNS="0").stdout


def test_a_server_without_chatbots(server, monkeypatch) -> None:
    """It is said on stderr; the list is empty."""
    monkeypatch.setattr(FluxbaseAI, "list_chatbots", lambda _: [])
    result = invoke(server, "bots")
    assert "" == result.stdout
    assert "The server lists no chatbots" in result.stderr
    assert "[]\n" == invoke(server, "bots", "--json").stdout


def test_s08_escapes_in_lists_are_stripped(server, monkeypatch) -> None:
    """Names, descriptions, titles and messages are the server's text as well."""
    evil = f"{ESCAPE}]0;owned\x07{ESCAPE}[2Jtext\x9b31m"
    bot = Chatbot(name=evil, description=evil)
    monkeypatch.setattr(FluxbaseAI, "list_chatbots", lambda _: [bot])
    talked = talk(server, f"say {evil}")
    outputs = [
        invoke(server, command, *form).output
        for command in ("bots", "history", "doctor")
        for form in ((), ("--csv",), ("--json",))
    ]
    for output in (*outputs, *(invoke(server, "history", talked, *f).output
                               for f in ((), ("--csv",), ("--json",)))):  # fmt: skip
        assert "text" in output
        assert not {ESCAPE, "\x07", "\x9b"} & set(output)


# -- history ----------------------------------------------------------------------------------


def test_history_lists_and_shows(server) -> None:
    """The beginning of an id, as the list shows it, is enough to read a conversation."""
    first, last = talk(server, "say one", "How many users are there?"), talk(server, "say two")
    result = invoke(server, "history")
    header, _, *lines = result.stdout.splitlines()
    assert ["id", "updated", "chatbot", "messages", "about"] == header.split()
    assert [last[:8], first[:8]] == [line.split()[0] for line in lines]
    result = invoke(server, "history", first[:8])
    position = 0
    for part in ("say one", "one", "How many users", "SELECT", "There are 30 users"):
        position = result.stdout.index(part, position) + len(part)
    values = json.loads(invoke(server, "history", "--json", "-n", "1").stdout)
    assert [last] == [value["id"] for value in values]
    assert dt.datetime.fromisoformat(values[0]["updated_at"]).tzinfo is not None
    assert "T" in values[0]["updated_at"]
    rows = list(csv.DictReader(io.StringIO(invoke(server, "history", "--csv").stdout)))
    assert [last, first] == [row["id"] for row in rows]
    messages = json.loads(invoke(server, "history", first, "--json").stdout)["messages"]
    assert ["user", "assistant"] * 2 == [message["role"] for message in messages]
    assert [{"count": 30}] == messages[3]["query_results"][0]["data"]
    rows = list(csv.DictReader(io.StringIO(invoke(server, "history", first, "--csv").stdout)))
    assert "say one" == rows[0]["content"]


def test_history_leaves_out_the_empty(server) -> None:
    """Every start of a chat stores a conversation; `--all` shows these too."""
    empty = talk(server)
    assert "There are no stored conversations.\n" == invoke(server, "history").stderr
    assert empty[:8] in invoke(server, "history", "--all").stdout
    talk(server, "say one")
    result = invoke(server, "history", "--chatbot", "support")
    assert "There are no such conversations.\n" == result.stderr


def test_history_of_what_is_not_there(server) -> None:
    """Each is told; the anonymous hear how to sign in."""
    missing = "00000000-0000-4000-8000-000000000000"
    error = failure(invoke(server, "history", missing))
    assert "404" in str(error)
    assert "`history` lists them" == error.hint
    assert "begins with 'zz'" in str(failure(invoke(server, "history", "zz")))
    ran = run("history", FLUXBASE_URL=server.url)
    assert 4 == ran.returncode
    assert "set FLUXBASE_TOKEN, or sign in with `fluxbase-aichat login`" in ran.stderr
    assert "from_env" not in ran.stderr


@pytest.mark.parametrize("command", ["bots", "history"])
def test_a_server_of_another_kind(command) -> None:
    """Those who hear of a number only are told who knows more."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.refuse("404 Not Found", b"<html>nothing here</html>")

    with RawServer(script) as other:
        ran = run(command, FLUXBASE_URL=other.url)
    assert 1 == ran.returncode
    assert "failed: 404\nHint: `fluxbase-aichat doctor` finds out" in ran.stderr


def test_what_else_has_no_hint() -> None:
    """The doctor knows about connections; not about what a model says."""
    assert "doctor" in advice_of(ConnectError("no"))
    assert "port?" == advice_of(ConnectError("no", hint="port?"))
    assert "" == advice_of(ProviderError("no"))


# -- login ------------------------------------------------------------------------------------


def test_a_login_serves_the_other_commands(server, home) -> None:
    """The password is typed unseen and not kept; the file is its owner's alone."""
    url = {"FLUXBASE_URL": server.ws_url, "XDG_CONFIG_HOME": str(home / "config")}
    with Process("login", terminal=True, TERM="xterm", **url) as login:
        login.until("E-mail address: ")
        login.type("ann@example.com\r")
        login.until("Password: ")
        login.type("ann-password\r")
        code, rest = login.end()
    assert 0 == code
    assert f"Signed in at {server.url}/api/v1 as ann@example.com." in rest
    assert "ann-password" not in login.text
    file = home / "config" / "fluxbase-aichat" / "logins.json"
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert "ann-password" not in file.read_text()
    talked = talk(server, "say one")
    assert talked[:8] in invoke(server, "history", token=None).stdout
    # Of another server it knows nothing.
    with DevServer() as other:
        assert "401" in str(failure(invoke(other, "history", token=None)))
    assert "Forgot the login" in invoke(server, "login", "--forget", token=None).stderr
    assert "There was no login" in invoke(server, "login", "--forget", token=None).stderr
    assert "401" in str(failure(invoke(server, "history", token=None)))


def test_a_token_goes_before_a_login(server) -> None:
    """Who says who they are is that one."""
    assert 0 == invoke(server, "login", "ann@example.com", input="ann-password\n").exit_code
    talk(server, "say one")
    result = invoke(server, "history", token=server.token("bob"))
    assert "There are no stored conversations.\n" == result.stderr


def test_a_token_can_be_printed(server) -> None:
    """It is all that stands on stdout, and nothing is kept."""
    result = invoke(
        server, "login", "bob@example.com", "--print", env={"FLUXBASE_PASSWORD": "bob-password"}
    )
    assert 0 == FluxbaseAI(server.url, result.stdout.strip()).list_conversations().total
    assert not _logins.login_file().exists()


def test_a_kept_login_prints_a_token(server) -> None:
    """Nobody types a password again; what the server gave in its place is kept."""
    assert 0 == invoke(server, "login", "ann@example.com", input="ann-password\n").exit_code
    for _ in range(2):
        result = invoke(server, "login", "--print", token=None, input="")
        assert (0, "") == (result.exit_code, result.stderr)
        api = FluxbaseAI(server.url, result.stdout.strip())
        assert 0 == api.list_conversations().total
    assert "Forgot" in invoke(server, "login", "--forget").stderr
    assert 2 == invoke(server, "login", "--print", input="").exception.exit_code


def test_a_login_that_is_refused(server) -> None:
    """The other logins stay, and it is told what may be wrong."""
    _logins.save_login("https://other.example", "kept")
    error = failure(invoke(server, "login", "ann@example.com", input="wrong\n"))
    assert "are the e-mail address and the password right?" == error.hint
    assert {"https://other.example/api/v1": "kept"} == _logins._read()
    for typed in ("", b"\xff\n"):
        assert 2 == invoke(server, "login", "ann@example.com", input=typed).exception.exit_code


def test_a_login_that_has_expired(server) -> None:
    """Each command says what renews it."""
    _logins.save_login(server.url, "no token of this server")
    for command in ("history", "doctor"):
        ran = run(command, FLUXBASE_URL=server.url)
        assert 4 == ran.returncode
        assert "`fluxbase-aichat login` signs in again" in ran.stdout + ran.stderr


def test_nothing_is_lost_when_writing_is_interrupted(monkeypatch) -> None:
    """The old file is whole, and no half of a new one stays."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    _logins.save_login("https://one.example", "first")
    before = _logins.login_file().read_bytes()
    file = _logins.login_file()
    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _logins.save_login("https://two.example", "second")
    assert before == file.read_bytes()
    assert {file, file.with_suffix(".lock")} == set(file.parent.iterdir())


def test_logins_behind_a_link(home) -> None:
    """Who keeps their settings elsewhere finds them there."""
    file = _logins.login_file()
    file.parent.mkdir(parents=True)
    file.symlink_to(home / "kept")
    _logins.save_login("https://one.example", "first")
    assert {"https://one.example/api/v1": "first"} == json.loads((home / "kept").read_text())


class Rotating:
    """A server whose refresh tokens are good for one refresh."""

    def __init__(self) -> None:
        self.good = ["token 0"]
        self.gate = Gate()
        self.asked = threading.Event()

    def __call__(self, peer: Peer) -> None:
        """Refresh, once the gate is open."""
        peer.read_request()
        used = json.loads(peer.read_exactly(int(peer.headers["content-length"])))["refresh_token"]
        self.asked.set()
        self.gate.wait()
        if used != self.good[-1]:
            peer.refuse("401 Unauthorized", b'{"error": "used"}')
            return
        self.good.append(f"token {len(self.good)}")
        answer = {"access_token": "x", "refresh_token": self.good[-1], "expires_in": 900}
        peer.refuse("200 OK", json.dumps(answer).encode())


def test_two_commands_refresh_one_login() -> None:
    """The second waits for the first, and goes on with what that has kept."""
    service = Rotating()
    with RawServer(service) as other:
        _logins.save_login(other.url, "token 0")
        sources = [_logins.saved_login(other.url, {}) for _ in range(2)]
        first = helpers.run(sources[0])
        assert service.asked.wait(WAIT)
        second = helpers.run(sources[1])
        service.gate.open()
        assert ["x", "x"] == [first.result(), second.result()]
        assert "x" == sources[0]()  # with the second's
    assert 4 == len(service.good)
    assert [service.good[-1]] == list(_logins._read().values())


def test_a_login_that_is_forgotten_meanwhile_stays_so() -> None:
    """A command that still runs goes on, and does not keep it anew."""
    service = Rotating()
    service.gate.open()
    with RawServer(service) as other:
        _logins.save_login(other.url, "token 0")
        source = _logins.saved_login(other.url, {})
        _logins.forget_login(other.url)
        assert "x" == source()
    assert {} == _logins._read()


def test_a_login_in_a_folder_that_cannot_be_written(monkeypatch) -> None:
    """It serves all the same."""
    service = Rotating()
    service.gate.open()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with RawServer(service) as other:
        _logins.save_login(other.url, "token 0")
        source = _logins.saved_login(other.url, {})
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            patch.setattr(_logins, "write_whole", full)
            assert "x" == source()
    assert ["token 0"] == list(_logins._read().values())


@pytest.mark.parametrize("content", ["", "[]", "{", '{"http://x": 1}'])
def test_a_file_of_logins_that_is_none(server, content) -> None:
    """It counts as empty."""
    file = _logins.login_file()
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert _logins.saved_login(server.url, {}) is None


def test_logins_that_cannot_be_written(server, home) -> None:
    """It is a line that names the file."""
    (home / "config").write_text("in the way")
    result = invoke(server, "login", "ann@example.com", input="ann-password\n")
    assert 1 == result.exception.exit_code
    assert f"cannot write {_logins.login_file()}" in result.exception.message


# -- doctor -----------------------------------------------------------------------------------


def findings(result: Result) -> dict[str, dict[str, str]]:
    """Return the findings of `doctor --json`, by the step."""
    values = json.loads(result.stdout)
    assert STEPS == [value["check"] for value in values]
    return {value["check"]: value for value in values}


def states(result: Result) -> list[str]:
    return [value["status"] for value in findings(result).values()]


def test_a_healthy_server(server) -> None:
    """Every step is a line, and the model is asked nothing."""
    result = invoke(server, "doctor", "sql-assistant")
    assert 0 == result.exit_code
    lines = result.stdout.splitlines()
    assert STEPS == [line[9:20].strip() for line in lines]
    assert ["skipped"] == [line[:7] for line in lines if not line.startswith("ok")]
    assert "sql-assistant answered in " in lines[-1]
    assert "message" not in [r.frame["type"] for r in server.received]
    assert ["ok"] * 2 + ["skipped"] + ["ok"] * 5 == states(invoke(server, "doctor", "--json"))
    rows = list(csv.DictReader(io.StringIO(invoke(server, "doctor", "--csv").stdout)))
    assert STEPS == [row["check"] for row in rows]


def test_a_name_that_nobody_knows(server, monkeypatch) -> None:
    """Nothing behind it is tried."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = invoke(server, "doctor", "--json", "--url", "wss://nobody.example")
    assert ["failed"] + ["skipped"] * 7 == states(result)
    name = findings(result)["name"]
    assert "nobody knows the host nobody.example: Name or service not known" == name["detail"]
    assert "is the host's name right" in name["advice"]
    assert 3 == result.return_value


def test_a_port_that_is_closed(server) -> None:
    """The advice is about the port."""
    with refusing_port() as port:
        result = invoke(server, "doctor", "--json", "--url", f"ws://127.0.0.1:{port}")
    assert ["ok", "failed"] + ["skipped"] * 6 == states(result)
    advice = findings(result)["TCP"]["advice"]
    assert "does the server run there, and is the port right?" == advice


def test_a_plain_port_that_is_asked_for_tls(server) -> None:
    """The advice is the other URL."""
    result = invoke(server, "doctor", "--json", "--url", server.ws_url.replace("ws:", "wss:"))
    assert ["ok", "ok", "failed"] + ["skipped"] * 5 == states(result)
    assert "Then the URL is ws://" in findings(result)["TLS"]["advice"]


@pytest.fixture
def elsewhere(monkeypatch) -> None:
    """Have the name chat.example lead to this machine."""
    getaddrinfo = socket.getaddrinfo

    def look_up(host: str, *args: object, **options: object) -> object:
        return getaddrinfo("127.0.0.1" if host == "chat.example" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture
def trusted(tmp_path) -> tuple[ssl.SSLContext, str]:
    """Return the certificate of chat.example and 127.0.0.1, and the file with its authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("chat.example", "127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return context, str(tmp_path / "ca.pem")


def refusing(peer: Peer) -> None:
    """Be a server that refuses the token."""
    peer.read_request()
    peer.refuse("401 Unauthorized", b'{"error": "expired"}')


def test_a_token_for_another_machine(server, elsewhere, trusted) -> None:
    """That the port is tried without TLS sends it nowhere, and is not mistaken for that."""
    with RawServer(refusing, context=trusted[0]) as other:
        url = f"wss://chat.example:{other.port}"
        result = invoke(server, "doctor", "--json", "--url", url, "--ca-file", trusted[1])
    assert ["ok"] * 4 + ["failed"] + ["skipped"] * 3 == states(result)
    with refusing_port() as port:
        url = f"wss://chat.example:{port}"
        result = invoke(server, "doctor", "--json", "--url", url)
    assert f"cannot connect to {url}/ai/ws: " in findings(result)["TCP"]["detail"]


def test_through_a_proxy(server, trusted) -> None:
    """It is asked for the name, and the line says that the way leads through it."""
    with RawServer(refusing, context=trusted[0]) as other:
        tunnel = Tunnel(other.port)
        with RawServer(tunnel.http) as proxy:
            way = ("--proxy", f"http://127.0.0.1:{proxy.port}", "--ca-file", trusted[1])
            result = invoke(server, "doctor", "--json", "--url", "wss://chat.example", *way)
    assert ["skipped"] + ["ok"] * 3 + ["failed"] + ["skipped"] * 3 == states(result)
    assert findings(result)["TCP"]["detail"].startswith("port 443 answers through the proxy")
    assert {("chat.example", 443)} == set(tunnel.targets)


def test_a_proxy_that_is_down(server) -> None:
    """The advice is about the proxy, not about the server."""
    with refusing_port() as port:
        way = ("--url", "wss://chat.example", "--proxy", f"http://127.0.0.1:{port}")
        result = invoke(server, "doctor", "--json", *way)
    assert ["skipped", "failed"] + ["skipped"] * 6 == states(result)
    tcp = findings(result)["TCP"]
    assert f"cannot connect to the proxy http://127.0.0.1:{port}" in tcp["detail"]
    assert tcp["advice"].startswith("is the proxy the right one")
    assert 3 == result.return_value


def test_a_proxy_that_refuses(server) -> None:
    """What it says of a password goes before the general advice."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.refuse("407 Proxy Authentication Required")

    with RawServer(script) as proxy:
        way = ("--url", "wss://chat.example", "--proxy", f"http://127.0.0.1:{proxy.port}")
        result = invoke(server, "doctor", "--json", *way)
    assert "put user:password@ into --proxy" in findings(result)["TCP"]["advice"]


def test_a_proxy_in_the_environment_that_is_none(server) -> None:
    """It is an error that says where it stands."""
    way = ("--url", "wss://chat.example", "--proxy", "env")
    error = failure(invoke(server, "doctor", *way, env={"https_proxy": "gopher://x"}))
    assert "in the environment: " in str(error)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_that_wants_no_colours(server, variables) -> None:
    """The doctor's marks are words as well."""
    settings = {"FLUXBASE_URL": server.url, "TERM": "xterm"} | variables
    with Process("doctor", terminal=True, **settings) as doctor:
        doctor.end()
    assert b"ok       name" in doctor._raw
    assert b"\x1b[3" not in doctor._raw


def test_a_narrow_terminal_gets_a_line_for_each_step(server) -> None:
    """It breaks them itself, and they can be copied whole."""
    with Process("doctor", terminal=True, COLUMNS="30", FLUXBASE_URL=server.url) as doctor:
        _, text = doctor.end()
    assert STEPS == [line[9:20].strip() for line in text.splitlines()]


def test_a_server_with_a_certificate(server, trusted) -> None:
    """It is trusted with its authority's file; without it the advice is to name that."""

    def script(peer: Peer) -> None:
        with contextlib.suppress(KeyError):  # a REST call, which it does not know
            peer.serve()

    context, file = trusted
    with RawServer(script, context=context) as other:
        url = ("doctor", "--json", "--url", other.url, "--timeout", "5")
        right = invoke(server, *url, "--ca-file", file, token=None)
        wrong = invoke(server, *url, token=None)
    assert ["ok"] * 4 == states(right)[:4]
    assert findings(right)["TLS"]["detail"].startswith("TLSv1.")
    assert ["ok", "ok", "failed"] + ["skipped"] * 5 == states(wrong)
    assert "use --ca-file for an own authority" == findings(wrong)["TLS"]["advice"]


def test_a_path_that_is_wrong(server) -> None:
    """It is the upgrade that fails."""
    result = invoke(server, "doctor", "--json", "--url", f"{server.url}/elsewhere")
    assert ["ok", "ok", "skipped", "failed"] + ["skipped"] * 4 == states(result)
    assert "Its chat is at /ai/ws" in findings(result)["upgrade"]["advice"]


def test_credentials_that_are_refused(server) -> None:
    """An expired token is told as such."""
    result = invoke(server, "doctor", "--json", token=server.token(expires_in=-60))
    assert ["ok", "ok", "skipped", "ok", "failed"] + ["skipped"] * 3 == states(result)
    assert "the token expired at " in findings(result)["credentials"]["advice"]


@pytest.mark.parametrize("feature", ["off-2026.1", "off-2026.3"])
def test_chat_that_is_switched_off(server, feature) -> None:
    """Both ways in which servers say so."""
    server.feature = feature
    result = invoke(server, "doctor", "--json")
    assert ["ok", "ok", "skipped", "ok", "skipped", "failed", "skipped", "skipped"] == (
        states(result)
    )
    assert "switched off" in findings(result)["feature"]["advice"]


def test_the_anonymous(server) -> None:
    """They can look, and are told why a chatbot does not answer."""
    result = invoke(server, "doctor", "support", "--json", token=None)
    assert "you are anonymous" in findings(result)["credentials"]["detail"]
    assert "ok" == findings(result)["round trip"]["status"]
    result = invoke(server, "doctor", "sql-assistant", "--json", token=None)
    assert "failed" == findings(result)["round trip"]["status"]


def test_a_chatbot_that_is_not_there(server) -> None:
    """The advice has the nearest name."""
    result = invoke(server, "doctor", "sql-asistant", "--json")
    trip = findings(result)["round trip"]
    assert ("failed", "did you mean sql-assistant?") == (trip["status"], trip["advice"])


def test_no_chatbot_at_all(server, monkeypatch) -> None:
    """One that is named is tried all the same."""
    monkeypatch.setattr(FluxbaseAI, "list_chatbots", lambda _: [])
    assert ["failed", "skipped"] == states(invoke(server, "doctor", "--json"))[-2:]
    assert ["failed", "ok"] == states(invoke(server, "doctor", "keeper", "--json"))[-2:]


@pytest.mark.parametrize(("code", "arguments"), [(0, ()), (1, ("nobody",)), (2, ("--url", "x:"))])
def test_the_doctors_exit_code(server, code, arguments) -> None:
    """That of `ask` for what is wrong."""
    ran = run("doctor", *arguments, FLUXBASE_URL=server.url, FLUXBASE_TOKEN=server.token())
    assert code == ran.returncode


# -- completion -------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_printed(shell) -> None:
    """For every shell that click knows."""
    result = CliRunner().invoke(app, ["completion", shell])
    assert 0 == result.exit_code
    assert "_FLUXBASE_AICHAT_COMPLETE" in result.stdout


def test_the_tab_key_knows_commands_and_chatbots(server) -> None:
    """The server's list, asked for without a token; without a server nothing."""

    def complete(words: str, url: str = server.url) -> list[str]:
        ran = run(
            _FLUXBASE_AICHAT_COMPLETE="bash_complete",
            COMP_WORDS=f"fluxbase-aichat {words}",
            COMP_CWORD=str(words.count(" ") + 1),
            FLUXBASE_URL=url,
            FLUXBASE_TOKEN=server.token(),
        )
        return ran.stdout.split()

    assert ["plain,doctor"] == complete("doc")
    assert ["plain,sql-assistant", "plain,support"] == complete("ask s")
    assert [] == complete("ask s", "")
    lists = [r for r in server.requests if r.target.endswith("/ai/chatbots")]
    assert lists
    assert not [r for r in lists if "authorization" in {name.lower() for name in r.headers}]
