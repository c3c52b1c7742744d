"""Bad input: what a caller can get wrong is named, before anything is sent."""

import socket
import ssl

import pytest

from fluxbase_aichat import (
    ConfigurationError,
    FluxbaseAIChat,
    Limits,
    LocalProtocolError,
    Timeouts,
    Turn,
)
from fluxbase_aichat.config import Settings, parse_endpoint

URL = "ws://localhost:8080/ai/ws"


@pytest.fixture
def nobody_calls(monkeypatch):
    """Make any use of the network an error."""

    def fail(*_args):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect_ex", fail)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://localhost:8080", "ws://localhost:8080/ai/ws"),
        ("http://localhost:8080/", "ws://localhost:8080/ai/ws"),
        ("https://example.com", "wss://example.com/ai/ws"),
        ("wss://example.com:443/other/", "wss://example.com/other/"),
        ("ws://[::1]:9000/ai/ws", "ws://[::1]:9000/ai/ws"),
        ("wss://bücher.example", "wss://xn--bcher-kva.example/ai/ws"),
        ("WSS://EXAMPLE.com", "wss://example.com/ai/ws"),
    ],
)
def test_urls(url, expected):
    """A URL is taken with any of the four schemes, and an empty path is the chat's."""
    assert expected == str(parse_endpoint(url))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://example.com", "must begin with ws://"),
        ("example.com", "must begin with ws://"),
        ("localhost:8080", "https://; use something like wss://example.com/ai/ws"),
        ("", "is empty"),
        (None, "not NoneType"),
        ("ws://", "no host"),
        ("ws://user:secret@example.com", "token="),
        ("ws://example.com/#part", "fragment"),
        ("ws://example.com:99999", "cannot be read"),
        ("ws://example.com:0", "port 0"),
        ("ws://example.com/a b", "percent-encoded"),
        ("ws://example.com/?q=\u00e9", "percent-encoded"),
        ("ws://exa mple.com", "host"),
        ("ws://[::1", "cannot be read"),
    ],
)
def test_bad_urls(url, says, nobody_calls):
    """A URL that cannot be meant is refused with what would be right; secrets are not quoted."""
    with pytest.raises(ConfigurationError, match="ws_url") as caught:
        FluxbaseAIChat(url)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"token": 5}, "token must be a str"),
        ({"service_key": ""}, "service_key is empty"),
        ({"token": "a", "service_key": "b"}, "not both"),
        ({"headers": {"X-A": "a\r\nb"}}, "headers['X-A']"),
        ({"headers": {"X-A": "\x00"}}, "headers['X-A']"),
        ({"headers": {"X A": "b"}}, "no HTTP field name"),
        ({"headers": {"Host": "b"}}, "must not set Host"),
        ({"headers": {"sec-websocket-key": "b"}}, "must not set sec-websocket-key"),
        ({"headers": [("a", "b")]}, "headers must be a mapping"),
        ({"headers": {"Authorization": "Bearer x"}, "token": "y"}, "Authorization"),
        ({"token_in_query": True}, "token_in_query needs a token"),
        ({"token_in_query": "yes", "token": "a"}, "token_in_query must be True or False"),
        ({"impersonate_user_id": ""}, "impersonate_user_id"),
        ({"reconnect_attempts": -1}, "reconnect_attempts"),
        ({"reconnect_attempts": 1.5}, "reconnect_attempts"),
        ({"reconnect_delay": 1000}, "were milliseconds meant (1)?"),
        ({"reconnect_delay": -1}, "reconnect_delay"),
        ({"reconnect_delay": None}, "reconnect_delay"),
        ({"timeouts": -1}, "timeouts"),
        ({"timeouts": "10"}, "timeouts must be a Timeouts"),
        ({"limits": 10}, "limits must be a Limits"),
        ({"ssl_context": True}, "ssl_context must be an ssl.SSLContext"),
        ({"allow_insecure": 1}, "allow_insecure"),
        ({"exact_numbers": None}, "exact_numbers"),
        ({"on_content": "print"}, "on_content must be callable"),
        ({"on_event": 5}, "on_event must be callable"),
        ({"on_done": lambda a, b, c: None}, "on_done is called with (usage, conversation_id)"),
        ({"on_done": lambda *, colour: None}, "keyword colour"),
    ],
)
def test_bad_options(options, says, nobody_calls):
    """Every option that cannot be meant is refused by name."""
    with pytest.raises(ConfigurationError) as caught:
        FluxbaseAIChat(URL, **options)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("onContent", "on_content"),
        ("onQueryResult", "on_query_result"),
        ("wsUrl", "ws_url"),
        ("reconnectAttempts", "reconnect_attempts"),
        ("on_contents", "on_content"),
        ("reconect_delay", "reconnect_delay"),
    ],
)
def test_misspelt_keywords(wrong, right):
    """A camelCase or misspelt keyword is answered with the right name."""
    with pytest.raises(ConfigurationError, match=f"did you mean {right}"):
        FluxbaseAIChat(URL, **{wrong: None})


@pytest.mark.parametrize("method", [Turn.result, Turn.wait, Turn.recover, FluxbaseAIChat.wait_idle])
def test_a_misspelt_timeout(method):
    """Whoever waits is told too, before the waiting."""
    with pytest.raises(ConfigurationError, match="no parameter timout: did you mean timeout"):
        method(None, timout=5)


def test_misspelt_keywords_of_methods(nobody_calls):
    """The methods answer a camelCase keyword too."""
    chat = FluxbaseAIChat(URL)
    with pytest.raises(ConfigurationError, match="did you mean conversation_id"):
        chat.start_chat("bot", conversationId="x")
    with pytest.raises(ConfigurationError, match="ask.. has no parameter colour: it takes"):
        chat.ask("bot", "hi", colour=1)


@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf"), True, "5"])
@pytest.mark.parametrize("name", ["connect", "start", "idle", "turn", "close"])
def test_bad_timeouts(name, value):
    """A limit is a positive number of seconds or None."""
    with pytest.raises(ConfigurationError, match=f"timeouts.{name}"):
        Timeouts(**{name: value})


@pytest.mark.parametrize("value", [0, -5, 1.5, True, "1"])
def test_bad_limits(value):
    """A limit is a positive number of bytes."""
    with pytest.raises(ConfigurationError, match="limits.turn_bytes"):
        Limits(turn_bytes=value)


@pytest.mark.parametrize(
    ("cls", "keyword", "meant"),
    [
        (Timeouts, "conect", "did you mean connect?"),
        (Timeouts, "idleTimeout", "it takes close, connect, idle, start, turn"),
        (Limits, "turnBytes", "did you mean turn_bytes?"),
    ],
)
def test_misspelt_parts_of_an_option(cls, keyword, meant):
    """They are told as the misspelt options of a client are."""
    with pytest.raises(ConfigurationError) as caught:
        cls(**{keyword: 5})
    assert f"{cls.__name__}() has no parameter {keyword}: {meant}" == str(caught.value)


def test_seconds_for_all_timeouts():
    """A number bounds the phases that a call waits for, and never makes closing longer."""
    assert (
        Timeouts(connect=1, start=1, idle=1, close=1) == Settings(endpoint=URL, timeouts=1).timeouts
    )
    assert Timeouts(connect=60, start=60, idle=60) == Settings(endpoint=URL, timeouts=60).timeouts


@pytest.mark.parametrize("page_context", [5, b"bytes", ["a"], ("a",)])
def test_a_page_context_that_is_none(page_context, nobody_calls):
    """What the page shows is a text or an object, by the server's version."""
    with pytest.raises(LocalProtocolError, match="page_context must be text or a dict, not "):
        FluxbaseAIChat(URL).ask("bot", "Hi", page_context=page_context)


@pytest.mark.parametrize("content", [None, 5, b"bytes", ["a"]])
def test_content_that_is_not_text(content, nobody_calls):
    """A message is text."""
    chat = FluxbaseAIChat(URL)
    with pytest.raises(ConfigurationError, match="content must be text"):
        chat.ask("bot", content)
    with pytest.raises(ConfigurationError, match="content must be text"):
        chat.conversation("bot").send(content)


@pytest.mark.parametrize("name", ["", "  ", None, 5, "\ud800"])
def test_bad_names(name, nobody_calls):
    """A chatbot's name is text with something in it, and so are the other names."""
    chat = FluxbaseAIChat(URL)
    with pytest.raises(ConfigurationError, match="chatbot"):
        chat.start_chat(name)
    if name is not None:
        with pytest.raises(ConfigurationError, match="namespace"):
            chat.start_chat("bot", name)
        with pytest.raises(ConfigurationError, match="conversation_id"):
            chat.start_chat("bot", conversation_id=name)
        with pytest.raises(ConfigurationError, match="impersonate_user_id"):
            chat.start_chat("bot", impersonate_user_id=name)


@pytest.mark.parametrize("name", ["never-started", None, ["no id"]])
def test_an_unknown_conversation(name, nobody_calls):
    """A conversation that this client never started is refused by name; asking about it is fine."""
    chat = FluxbaseAIChat(URL)
    with pytest.raises(LocalProtocolError, match="conversation_id"):
        chat.send_message(name, "hello")
    assert chat.get_accumulated_content(name) == ""
    chat.cancel(name)


@pytest.mark.parametrize("timeout", [-1, "5", True, float("nan")])
def test_bad_call_timeouts(timeout, nobody_calls):
    """A call's own timeout is checked like the others."""
    chat = FluxbaseAIChat(URL)
    for call in (
        lambda: chat.connect(timeout=timeout),
        lambda: chat.disconnect(timeout=timeout),
        lambda: chat.start_chat("bot", timeout=timeout),
        lambda: chat.ask("bot", "hi", timeout=timeout),
        lambda: chat.conversation("bot").start(timeout=timeout),
        lambda: chat.wait_idle(timeout),
    ):
        with pytest.raises(ConfigurationError, match="timeout"):
            call()


def test_page_context_that_is_no_json(nobody_calls):
    """What the page shows must be writable before anything is queued."""
    chat = FluxbaseAIChat(URL)
    with pytest.raises(LocalProtocolError, match="page_context"):
        chat.conversation("bot").send("hi", page_context={"a": {1, 2}})
    with pytest.raises(LocalProtocolError, match="page_context"):
        chat.conversation("bot").send("hi", page_context={"a": float("nan")})


def test_bad_choices(nobody_calls):
    """A word that is none of the choices is answered with them."""
    chat = FluxbaseAIChat(URL)
    with pytest.raises(ConfigurationError, match='"queue", "cancel" or "raise"'):
        chat.conversation("bot").send("hi", if_busy="wait")
    with pytest.raises(ConfigurationError, match='"raise" or "new"'):
        chat.conversation("bot", on_lost="ignore")


def test_from_env(monkeypatch):
    """The environment is read by `from_env` only, and options win."""
    with pytest.raises(ConfigurationError, match="FLUXBASE_URL"):
        FluxbaseAIChat.from_env()
    monkeypatch.setenv("FLUXBASE_URL", "http://localhost:1")
    monkeypatch.setenv("FLUXBASE_TOKEN", "from-the-environment")
    assert FluxbaseAIChat.from_env()._session.settings.token == "from-the-environment"
    assert FluxbaseAIChat.from_env(token="mine")._session.settings.token == "mine"
    assert FluxbaseAIChat.from_env(service_key="key")._session.settings.token is None
    assert FluxbaseAIChat("http://localhost:2")._session.settings.token is None
    monkeypatch.setenv("FLUXBASE_TOKEN", "")
    with pytest.raises(ConfigurationError, match="token is empty"):
        FluxbaseAIChat.from_env()


def test_a_new_token():
    """A token can be replaced and not read, and is checked."""
    chat = FluxbaseAIChat(URL, token="old")
    chat.token = "new"
    assert chat._session.settings.token == "new"
    with pytest.raises(ConfigurationError, match="token"):
        chat.token = "with blank"
    with pytest.raises(AttributeError):
        _ = chat.token


def test_secrets_are_in_no_repr():
    """Neither the client nor its settings show a secret or the URL's query."""
    chat = FluxbaseAIChat(
        URL + "?k=query-secret", token="token-secret", headers={"X-Key": "header-secret"}
    )
    shown = repr(chat) + repr(chat._session.settings) + str(vars(chat))
    assert "secret" not in shown
    assert repr(chat) == "<FluxbaseAIChat ws://localhost:8080/ai/ws new>"


def test_a_given_ssl_context_is_kept():
    """A context of the caller's is used as it is."""
    context = ssl.create_default_context()
    assert context is FluxbaseAIChat(URL, ssl_context=context)._session.settings.ssl_context
