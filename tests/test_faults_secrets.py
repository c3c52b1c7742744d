"""Faults of secrets (S): what must not be sent, or said, is refused before the wire."""

from __future__ import annotations

import pytest
from servers import Peer, RawServer, refusing_port

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.errors import ConfigurationError

# -- S01 ------------------------------------------------------------------------------------

BAD = {
    "CR": "s3cret\r",
    "LF": "s3cret\n",
    "CRLF in the middle": "s3cret\r\nX-Admin: 1",
    "NUL": "s3\0cret",
    "space": "s3 cret",
    "leading space": " s3cret",
    "tab": "s3\tcret",
    "DEL": "s3cret\x7f",
    "not ASCII": "s3cröt",
    "not Latin-1": "s3cret日",
    "line separator": "s3cret\u2028",
    "surrogate": "s3cret\ud800",
    "empty": "",
    "blank": "   ",
    "a newline only": "\n",
}


@pytest.mark.parametrize("name", ["token", "service_key"])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
def test_s01_bad_secret(name, value) -> None:
    """A secret that cannot stand in a header is refused at construction, and not quoted."""
    with pytest.raises(ConfigurationError) as caught:
        FluxbaseAIChat("ws://127.0.0.1", **{name: value})
    assert isinstance(caught.value, ValueError)
    assert caught.value.sent is False
    assert name in str(caught.value)
    assert "s3c" not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
def test_s01_bad_token_later(value) -> None:
    """A bad token is refused when it is set, too, and the old one serves on."""

    def script(peer: Peer) -> None:
        assert "Bearer old" == (peer.read_request(), peer.headers["authorization"])[1]
        peer.serve()

    chat = FluxbaseAIChat("ws://127.0.0.1", token="old")
    with pytest.raises(ConfigurationError) as caught:
        chat.token = value
    assert "s3c" not in f"{caught.value} {caught.value!r}"
    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, token="old")
        with pytest.raises(ConfigurationError):
            chat.token = value
        with chat:
            assert chat.is_connected()


@pytest.mark.parametrize("value", [b"s3cret", 5, True, ["s3cret"]])
def test_s01_token_of_another_type(value) -> None:
    """What is no text and no callable is no token."""
    with pytest.raises(ConfigurationError) as caught:
        FluxbaseAIChat("ws://127.0.0.1", token=value)
    assert "s3c" not in f"{caught.value} {caught.value!r}"


def test_s01_token_from_the_environment(monkeypatch) -> None:
    """An empty variable is a missing secret, not an anonymous caller."""
    monkeypatch.setenv("FLUXBASE_URL", "ws://127.0.0.1")
    monkeypatch.setenv("FLUXBASE_TOKEN", "")
    with pytest.raises(ConfigurationError):
        FluxbaseAIChat.from_env()
    monkeypatch.setenv("FLUXBASE_TOKEN", "s3cret\n")
    with pytest.raises(ConfigurationError):
        FluxbaseAIChat.from_env()


def test_s01_good_token_is_sent_as_it_is() -> None:
    """All that may stand in a token arrives unchanged."""
    token = "".join(map(chr, range(0x21, 0x7F)))
    seen = []

    def script(peer: Peer) -> None:
        peer.read_request()
        seen.append(peer.headers["authorization"])
        peer.serve()

    with RawServer(script) as server, FluxbaseAIChat(server.url, token=token):
        pass
    assert [f"Bearer {token}"] == seen


# -- S03 ------------------------------------------------------------------------------------

SECRETS = {
    "token": {"token": "s3cret"},
    "callable token": {"token": lambda: "s3cret"},
    "token in the query": {"token": "s3cret", "token_in_query": True},
    "service key": {"service_key": "s3cret"},
    "own header": {"headers": {"authorization": "Basic s3cret"}},
    "cookie": {"headers": {"Cookie": "session=s3cret"}},
    "own key": {"headers": {"X-Service-Key": "s3cret"}},
}
ELSEWHERE = [
    "ws://example.com",
    "http://example.com/ai/ws",
    "ws://10.0.0.1:8080",
    "ws://192.168.1.1",
    "ws://0.0.0.0",
    "ws://[::]",
    "ws://[fe80::1]",
    "ws://128.0.0.1",
    "ws://localhost.example.com",
    "ws://127.0.0.1.example.com",
    "ws://127.0.0.1.nip.io",
    "ws://my-localhost",
]


@pytest.mark.parametrize("options", SECRETS.values(), ids=SECRETS.keys())
def test_s03_secret_in_clear_text(options) -> None:
    """No credentials of any kind go over ws:// to another host; both ways out are named."""
    with pytest.raises(ConfigurationError) as caught:
        FluxbaseAIChat("ws://example.com", **options)
    message = str(caught.value)
    assert "wss://" in message
    assert "allow_insecure=True" in message
    assert "FLUXBASE_ALLOW_INSECURE=1" in message
    assert "s3cret" not in f"{message} {caught.value!r}"


@pytest.mark.parametrize("url", ELSEWHERE)
def test_s03_hosts_elsewhere(url) -> None:
    """Whatever is not provably this machine counts as the network."""
    with pytest.raises(ConfigurationError, match="allow_insecure"):
        FluxbaseAIChat(url, token="s3cret")


@pytest.mark.parametrize("options", SECRETS.values(), ids=SECRETS.keys())
def test_s03_allowed(options, monkeypatch) -> None:
    """It is allowed by the parameter, by the variable, and over TLS."""
    FluxbaseAIChat("ws://example.com", allow_insecure=True, **options)
    FluxbaseAIChat("wss://example.com", **options)
    FluxbaseAIChat("https://example.com", **options)
    monkeypatch.setenv("FLUXBASE_ALLOW_INSECURE", "1")
    FluxbaseAIChat("ws://example.com", **options)
    for value in ("0", "", "true"):
        monkeypatch.setenv("FLUXBASE_ALLOW_INSECURE", value)
        with pytest.raises(ConfigurationError):
            FluxbaseAIChat("ws://example.com", **options)


def test_s03_anonymous_and_harmless_headers() -> None:
    """Without credentials nothing is refused, until a token is set."""
    chat = FluxbaseAIChat("ws://example.com", headers={"X-Request-Id": "1"})
    with pytest.raises(ConfigurationError, match="allow_insecure"):
        chat.token = "s3cret"


# -- S12 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost", "127.0.0.1", "127.0.0.2", "127.255.255.254", "[::1]", "[0:0::0:1]"],
)
@pytest.mark.parametrize("options", SECRETS.values(), ids=SECRETS.keys())
def test_s12_loopback(host, options) -> None:
    """A secret may go to this machine itself."""
    FluxbaseAIChat(f"ws://{host}:8080", **options)
    FluxbaseAIChat(f"http://{host}", **options)


def test_s12_loopback_is_used() -> None:
    """A token really is sent to loopback, by address and by name."""
    seen = []

    def script(peer: Peer) -> None:
        peer.read_request()
        seen.append(peer.headers["authorization"])
        peer.serve()

    with RawServer(script) as server:
        for host in ("127.0.0.1", "localhost"):
            with FluxbaseAIChat(f"ws://{host}:{server.port}", token="t0k3n"):
                pass
    assert ["Bearer t0k3n"] * 2 == seen


# -- S05 ------------------------------------------------------------------------------------


def test_s05_proxy_of_the_environment(monkeypatch) -> None:
    """Proxies of the environment are not asked for this machine itself."""
    with refusing_port() as port, RawServer(Peer.serve) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        for host in ("127.0.0.1", "localhost"):
            with FluxbaseAIChat(f"ws://{host}:{server.port}", token="t0k3n") as chat:
                assert "You said: Hi" == chat.ask("support", "Hi").text
