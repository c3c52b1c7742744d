"""Draws docs/protocol.svg, the states of one connection, from the table of its rules.

python docs/make_protocol_svg.py
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Final

from fluxbase_aichat import events
from fluxbase_aichat._protocol import ChatProtocol, Message, Rule, Start
from fluxbase_aichat._wire import Malformed

PICTURE = Path(__file__).with_name("protocol.svg")

Step = Callable[[ChatProtocol], bool]
"""Does something to a connection; says whether that was anybody's."""

_ID: Final = "c-1"
_PLACES: Final = {
    "idle": (110, 200),
    "starting": (400, 70),
    "answering": (400, 330),
    "cancelling": (720, 420),
    "over": (720, 200),
}
_WIDTH, _HEIGHT = 840, 480
_RADIUS_X, _RADIUS_Y = 66, 26
_LINE: Final = 15
_LOOKS: Final = """\
<style>
text { font: 13px sans-serif; text-anchor: middle; fill: #222 }
.state { font-weight: bold }
.label { paint-order: stroke; stroke: #fff; stroke-width: 5px }
path { fill: none; stroke: #666; stroke-width: 1.5; marker-end: url(#tip) }
ellipse { fill: #e8f0fb; stroke: #3465a4; stroke-width: 1.5 }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"
 orient="auto"><path d="M0 0L8 4L0 8z" style="fill: #666; stroke: none; marker-end: none"/></marker>
</defs>"""


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(svg(), encoding="utf-8")


# -- what the machine does ----------------------------------------------------------------------


def edges() -> dict[tuple[str, str], list[str]]:
    """Walk through the machine, and return what leads from which state to which."""
    found: dict[tuple[str, str], list[str]] = {}
    paths: dict[str, list[Step]] = {"idle": []}
    waiting = deque(paths)
    while waiting:
        before = waiting.popleft()
        for name, step in _steps().items():
            machine = _open()
            for earlier in paths[before]:
                earlier(machine)
            try:
                somebodys = step(machine)
            except ValueError:  # it is not allowed here
                continue
            after = _state(machine)
            # What ends a request of a connection that is ending anyway ends it for nobody.
            if after == before and (not somebodys or before == "cancelling"):
                continue
            found.setdefault((before, after), []).append(name)
            if after not in paths and after != "over":
                paths[after] = [*paths[before], step]
                waiting.append(after)
    return found


def _open() -> ChatProtocol:
    """Return a connection with a conversation that was started."""
    machine = ChatProtocol()
    _start(machine)
    machine.receive([events.ChatStarted(conversation_id=_ID)])
    return machine


def _state(machine: ChatProtocol) -> str:
    if machine.over:
        return "over"
    if machine.cancelling:
        return "cancelling"
    return {Start: "starting", Message: "answering"}.get(type(machine.unanswered), "idle")


def _steps() -> dict[str, Step]:
    """Return all that can happen: what is sent, each kind of message, and the end."""
    received = {_name(kind): _receive(kind, rule) for kind, rule in ChatProtocol.RULES.items()}
    return {
        "send start_chat": _start,
        "send message": _message,
        "send cancel": _cancel,
        **received,
        "content, progress, …": _receive(events.Content, ChatProtocol.OTHERS),
        "the end of the stream": _end,
    }


def _name(kind: type) -> str:
    return "what cannot be read" if kind is Malformed else str(kind().type)


def _receive(kind: type, rule: Rule) -> Step:
    item = Malformed("a drawing", 1002) if rule.breaks else kind(conversation_id=_ID)

    def step(machine: ChatProtocol) -> bool:
        return any(delivery.request is not None for delivery in machine.receive([item]))

    return step


def _start(machine: ChatProtocol) -> bool:
    return bool(machine.send(Start(chatbot="chatbot", conversation_id=_ID)))


def _message(machine: ChatProtocol) -> bool:
    return bool(machine.send(Message(conversation_id=_ID, content="?")))


def _cancel(machine: ChatProtocol) -> bool:
    request = machine.unanswered
    return isinstance(request, Message) and machine.cancel(request) is not None


def _end(machine: ChatProtocol) -> bool:
    return bool(machine.receive_end())


# -- the picture --------------------------------------------------------------------------------


def svg() -> str:
    """Return the picture, which loads nothing."""
    found = edges()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        "<title>The states of one connection</title>",
        _LOOKS,
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    labels = []
    for (before, after), names in found.items():
        path, x, y = _loop(before) if before == after else _arrow(before, after, found)
        parts.append(f'<path d="{path}"/>')
        labels += _label(x, y, names)
    for name, (x, y) in _PLACES.items():
        parts.append(f'<ellipse cx="{x}" cy="{y}" rx="{_RADIUS_X}" ry="{_RADIUS_Y}"/>')
        parts.append(f'<text class="state" x="{x}" y="{y + 5}">{name}</text>')
    return "\n".join([*parts, *labels, "</svg>", ""])


def _label(x: float, y: float, names: list[str]) -> list[str]:
    top = y - _LINE * (len(names) - 1) / 2 + 4
    return [
        f'<text class="label" x="{x:.0f}" y="{top + _LINE * number:.0f}">{escape(name)}</text>'
        for number, name in enumerate(names)
    ]


def _loop(state: str) -> tuple[str, float, float]:
    x, y = _PLACES[state]
    low = y + _RADIUS_Y
    path = f"M{x - 25} {low - 2}C{x - 50} {low + 55} {x + 50} {low + 55} {x + 25} {low - 1}"
    return path, x, low + 50


def _arrow(
    before: str, after: str, found: dict[tuple[str, str], list[str]]
) -> tuple[str, float, float]:
    (x1, y1), (x2, y2) = _PLACES[before], _PLACES[after]
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    # Where there is a way back, each bends to its own side.
    bend = 55 if (after, before) in found else 0
    middle_x = (x1 + x2) / 2 - (y2 - y1) / length * bend
    middle_y = (y1 + y2) / 2 + (x2 - x1) / length * bend
    start_x, start_y = _rim(x1, y1, middle_x, middle_y)
    end_x, end_y = _rim(x2, y2, middle_x, middle_y)
    path = f"M{start_x:.0f} {start_y:.0f}Q{middle_x:.0f} {middle_y:.0f} {end_x:.0f} {end_y:.0f}"
    return path, (start_x + 2 * middle_x + end_x) / 4, (start_y + 2 * middle_y + end_y) / 4


def _rim(x: float, y: float, to_x: float, to_y: float) -> tuple[float, float]:
    """Return where a line from a state's middle leaves its ellipse."""
    dx, dy = to_x - x, to_y - y
    scale = ((dx / _RADIUS_X) ** 2 + (dy / _RADIUS_Y) ** 2) ** 0.5
    return x + dx / scale, y + dy / scale


if __name__ == "__main__":
    main()
