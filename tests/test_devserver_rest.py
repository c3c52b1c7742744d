"""The dev server's REST side: the recorded calls, sign-in, and who may see what."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from recordings import UUID, BareClient, lines, normalised

from fluxbase_aichat.devserver import DevServer, Store

RECORDED = [line for line in lines("rest") if "as" in line]
LIMITED = next(line for line in lines("rest") if line["status"] == 429)
QUESTIONS = (
    ("say My name is Ann.", "say You are Ann."),
    (),
    (),
    ("say A secret.", "say Another."),
    ("say My name is Ann.", "say You are Ann."),
    (),
    (),
    ("say A secret.", "say Another."),
    ("sql SELECT id, name FROM users LIMIT 2\n---\nsay Kept answer.", "say More."),
)
"""What was asked in the nine conversations of the recording, the oldest first."""


@pytest.fixture
def server() -> Iterator[DevServer]:
    """Start a dev server."""
    with DevServer() as server:
        yield server


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)


def call(server: DevServer, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """Make one REST call on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, named)
    answer = connection.getresponse()
    found = Answer(answer.status, dict(answer.headers), answer.read().decode())
    connection.close()
    return found


def bearer(server: DevServer, user: str = "ann") -> dict[str, str]:
    """Return the header of a user who has signed in."""
    return {"Authorization": f"Bearer {server.token(user)}"}


def converse(server: DevServer, *questions: str, user: str = "ann") -> str:
    """Ask the questions in a conversation that is kept; return its id."""
    with BareClient(server.ws_url, **bearer(server, user)) as client:
        client.send('{"type":"start_chat","chatbot":"keeper"}')
        conversation_id: str = json.loads(client.recv())["conversation_id"]
        for question in questions:
            frame = {"type": "message", "conversation_id": conversation_id, "content": question}
            client.send(json.dumps(frame))
            while json.loads(client.recv())["type"] not in ("done", "error"):
                pass
    return conversation_id


def test_recorded_calls(server: DevServer) -> None:
    """Every recorded call gets the recorded status, headers and body."""
    made = [converse(server, *questions) for questions in QUESTIONS]
    listing = next(line for line in RECORDED if line["path"].endswith("/conversations"))
    recorded = [each["id"] for each in json.loads(listing["body"])["conversations"]]
    ids = dict(zip(recorded, reversed(made), strict=True))

    expected, actual = [], []
    for line in RECORDED:
        headers = {} if line["as"] == "anonymous" else bearer(server, line["as"])
        if "expired" in line["body"]:
            headers = {"Authorization": "Bearer garbage"}
        path = UUID.sub(lambda match: ids.get(match[0], match[0]), line["path"])
        answer = call(server, line["method"], path, line["request"], **headers)
        # The ids of the chatbots are the recorded ones; only conversations have new ones.
        expected.append(f"{line['method']} {line['path']}\n{line['status']} {line['body']}")
        actual.append(f"{line['method']} {path}\n{answer.status} {answer.text}")
        assert answer.headers["Content-Type"] == line["content_type"]
        assert parsedate_to_datetime(answer.headers["Date"]).tzinfo is not None

    assert normalised(expected) == normalised(actual)


def test_paging(server: DevServer) -> None:
    """A page is 50 long by default and never longer than 100."""
    for _ in range(101):
        converse(server)
    path = "/api/v1/ai/conversations"
    pages = [
        call(server, "GET", path + query, **bearer(server)).json
        for query in (
            "",
            "?limit=0",
            "?limit=junk",
            "?limit=-1",
            "?limit=1000",
            "?limit=60&offset=60",
        )
    ]
    lengths = [len(page["conversations"]) for page in pages]

    assert lengths == [50, 50, 50, 50, 100, 41]
    assert [page["has_more"] for page in pages] == [True, True, True, True, True, False]
    assert {page["total"] for page in pages} == {101}


def test_titles(server: DevServer) -> None:
    """A title has 1 to 200 characters, not bytes; a refused one changes nothing."""
    path = f"/api/v1/ai/conversations/{converse(server, 'say One.')}"
    longest = "é" * 200

    assert call(server, "PATCH", path, {"title": longest}, **bearer(server)).status == 200
    assert call(server, "PATCH", path, {"title": longest + "é"}, **bearer(server)).status == 400
    assert call(server, "PATCH", path, {"title": 7}, **bearer(server)).status == 400
    assert call(server, "PATCH", path, ["title"], **bearer(server)).status == 400
    assert call(server, "GET", path, **bearer(server)).json["title"] == longest


def test_a_deleted_conversation_is_not_resumed(server: DevServer) -> None:
    """After a DELETE its id gives a new conversation."""
    conversation_id = converse(server, "say One.")
    path = f"/api/v1/ai/conversations/{conversation_id}"
    deleted = call(server, "DELETE", path, **bearer(server)).json
    with BareClient(server.ws_url, **bearer(server)) as client:
        frame = {"type": "start_chat", "chatbot": "keeper", "conversation_id": conversation_id}
        client.send(json.dumps(frame))
        resumed = json.loads(client.recv())["conversation_id"]

    assert deleted == {"deleted": True, "id": conversation_id}
    assert resumed != conversation_id


def test_the_service_key_sees_everybody(server: DevServer) -> None:
    """The service key lists and reads the conversations of all users."""
    ids = {converse(server, user="ann"), converse(server, user="bob")}
    key = {"X_Service_Key": server.service_key}
    listed = call(server, "GET", "/api/v1/ai/conversations", **key).json["conversations"]

    assert {each["id"] for each in listed} == ids
    assert all(
        call(server, "GET", f"/api/v1/ai/conversations/{each}", **key).status == 200 for each in ids
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/api/v1/ai/conversations/11111111-1111-4111-8111-111111111111", 405),
        ("POST", "/api/v1/ai/chatbots", 404),
        ("GET", "/api/v1/ai/nothing", 404),
        ("GET", "/", 404),
        ("PATCH", "/api/v1/ai/conversations/not-a-uuid", 500),
        ("DELETE", "/api/v1/ai/conversations/not-a-uuid", 500),
        ("GET", "/api/v1/ai/chatbots/by-name/hidden", 404),
    ],
)
def test_other_calls(server: DevServer, method: str, path: str, status: int) -> None:
    """Calls that no recording has are refused with JSON too."""
    answer = call(server, method, path, **bearer(server))

    assert answer.status == status
    assert "error" in answer.json


@pytest.mark.parametrize("credentials", ["header", "query"])
def test_an_expired_token(server: DevServer, credentials: str) -> None:
    """A token that has expired is refused, wherever it stands."""
    token = server.token(expires_in=-1)
    path = "/api/v1/ai/conversations"
    if credentials == "header":
        answer = call(server, "GET", path, Authorization=f"Bearer {token}")
    else:
        answer = call(server, "GET", f"{path}?token={token}")

    assert (answer.status, answer.json) == (401, {"error": "Invalid or expired Bearer token"})


@pytest.mark.parametrize("tampered", ["{}.{}", "{}.{}.", "a.b.c", "..", "{}.{}.é"])
def test_a_tampered_token(server: DevServer, tampered: str) -> None:
    """A token with another signature is refused."""
    head, claims, _ = server.token().split(".")
    token = tampered.format(head, claims)
    answer = call(server, "GET", "/api/v1/ai/conversations", Authorization=f"Bearer {token}")

    assert answer.status == 401


def sign_in(server: DevServer, email: str, password: str) -> Answer:
    """Sign in."""
    return call(server, "POST", "/api/v1/auth/signin", {"email": email, "password": password})


def test_signing_in(server: DevServer) -> None:
    """Every documented user can sign in, and the tokens are good for 15 minutes."""
    for user in server.users.values():
        answer = sign_in(server, user.email, user.password)
        token = answer.json["access_token"]
        listed = call(server, "GET", "/api/v1/ai/conversations", Authorization=f"Bearer {token}")

        assert answer.status == 200
        assert answer.json["expires_in"] == 900
        assert answer.json["user"]["id"] == user.id
        assert listed.status == 200


def test_refreshing(server: DevServer) -> None:
    """A refresh token gives new tokens; it is no access token, nor the other way round."""
    tokens = sign_in(server, "ann@example.com", "ann-password").json
    path = "/api/v1/auth/refresh"
    good = call(server, "POST", path, {"refresh_token": tokens["refresh_token"]})
    bad = call(server, "POST", path, {"refresh_token": tokens["access_token"]})
    misused = call(
        server,
        "GET",
        "/api/v1/ai/conversations",
        Authorization=f"Bearer {tokens['refresh_token']}",
    )

    assert good.status == 200
    assert sorted(good.json) == ["access_token", "expires_in", "refresh_token"]
    assert good.json["access_token"] != tokens["access_token"]
    assert bad.status == 500
    assert misused.status == 401


def test_a_wrong_password(server: DevServer) -> None:
    """A wrong password is a 401, and ten of them lock the sign-in."""
    wrong = [sign_in(server, "ann@example.com", "wrong") for _ in range(10)]
    locked = sign_in(server, "ann@example.com", "ann-password")

    assert {answer.status for answer in wrong} == {401}
    assert wrong[0].json == {"error": "Invalid email or password"}
    assert locked.status == LIMITED["status"]
    assert locked.text == LIMITED["body"]
    assert locked.headers["Retry-After"] == LIMITED["headers"]["Retry-After"]


def test_a_store_outlives_its_server(tmp_path: Any) -> None:
    """Conversations and tokens of one server are good on the next one with the same file."""
    with Store(tmp_path / "dev.db") as store, DevServer(store=store) as first:
        conversation_id = converse(first, "say Kept.")
        token, key = first.token(), first.service_key
    path = f"/api/v1/ai/conversations/{conversation_id}"
    with Store(tmp_path / "dev.db") as store, DevServer(store=store) as second:
        answer = call(second, "GET", path, Authorization=f"Bearer {token}")

        assert second.service_key == key
        assert [message["content"] for message in answer.json["messages"]] == ["say Kept.", "Kept."]


@pytest.mark.parametrize("feature", ["off-2026.1", "off-2026.3"])
def test_chat_is_switched_off(server: DevServer, feature: Any) -> None:
    """A server without chat refuses its REST calls too, but not the sign-in."""
    server.feature = feature
    refused = call(server, "GET", "/api/v1/ai/chatbots")

    assert refused.json["code"] == "FEATURE_DISABLED"
    assert sign_in(server, "ann@example.com", "ann-password").status == 200


def test_one_connection_serves_many_calls(server: DevServer) -> None:
    """The server keeps an HTTP connection open between calls."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    bodies = []
    for _ in range(3):
        connection.request("GET", "/api/v1/ai/chatbots")
        bodies.append(connection.getresponse().read())
    connection.close()

    assert len(set(bodies)) == 1
    assert [request.target for request in server.requests] == ["/api/v1/ai/chatbots"] * 3
