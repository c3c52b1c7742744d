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

from fluxbase_aichat.events import Content, Event

from .server import words

Result = dict[str, float]

WARM_UP_SIZE = 20_000
WARM_UP = f"deltas:{WARM_UP_SIZE}:many"


def counting() -> tuple[Callable[[str, str], None], Callable[[], tuple[int, int]]]:
    """Return what every measured client calls for a delta, and what tells the totals."""
    count = characters = 0

    def on_content(delta: str, _conversation_id: str) -> None:
        nonlocal count, characters
        count += 1
        characters += len(delta)

    return on_content, lambda: (count, characters)


def totals(size: int) -> tuple[int, int]:
    """Return what an answer of so many deltas must come to."""
    return size, sum(map(len, words(size)))


def _turn(
    port: int, chatbot: str, read: Callable[[Turn], Any], **callbacks: Any
) -> tuple[float, Any]:
    """Warm up, then time one turn; return the seconds and what `read` returned."""
    with FluxbaseAIChat(f"ws://127.0.0.1:{port}/ai/ws", **callbacks) as chat:
        read(chat.send_message(chat.start_chat(WARM_UP), "warm up"))
        conversation_id = chat.start_chat(chatbot)
        start = time.perf_counter()
        value = read(chat.send_message(conversation_id, "go"))
        return time.perf_counter() - start, value


def callbacks(port: int, size: int, how: str = "many") -> Result:
    """Deltas through `on_content`; those that were joined because it is behind count as one."""
    on_content, told = counting()
    seconds, (before, _) = _turn(
        port, f"deltas:{size}:{how}", lambda turn: (told(), turn.wait())[0], on_content=on_content
    )
    count, characters = told()
    assert characters == totals(size)[1] + totals(WARM_UP_SIZE)[1]
    return {"units": count - before, "seconds": seconds}


def _read_stream(turn: Turn) -> tuple[int, int]:
    count = characters = 0
    for delta in turn.text_stream:
        count += 1
        characters += len(delta)
    return count, characters


def text_stream(port: int, size: int, how: str = "many") -> Result:
    """Deltas through `turn.text_stream`."""
    seconds, told = _turn(port, f"deltas:{size}:{how}", _read_stream)
    assert told == totals(size)
    return {"units": size, "seconds": seconds}


def result(port: int, size: int, how: str = "many") -> Result:
    """Deltas into `turn.result()`."""
    seconds, reply = _turn(port, f"deltas:{size}:{how}", Turn.result)
    assert reply.text == "".join(words(size))
    return {"units": size, "seconds": seconds}


def on_event(port: int, size: int, how: str = "many") -> Result:
    """Events through `on_event`; deltas that were joined because it is behind count as one."""
    count = characters = 0

    def callback(event: Event) -> None:
        nonlocal count, characters
        if isinstance(event, Content):
            count += 1
            characters += len(event.delta)

    def read(turn: Turn) -> int:
        nonlocal count
        count = 0
        turn.wait()
        return count

    seconds, told = _turn(port, f"deltas:{size}:{how}", read, on_event=callback)
    assert characters == totals(size)[1] + totals(WARM_UP_SIZE)[1]
    return {"units": told, "seconds": seconds}


def iteration(port: int, size: int, how: str = "many") -> Result:
    """Events through `for event in turn`."""
    seconds, count = _turn(port, f"deltas:{size}:{how}", lambda turn: sum(1 for _ in turn))
    assert count == size + 1  # and the end
    return {"units": size, "seconds": seconds}


MEASURES: dict[str, Callable[..., Result]] = {
    "callbacks": callbacks,
    "text_stream": text_stream,
    "result": result,
    "on_event": on_event,
    "iteration": iteration,
}


def main() -> None:
    """Run one measurement."""
    name, port, size, *how = [a for a in sys.argv[1:] if not a.startswith("--")]
    print(json.dumps(MEASURES[name](int(port), int(size), *how)))  # noqa: T201


if __name__ == "__main__":
    main()
