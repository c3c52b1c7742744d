"""The recordings in tests/transcripts, cut into connections, and a bare client that plays them.

`load(name)` gives the connections of a recording; `normalised(texts)` removes from frames what may
differ from one run to the next (ids, token counts, times, the order of the calls of one round).
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

TRANSCRIPTS = Path(__file__).parent / "transcripts"
ONE_REQUEST_A_LINE = ("handshakes", "rest")

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOKENS = re.compile(r'"(\w+_tokens)":\d+')
_MILLISECONDS = re.compile(r"row\(s\) in \d+ms")
_STAMP = re.compile(r'("(?:created_at|updated_at|timestamp)":)"\d{4}-[^"]*Z"')
_CALL = re.compile(r'"step":"(?:querying|executing)"')
_RESULT = re.compile(r'^\{"type":"(?:query|tool)_result"')


@dataclass(frozen=True)
class Step:
    """One line of a recording."""

    at: float
    kind: str
    """`out` and `in` for frames, else what happened: `note`, `ping`, `closed`, `code`."""
    text: str = ""
    """The frame's payload, or the note."""
    binary: bool = False
    line: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Connection:
    """The steps of one connection, in order."""

    steps: tuple[Step, ...]

    def sent(self) -> list[str]:
        """Return the client's frames."""
        return [step.text for step in self.steps if step.kind == "out"]

    def received(self) -> list[str]:
        """Return the server's frames."""
        return [step.text for step in self.steps if step.kind == "in"]


def names() -> list[str]:
    """Return the names of the recordings of chats; those of single requests are left out."""
    found = sorted(path.stem for path in TRANSCRIPTS.glob("*.jsonl"))
    return [name for name in found if name not in ONE_REQUEST_A_LINE]


def lines(name: str) -> list[dict[str, Any]]:
    """Return the lines of a recording, parsed."""
    text = (TRANSCRIPTS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def load(name: str) -> list[Connection]:
    """Return the connections of a recording; each begins where its handshake was."""
    connections: list[list[Step]] = []
    for line in lines(name):
        if "handshake" in line:
            connections.append([])
        else:
            connections[-1].append(_step(line))
    return [Connection(tuple(steps)) for steps in connections]


def _step(line: dict[str, Any]) -> Step:
    at, text = line["at"], line.get("text")
    if text is not None:
        return Step(at, line["dir"], text, line.get("opcode") == "binary", line)
    if line["dir"] == "out":
        return Step(at, "out", _long_message(line["note"]), line=line)
    for kind in ("note", "ping", "closed", "code"):
        if kind in line:
            return Step(at, kind, str(line[kind]), line=line)
    raise ValueError(f"a line that means nothing: {line}")


def _long_message(note: str) -> str:
    """Return the frame that `big_message` only describes, in its conversation."""
    assert note == "message of 1,000,000 characters"
    conversation_id = "8a835d55-1c27-4030-ba57-18c546fee55a"
    content = "say ok\n"
    content += "x" * (1_000_000 - len(content))
    frame = {"type": "message", "conversation_id": conversation_id, "content": content}
    return json.dumps(frame)


def normalised(texts: Iterable[str]) -> list[str]:
    """Frames or bodies as they are, but for what may differ; ids are numbered as they come up."""
    ids: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return ids.setdefault(match[0], f"<id {len(ids) + 1}>")

    result = []
    for text in in_fixed_order(texts):
        plain = UUID.sub(number, text)
        plain = _TOKENS.sub(r'"\1":0', plain)
        plain = _MILLISECONDS.sub("row(s) in 0ms", plain)
        result.append(_STAMP.sub(r'\1"<time>"', plain))
    return result


def in_fixed_order(texts: Iterable[str]) -> list[str]:
    """Frames with the calls of each round sorted, for the server runs them in no fixed order."""
    result: list[str] = []
    calls: list[list[str]] = []
    for text in texts:
        if _CALL.search(text):
            calls.append([text])
        elif calls and _RESULT.match(text):
            calls[-1].append(text)
        else:
            result += _flat(calls)
            calls = []
            result.append(text)
    return result + _flat(calls)


def _flat(calls: list[list[str]]) -> list[str]:
    return [text for call in sorted(calls, key=lambda call: call[1:]) for text in call]


class BareClient:
    """A websocket of wsproto and a socket, without any help; every wait ends after 5 s."""

    def __init__(self, url: str, **headers: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=5)
        self._wire = WSConnection(ConnectionType.CLIENT)
        self._events = self._read()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        named = [(name.replace("_", "-").encode(), v.encode()) for name, v in headers.items()]
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            self._open(Request(host=parts.netloc, target=target, extra_headers=named))
        except BaseException:
            self.close()
            raise

    def _open(self, request: Request) -> None:
        self.socket.sendall(self._wire.send(request))
        for event in self._events:
            if isinstance(event, AcceptConnection):
                self.status = 101
                return
            if isinstance(event, RejectConnection):
                self.status = event.status_code
                self.headers = {name.decode().title(): v.decode() for name, v in event.headers}
            elif isinstance(event, RejectData):
                self.body += event.data
                if event.body_finished:
                    return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket, without a close frame."""
        self.socket.close()

    def send(self, text: str, *, binary: bool = False) -> None:
        """Send a frame."""
        self.send_event(BytesMessage(text.encode()) if binary else TextMessage(text))

    def send_event(self, event: Event) -> None:
        """Send anything."""
        self.socket.sendall(self._wire.send(event))

    def recv(self) -> str:
        """Return the next text; anything else that arrives is an error."""
        event = self.next_event()
        assert isinstance(event, TextMessage), event
        return event.data

    def next_event(self) -> Event | None:
        """Return what arrives next, a text whole; `None` at the end of the stream."""
        text = ""
        for event in self._events:
            if not isinstance(event, TextMessage):
                return event
            text += event.data
            if event.message_finished:
                return TextMessage(text)
        return None

    def ping(self) -> None:
        """Send a ping."""
        self.send_event(Ping(b"ping"))

    def expect_pong(self) -> None:
        """Wait for the pong, before anything else."""
        assert self.next_event() == Pong(bytearray(b"ping"))

    def send_close(self, code: int = 1000) -> None:
        """Begin the close handshake."""
        self.send_event(CloseConnection(code))

    def _read(self) -> Iterator[Event]:
        while True:
            yield from self._wire.events()
            if self._wire.state is ConnectionState.CLOSED:
                return
            data = self.socket.recv(256 * 1024)
            if not data:
                return
            self._wire.receive_data(data)


class Gate:
    """A `pause` for the dev server: it holds until the test opens it, and is closed again then."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = 0
        self._passes = 0

    def __call__(self, _seconds: float) -> None:
        """Wait, as long as it takes (at most 5 s)."""
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._passes > 0, 5), "nobody opened the gate"
            self._passes -= 1
            self._waiting -= 1

    def open(self) -> None:
        """Let one pause end, the one that waits or the next."""
        with self._changed:
            self._passes += 1
            self._changed.notify_all()

    def wait_until_reached(self) -> None:
        """Wait until a script has come to its pause."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting > self._passes, 5)
