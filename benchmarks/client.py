"""This library's side of the benchmarks: one measurement a process.

`python -m benchmarks.client MEASURE PORT SIZE [--no-orjson]` prints one JSON object: how many
`units` took how many `seconds`, or the `value` of what is no rate.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

if "--no-orjson" in sys.argv:
    sys.modules["orjson"] = None  # type: ignore[assignment] # so that importing it fails

from fluxbase_aichat import FluxbaseAIChat, Turn

from .server import words

Result = dict[str, float]

_WARM_UP = 20_000


class Counted:
    """What every measured client does with a delta: count it, and its characters."""

    def __init__(self) -> None:
        self.count = 0
        self.characters = 0

    def __call__(self, delta: str, _conversation_id: str) -> None:
        """Take one."""
        self.count += 1
        self.characters += len(delta)


def _turn(
    port: int, chatbot: str, read: Callable[[Turn], Any], **callbacks: Any
) -> tuple[float, Any]:
    """Warm up, then time one turn; return the seconds and what `read` returned."""
    with FluxbaseAIChat(f"ws://127.0.0.1:{port}/ai/ws", **callbacks) as chat:
        warm = chat.start_chat(f"deltas:{_WARM_UP}:many")
        read(chat.send_message(warm, "warm up"))
        conversation_id = chat.start_chat(chatbot)
        for callback in callbacks.values():
            callback.__init__()
        start = time.perf_counter()
        value = read(chat.send_message(conversation_id, "go"))
        return time.perf_counter() - start, value


def _check(counted: Any, size: int) -> None:
    assert counted.count == size, (counted.count, size)
    assert counted.characters == sum(map(len, words(size)))


def callbacks(port: int, size: int, how: str = "many") -> Result:
    """Deltas through `on_content`."""
    counted = Counted()
    seconds, _ = _turn(port, f"deltas:{size}:{how}", Turn.wait, on_content=counted)
    _check(counted, size)
    return {"units": size, "seconds": seconds}


def _read_stream(turn: Turn) -> Counted:
    counted = Counted()
    for delta in turn.text_stream:
        counted.count += 1
        counted.characters += len(delta)
    return counted


def text_stream(port: int, size: int, how: str = "many") -> Result:
    """Deltas through `turn.text_stream`."""
    seconds, counted = _turn(port, f"deltas:{size}:{how}", _read_stream)
    assert counted.characters == sum(map(len, words(size)))
    return {"units": size, "seconds": seconds}


def result(port: int, size: int, how: str = "many") -> Result:
    """Deltas into `turn.result()`."""
    seconds, reply = _turn(port, f"deltas:{size}:{how}", Turn.result)
    assert reply.text == "".join(words(size))
    return {"units": size, "seconds": seconds}


MEASURES: dict[str, Callable[..., Result]] = {
    "callbacks": callbacks,
    "text_stream": text_stream,
    "result": result,
}


def main() -> None:
    """Run one measurement."""
    name, port, size, *how = [a for a in sys.argv[1:] if not a.startswith("--")]
    print(json.dumps(MEASURES[name](int(port), int(size), *how)))  # noqa: T201


if __name__ == "__main__":
    main()
