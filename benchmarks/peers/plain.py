"""Plain Python: a loop on websocket-client or websockets, `json` and a callback; and the floor.

`python -m benchmarks.peers.plain PEER PORT SIZE HOW`. The floor is no client: it cuts frames out of
what it reads, checking nothing, and parses each.
"""

from __future__ import annotations

import base64
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.client import check, counting, totals, warm_up


def _talk(
    send: Callable[[str], Any], messages: Callable[[], Any], size: int, how: str
) -> dict[str, float]:
    """Start a conversation, ask, and call back for each delta; first a small one."""
    seconds: float = 0.0
    on_content, told = counting()
    for chatbot in (f"deltas:{warm_up(size)}:many", f"deltas:{size}:{how}"):
        send(json.dumps({"type": "start_chat", "chatbot": chatbot}))
        on_content, told = counting()
        for data in messages():
            message = json.loads(data)
            kind = message["type"]
            if kind == "content":
                on_content(message["delta"], message["conversation_id"])
            elif kind == "chat_started":
                start = time.perf_counter()
                cid = message["conversation_id"]
                send(json.dumps({"type": "message", "conversation_id": cid, "content": "go"}))
            elif kind == "done":
                seconds = time.perf_counter() - start
                break
    check(told() == totals(size), told())
    return {"units": size, "seconds": seconds}


def websocket_client(port: int, size: int, how: str) -> dict[str, float]:
    """websocket-client's own loop."""
    import websocket

    ws = websocket.create_connection(f"ws://127.0.0.1:{port}/ai/ws")

    def messages() -> Any:
        while True:
            yield ws.recv()

    try:
        return _talk(ws.send, messages, size, how)
    finally:
        ws.shutdown()


def websockets(port: int, size: int, how: str) -> dict[str, float]:
    """The threaded client of websockets."""
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/ai/ws", compression=None) as ws:
        return _talk(ws.send, lambda: iter(ws), size, how)


class Floor:
    """A blocking socket and the frames cut out of what it reads."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(bytes(16)).decode()
        self._sock.sendall(
            f"GET /ai/ws HTTP/1.1\r\nHost: localhost\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self._data = b""
        while b"\r\n\r\n" not in self._data:
            self._data += self._sock.recv(65536)
        self._data = self._data.partition(b"\r\n\r\n")[2]

    def send(self, text: str) -> None:
        """Write a text frame; a mask of zeros changes nothing."""
        data = text.encode()
        size = len(data)
        head = bytes([0x81, 0x80 | size]) if size < 126 else b"\x81\xfe" + size.to_bytes(2)
        self._sock.sendall(head + bytes(4) + data)

    def messages(self) -> Any:
        """Yield the payload of each frame."""
        data, position, need = self._data, 0, 2
        while True:
            size = len(data)
            while size - position >= need:
                length, start = data[position + 1], position + 2
                if length >= 126:
                    if size - position < 10:
                        need = 10
                        break
                    wide = 2 if length == 126 else 8
                    length, start = int.from_bytes(data[start : start + wide]), start + wide
                if start + length > size:
                    need = start + length - position
                    break
                position, need = start + length, 2
                yield data[start:position]
            parts = [data[position:]]
            have, position = len(parts[0]), 0
            while len(parts) == 1 or have < need:
                parts.append(self._sock.recv(256 * 1024))
                have += len(parts[-1])
            data = b"".join(parts)

    def close(self) -> None:
        """Free the socket."""
        self._sock.close()


def floor(port: int, size: int, how: str) -> dict[str, float]:
    """Read the raw socket."""
    peer = Floor(port)
    try:
        return _talk(peer.send, peer.messages, size, how)
    finally:
        peer.close()


def rows(port: int, size: int, how: str) -> dict[str, float]:
    """Read a query result from the raw socket, and parse it."""
    peer = Floor(port)
    parse = json.JSONDecoder().decode
    if how == "orjson":
        import orjson

        parse = orjson.loads
    try:
        peer.send(json.dumps({"type": "start_chat", "chatbot": f"rows:{size}:many"}))
        messages = peer.messages()
        cid = json.loads(next(messages))["conversation_id"]
        start = time.perf_counter()
        peer.send(json.dumps({"type": "message", "conversation_id": cid, "content": "go"}))
        found = 0
        for data in messages:
            message = parse(data if how == "orjson" else data.decode())
            if message["type"] == "done":
                break
            found += len(message["data"])
        seconds = time.perf_counter() - start
    finally:
        peer.close()
    check(found == size, found)
    return {"units": size, "seconds": seconds}


def latency(port: int, size: int, _how: str) -> dict[str, float]:
    """From the server's write to what comes out of a blocking read, parsed, in µs."""
    peer = Floor(port)
    taken = []
    try:
        peer.send(json.dumps({"type": "start_chat", "chatbot": f"latency:{size}:one"}))
        for data in peer.messages():
            message = json.loads(data)
            if message["type"] == "chat_started":
                cid = message["conversation_id"]
                peer.send(json.dumps({"type": "message", "conversation_id": cid, "content": ""}))
            elif message["type"] == "content":
                taken.append(time.monotonic_ns() - int(message["delta"]))
            else:
                break
    finally:
        peer.close()
    check(len(taken) == size, len(taken))
    return {"value": statistics.median(taken) / 1000}


PEERS = {
    "websocket-client": websocket_client,
    "websockets": websockets,
    "floor": floor,
    "rows": rows,
    "latency": latency,
}


def main() -> None:
    """Run one."""
    name, port, size, how = sys.argv[1:]
    print(json.dumps(PEERS[name](int(port), int(size), how)))


if __name__ == "__main__":
    main()
