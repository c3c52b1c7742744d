"""The server of the benchmarks: prepared frames, written as fast as the socket takes them.

It checks nothing. The chatbot's name says what the answer is: `KIND:SIZE:HOW`, see `_KINDS`; all
is prepared before `chat_started` is sent, so that a client's clock, which starts with its message,
counts no preparation. Run it as `python -m benchmarks.server`: it prints its port, and ends with
its standard input.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

# A prime, so that frames are cut anywhere.
_PIECE = 65_521

# What models write: words of any length, quotes, code, other scripts.
_WORDS = (
    *(" the", " of", " a", " orders", " revenue", " customers", " internationalisation", " 42"),
    *(",", ".", "\n", "\n\n", "\t", ' "quoted"', " <b>", " &", " SELECT", " \\d+"),
    *(" Grüße", " 日本語", " 🎉"),
)
WORDS_SEED = 5


def words(count: int) -> list[str]:
    """Return the deltas of an answer; the same ones for the same count."""
    return random.Random(WORDS_SEED).choices(_WORDS, k=count)  # noqa: S311 - no secret


def payload(message: dict[str, Any]) -> bytes:
    """Write a message as the server does: compact, `<`, `>` and `&` escaped."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026").encode()


def _frame(data: bytes) -> bytes:
    size = len(data)
    if size < 126:
        return bytes([0x81, size]) + data
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2) + data
    return b"\x81\x7f" + size.to_bytes(8) + data


def rows_payload(count: int, conversation_id: str) -> bytes:
    """Return a query result of many rows."""
    rows = [
        {
            "active": i % 3 == 0,
            "email": f"user{i}@example.com",
            "id": i,
            "joined": "2026-02-28T12:34:56Z",
            "total": i * 1.25,
        }
        for i in range(count)
    ]
    message = {
        "type": "query_result",
        "conversation_id": conversation_id,
        "query": "SELECT id, email, joined, total, active FROM users",
        "summary": f"Query returned {count} row(s)",
        "row_count": count,
        "data": rows,
    }
    return payload(message)


def _contents(deltas: list[str], conversation_id: str) -> list[bytes]:
    made = {
        delta: _frame(
            payload({"type": "content", "conversation_id": conversation_id, "delta": delta})
        )
        for delta in set(deltas)
    }
    return [made[delta] for delta in deltas]


def _deltas(size: int, conversation_id: str) -> list[bytes]:
    return _contents(words(size), conversation_id)


def _text(size: int, conversation_id: str) -> list[bytes]:
    """An answer of `size` bytes, in deltas of 100."""
    return _contents(
        [" a sentence of fifty characters, of several words." * 2], conversation_id
    ) * (size // 100)


def _rows(size: int, conversation_id: str) -> list[bytes]:
    return [_frame(rows_payload(size, conversation_id))]


_KINDS: dict[str, Callable[[int, str], list[bytes]]] = {
    "deltas": _deltas,
    "text": _text,
    "rows": _rows,
}


@functools.lru_cache(maxsize=8)
def _prepare(chatbot: str, conversation_id: str) -> list[memoryview]:
    """Return what to write, a piece for each call of the system."""
    kind, size, how = chatbot.partition("#")[0].split(":")
    frames = _KINDS[kind](int(size), conversation_id)
    usage = {"prompt_tokens": 1, "completion_tokens": len(frames), "total_tokens": len(frames) + 1}
    frames.append(
        _frame(payload({"type": "done", "conversation_id": conversation_id, "usage": usage}))
    )
    if how == "one":
        return [memoryview(frame) for frame in frames]
    stream = memoryview(b"".join(frames))
    return [stream[at : at + _PIECE] for at in range(0, len(stream), _PIECE)]


def _one_by_one(sock: socket.socket, count: int, conversation_id: str) -> None:
    """Send deltas that say when they were written, each when the one before has been read."""
    for _ in range(count):
        time.sleep(0.002)
        now = str(time.monotonic_ns())
        message = {"type": "content", "conversation_id": conversation_id, "delta": now}
        sock.sendall(_frame(payload(message)))
    sock.sendall(_frame(payload({"type": "done", "conversation_id": conversation_id})))


def _receive(stream: Any) -> Iterator[dict[str, Any]]:
    """Yield what the client says; it is trusted."""
    while True:
        head = stream.read(2)
        if len(head) < 2:
            return
        size = head[1] & 0x7F
        if size >= 126:
            size = int.from_bytes(stream.read(2 if size == 126 else 8))
        mask = stream.read(4) if head[1] & 0x80 else bytes(4)
        data = bytes(c ^ mask[i % 4] for i, c in enumerate(stream.read(size)))
        if head[0] == 0x81:
            yield json.loads(data)
        elif head[0] == 0x88:
            return


def _serve(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock, sock.makefile("rb") as stream:
        head = {}
        while (line := stream.readline()) not in {b"\r\n", b""}:
            name, _, value = line.decode().partition(":")
            head[name.lower()] = value.strip()
        key = head["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()  # noqa: S324
        answer = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        sock.sendall(answer.encode())
        chatbots: dict[str, str] = {}
        for message in _receive(stream):
            if message["type"] == "start_chat":
                chatbot = message["chatbot"]
                conversation_id = str(uuid.uuid5(uuid.NAMESPACE_URL, chatbot))
                chatbots[conversation_id] = chatbot
                if not chatbot.startswith("latency"):
                    _prepare(chatbot, conversation_id)
                started = {
                    "type": "chat_started",
                    "conversation_id": conversation_id,
                    "chatbot": chatbot,
                }
                sock.sendall(_frame(payload(started)))
            elif message["type"] == "message":
                conversation_id = message["conversation_id"]
                chatbot = chatbots[conversation_id]
                if chatbot.startswith("latency"):
                    _one_by_one(sock, int(chatbot.split(":")[1]), conversation_id)
                    continue
                for piece in _prepare(chatbot, conversation_id):
                    sock.sendall(piece)


def _serve_quietly(sock: socket.socket) -> None:
    try:
        _serve(sock)
    except OSError:
        pass  # the client has gone


def main() -> None:
    """Serve until the standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_serve_quietly, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
