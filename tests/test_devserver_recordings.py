"""The dev server against the recordings: the same frames in, the same frames out."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from recordings import UUID, BareClient, Connection, Gate, Step, lines, load, names, normalised
from wsproto.events import CloseConnection

from fluxbase_aichat.devserver import DevServer

WHO = {"anonymous": None, "impersonation": "admin"}
"""Who is connected, where it is not `ann`."""
KILLED = ("server_killed_mid_turn", "server_shutdown_idle")
"""Where it is the server that ends the stream."""
PAUSE = 0.5
"""A gap in seconds that only a script's pause explains."""


@pytest.fixture
def gate() -> Gate:
    """Hold up the pauses of scripts."""
    return Gate()


@pytest.fixture
def server(gate: Gate) -> Iterator[DevServer]:
    """Start a dev server whose pauses wait for the gate."""
    with DevServer(pause=gate) as server:
        yield server


class Replay:
    """Plays a recording's client, and keeps what the server answers."""

    def __init__(self, name: str, server: DevServer, gate: Gate) -> None:
        self.name = name
        self.server = server
        self.gate = gate
        self.ids: dict[str, str] = {}
        self.expected: list[str] = []
        self.actual: list[str] = []

    def connect(self) -> BareClient:
        """Open a connection as whoever was connected."""
        who = WHO.get(self.name, "ann")
        headers = {"Authorization": f"Bearer {self.server.token(who)}"} if who else {}
        client = BareClient(self.server.ws_url, **headers)
        assert client.status == 101
        return client

    def play(self, connection: Connection, client: BareClient) -> None:
        """Do what was done on one connection, and expect what came."""
        last = 0.0
        for step in connection.steps:
            if step.kind == "in":
                if step.at - last > PAUSE:
                    self.gate.open()
                last = step.at
                self.receive(step.text, client)
            elif step.kind == "out":
                text = UUID.sub(lambda match: self.ids.get(match[0], match[0]), step.text)
                client.send(text, binary=step.binary)
            else:
                getattr(self, step.kind)(step, client)

    def receive(self, expected: str, client: BareClient) -> None:
        """Take the next frame; its conversation's id stands for the recorded one from now on."""
        actual = client.recv()
        self.expected.append(expected)
        self.actual.append(actual)
        theirs, ours = json.loads(expected), json.loads(actual)
        if "conversation_id" in theirs:
            self.ids.setdefault(theirs["conversation_id"], ours.get("conversation_id", ""))

    def closed(self, _step: Step, client: BareClient) -> None:
        """Expect the end of the stream, without a close frame."""
        killing = threading.Thread(target=self.server.kill)
        if self.name in KILLED:
            killing.start()
        assert client.next_event() is None
        if self.name in KILLED:
            self.gate.open()  # the pause was the test's own, so the server waits for it
            killing.join()

    def code(self, step: Step, client: BareClient) -> None:
        """Close, and expect the answer: at once, or behind the turn."""
        client.send_close()
        if step.text == "1006":
            self.gate.open()
            assert json.loads(client.recv())["delta"] == "two"
            assert json.loads(client.recv())["type"] == "done"
        assert client.next_event() == CloseConnection(1000, "")
        assert client.next_event() is None

    def ping(self, step: Step, client: BareClient) -> None:
        """Ping, and expect the pong: at once, or behind the turn, when the next ping is sent."""
        client.ping()
        if step.text != "during the turn":
            client.expect_pong()
        if step.text == "after done":
            client.expect_pong()

    def note(self, step: Step, client: BareClient) -> None:
        """Do what the note says."""
        if step.text.startswith("GET "):
            self.get(step)
        elif "TCP shutdown" in step.text:
            client.socket.shutdown(socket.SHUT_WR)
        elif "lost" in step.text:
            client.close()
        elif step.text.startswith("close sent"):
            client.send_close()
            client.close()

    def get(self, step: Step) -> None:
        """Compare the stored conversation, when every turn is over; an early one at once."""
        if " 0.2 s " not in step.text:
            self.gate.open()
            messages = json.loads(step.line["body"])["messages"]
            turns = sum(message["role"] == "user" for message in messages)
            assert self.server.wait_for(lambda: self.server.turns == turns)
        conversation_id = next(iter(self.ids.values()))
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=5)
        path = f"/api/v1/ai/conversations/{conversation_id}"
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.server.token()}"})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        assert answer.status == step.line["status"]
        assert normalised([body]) == normalised([step.line["body"]])


@pytest.mark.parametrize("name", names())
def test_replay(name: str, server: DevServer, gate: Gate) -> None:
    """A recording's client frames get the recording's server frames."""
    replay = Replay(name, server, gate)
    with ExitStack() as stack:
        for connection in load(name):
            server.start()  # again, where the recorded server was restarted
            replay.play(connection, stack.enter_context(replay.connect()))
        gate.open()  # for a turn that nobody waits for

    assert normalised(replay.expected) == normalised(replay.actual)


OPENINGS = {
    "garbage bearer": ("/ai/ws", {"Authorization": "Bearer garbage"}),
    "service key garbage": ("/ai/ws", {"X_Service_Key": "garbage"}),
    "garbage in the query": ("/ai/ws?token=garbage", {}),
    "good in the query": ("/ai/ws?token={token}", {}),
    "no credentials": ("/ai/ws", {}),
    "empty bearer": ("/ai/ws", {"Authorization": "Bearer"}),
    "basic": ("/ai/ws", {"Authorization": "Basic YTpi"}),
    "wrong path": ("/ai/ws/nope", {}),
    "trailing slash": ("/ai/ws/", {}),
    "chat is switched off on the server (2026.1)": ("/ai/ws", {}),
    "chat is switched off on the server (2026.3)": ("/ai/ws", {}),
}


@pytest.mark.parametrize("line", lines("handshakes"), ids=lambda line: line["label"])
def test_handshake(line: dict, server: DevServer) -> None:
    """Every kind of opening is answered with the recorded status, headers and body."""
    label = line["label"]
    if "switched off" in label:
        server.feature = f"off-{label[-7:-1]}"
    if label == "not an upgrade":
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
        connection.request("GET", "/ai/ws")
        answer = connection.getresponse()
        status, headers, body = answer.status, dict(answer.headers), answer.read()
        connection.close()
    else:
        target, sent = OPENINGS[label]
        url = server.ws_url.replace("/ai/ws", target.format(token=server.token()))
        with BareClient(url, **sent) as client:
            status, headers, body = client.status, client.headers, client.body

    assert status == line["handshake"]
    assert body.decode() == line.get("body", "")
    if status != 101:
        assert headers["Content-Type"] == "application/json"
