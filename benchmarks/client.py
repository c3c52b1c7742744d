"""The library's side of the benchmarks: one measurement a process.

`python -m benchmarks.client MEASURE PORT SIZE HOW [--no-orjson]` prints one JSON object: how many
`units` took how many `seconds`, or the `value` of what is no rate.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

if "--no-orjson" in sys.argv:
    sys.modules["orjson"] = None  # type: ignore[assignment] # so that importing it fails

from fluxbase_aichat import FluxbaseAIChat, Turn
from fluxbase_aichat.events import Content, Event

from .server import rows_payload, words

__all__ = ["MEASURES", "Result", "check", "counting", "main", "totals", "warm_up"]

Result = dict[str, float]


def check(held: bool, what: object) -> None:  # noqa: FBT001 - it is what an assert takes
    """Fail where a client gave something else than the server sent: its speed means nothing."""
    if not held:
        raise RuntimeError(f"the answer is not what was sent: {what!r}")


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


def warm_up(size: int) -> int:
    """Return how many deltas come before those that are measured."""
    return min(size, 20_000)


def _chat(port: int, **callbacks: Any) -> FluxbaseAIChat:
    return FluxbaseAIChat(f"ws://127.0.0.1:{port}/ai/ws", **callbacks)


def _turn(
    port: int, size: int, chatbot: str, read: Callable[[Turn], Any], **callbacks: Any
) -> tuple[float, Any]:
    """Warm up, then time one turn; return the seconds and what `read` returned."""
    with _chat(port, **callbacks) as chat:
        read(chat.send_message(chat.start_chat(f"deltas:{warm_up(size)}:many"), "warm up"))
        conversation_id = chat.start_chat(chatbot)
        start = time.perf_counter()
        value = read(chat.send_message(conversation_id, "go"))
        return time.perf_counter() - start, value


# -- rates ----------------------------------------------------------------------------------


def callbacks(port: int, size: int, how: str) -> Result:
    """Deltas through `on_content`; those that were joined because it is behind count as one."""
    on_content, told = counting()

    def read(turn: Turn) -> int:
        before, _ = told()
        turn.wait()
        return before

    seconds, before = _turn(port, size, f"deltas:{size}:{how}", read, on_content=on_content)
    count, characters = told()
    check(characters == totals(size)[1] + totals(warm_up(size))[1], characters)
    return {"units": count - before, "seconds": seconds}


def busy(port: int, size: int, how: str) -> Result:
    """The same beside a thread that computes without pause."""
    stop = False

    def compute() -> None:
        while not stop:
            pass

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        return callbacks(port, size, how)
    finally:
        stop = True
        thread.join()


def text_stream(port: int, size: int, how: str) -> Result:
    """Deltas through `turn.text_stream`."""

    def read(turn: Turn) -> tuple[int, int]:
        count = characters = 0
        for delta in turn.text_stream:
            count += 1
            characters += len(delta)
        return count, characters

    seconds, (count, characters) = _turn(port, size, f"deltas:{size}:{how}", read)
    check(characters == totals(size)[1], characters)
    return {"units": count, "seconds": seconds}


def result(port: int, size: int, how: str) -> Result:
    """Deltas into `turn.result()`."""
    seconds, reply = _turn(port, size, f"deltas:{size}:{how}", Turn.result)
    check(reply.text == "".join(words(size)), len(reply.text))
    return {"units": size, "seconds": seconds}


def on_event(port: int, size: int, how: str) -> Result:
    """Events through `on_event`; deltas that were joined because it is behind count as one."""
    count = characters = 0

    def callback(event: Event) -> None:
        nonlocal count, characters
        if isinstance(event, Content):
            count += 1
            characters += len(event.delta)

    def read(turn: Turn) -> int:
        nonlocal count, characters
        count = characters = 0
        turn.wait()
        return count

    seconds, told = _turn(port, size, f"deltas:{size}:{how}", read, on_event=callback)
    check(characters == totals(size)[1], characters)
    return {"units": told, "seconds": seconds}


def iteration(port: int, size: int, how: str) -> Result:
    """Events through `for event in turn`."""

    def read(turn: Turn) -> tuple[int, int]:
        count = characters = 0
        for event in turn:
            if isinstance(event, Content):
                count += 1
                characters += len(event.delta)
        return count, characters

    seconds, (count, characters) = _turn(port, size, f"deltas:{size}:{how}", read)
    check(characters == totals(size)[1], characters)
    return {"units": count, "seconds": seconds}


def rows(port: int, size: int, how: str) -> Result:
    """Rows into `query_results`."""
    seconds, reply = _turn(port, size, f"rows:{size}:{how}", Turn.result)
    check(len(reply.query_results[0].data) == size, len(reply.query_results[0].data))
    return {"units": size, "seconds": seconds}


def parser(_port: int, size: int, _how: str) -> Result:
    """The JSON parser alone on the same rows, its text in memory."""
    payload = rows_payload(size, "c")
    start = time.perf_counter()
    if "--no-orjson" in sys.argv:
        message = json.JSONDecoder().decode(payload.decode())
    else:
        import orjson

        message = orjson.loads(payload)
    seconds = time.perf_counter() - start
    check(len(message["data"]) == size, len(message["data"]))
    return {"units": size, "seconds": seconds}


# -- the rest -------------------------------------------------------------------------------


def latency(port: int, size: int, how: str) -> Result:
    """From the server's write to `on_content` (`how`: `callback`) or `text_stream`, in µs."""
    taken: list[int] = []

    def on_content(delta: str) -> None:
        taken.append(time.monotonic_ns() - int(delta))

    told = {"on_content": on_content} if how == "callback" else {}
    with _chat(port, **told) as chat:
        turn = chat.send_message(chat.start_chat(f"latency:{size}:one"), "go")
        if how == "stream":
            for delta in turn.text_stream:
                on_content(delta)
        turn.wait()
    check(len(taken) == size, len(taken))
    return {"value": statistics.median(taken) / 1000}


def _resident() -> int:
    """The memory in use, in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no file of ours
        return int(file.read().split()[1]) * resource.getpagesize()


def idle_memory(port: int, size: int, _how: str) -> Result:
    """What each of `size` connected clients takes, in KiB."""

    def connected() -> FluxbaseAIChat:
        chat = _chat(port, on_content=lambda delta: None)  # noqa: ARG005
        chat.connect()
        return chat

    chats = [connected()]  # what the first one loads is no client's
    gc.collect()
    before = _resident()
    chats += [connected() for _ in range(size)]
    gc.collect()
    value = (_resident() - before) / size / 1024
    for chat in chats:
        chat.disconnect()
    return {"value": value}


def answer_memory(port: int, size: int, _how: str) -> Result:
    """The most memory that an answer of `size` bytes takes, in times its size."""
    with _chat(port) as chat:
        chat.send_message(chat.start_chat("text:100000:many"), "warm up").result()
        conversation_id = chat.start_chat(f"text:{size}:many")
        gc.collect()
        before = _resident()
        turn = chat.send_message(conversation_id, "go")
        reply = turn.result()
        check(len(reply.text) == size // 100 * 100, len(reply.text))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"value": (peak - before) / size}


def clients(port: int, size: int, how: str) -> Result:
    """`size` deltas to each of a hundred clients at once: the slowest, in times the median."""
    ends: list[float] = []
    number = int(how)
    chats = [_chat(port, on_done=lambda: ends.append(time.perf_counter())) for _ in range(number)]
    ids = [chat.start_chat(f"deltas:{size}:many") for chat in chats]
    start = time.perf_counter()
    turns = [chat.send_message(id_, "go") for chat, id_ in zip(chats, ids, strict=True)]
    for turn in turns:
        turn.wait()
        check(len(turn.text) == totals(size)[1], len(turn.text))
    for chat in chats:
        chat.disconnect()
    seconds = [end - start for end in ends]
    return {"value": max(seconds) / statistics.median(seconds)}


def importing(_port: int, _size: int, how: str) -> Result:
    """The seconds that an import takes, in ms, in a process that has imported nothing."""
    # As pip leaves a package: compiled. The first time is not counted.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-c", f"import {how}"], check=True)
    code = f"import time; t = time.perf_counter(); import {how}; print(time.perf_counter() - t)"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    return {"value": float(done.stdout) * 1000}


# -- what grows -----------------------------------------------------------------------------


def answer(port: int, size: int, _how: str) -> Result:
    """An answer of `size` bytes into `result()`."""
    seconds, reply = _turn(port, 1000, f"text:{size}:many", Turn.result)
    check(len(reply.text) == size // 100 * 100, len(reply.text))
    return {"units": size, "seconds": seconds}


def conversations(port: int, size: int, _how: str) -> Result:
    """`size` conversations on one client, each started and asked once."""
    with _chat(port, on_content=lambda delta: None) as chat:  # noqa: ARG005
        chat.send_message(chat.start_chat("deltas:20:many#warm"), "warm up").wait()
        start = time.perf_counter()
        for number in range(size):
            turn = chat.send_message(chat.start_chat(f"deltas:20:many#{number}"), "go")
            check(len(turn.result().text) == totals(20)[1], turn.text)
        return {"units": size, "seconds": time.perf_counter() - start}


MEASURES: dict[str, Callable[[int, int, str], Result]] = {
    function.__name__: function
    for function in (
        callbacks,
        busy,
        text_stream,
        result,
        on_event,
        iteration,
        rows,
        parser,
        latency,
        idle_memory,
        answer_memory,
        clients,
        importing,
        answer,
        conversations,
    )
}


def main() -> None:
    """Run one measurement."""
    name, port, size, how = [word for word in sys.argv[1:] if word != "--no-orjson"]
    print(json.dumps(MEASURES[name](int(port), int(size), how)))


if __name__ == "__main__":
    main()
