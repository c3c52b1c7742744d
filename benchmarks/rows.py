"""What is measured, and what DESIGN 6 asks of it: every row, its command, its target."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

__all__ = ["NODE", "NO_ORJSON", "Group", "Target", "groups"]

PEERS = Path(__file__).parent / "peers"

NODE = "Node.js on ws"
PLAIN = "websocket-client"
SYNC = "websockets.sync"
FLOOR = "raw socket, no checks"
NO_ORJSON = ", json only"

Command = Callable[[int], list[str]]
"""Makes a command line from the server's port."""
Figures = Mapping[str, float]
"""The median of each row of a group."""


@attrs.frozen
class Target:
    """A figure that is asked for."""

    what: str
    rows: tuple[str, ...]
    """The rows that it needs; without one of them it is not judged."""
    of: Callable[[Figures], float]
    limit: float
    at_least: bool = True
    unit: str = "times"


@attrs.frozen
class Group:
    """Rows that are compared with each other."""

    title: str
    unit: str
    rows: dict[str, Command]
    targets: tuple[Target, ...] = ()
    peers: tuple[str, ...] = ()
    """The rows to whose medians the others are compared."""
    rate: bool = True
    """Whether `units` a `seconds`, in thousands, is meant, and more is better; else `value`."""
    growth: bool = False
    """Whether the rows are one thing in growing sizes: what a unit costs is shown."""


def _ours(measure: str, size: int, how: object = "many", *flags: str) -> Command:
    return lambda port: [
        *(sys.executable, "-m", "benchmarks.client", measure, str(port), str(size), str(how)),
        *flags,
    ]


def _plain(peer: str, size: int, how: str = "many") -> Command:
    return lambda port: [
        *(sys.executable, "-m", "benchmarks.peers.plain", peer, str(port), str(size), how)
    ]


def _node(size: int, how: str) -> Command:
    return lambda port: ["node", str(PEERS / "node.js"), str(port), str(size), how]


def _ratio(name: str, peer: str, limit: float) -> Target:
    return Target(f"{name} / {peer}", (name, peer), lambda m: m[name] / m[peer], limit)


def _deltas(size: int, how: str) -> dict[str, Command]:
    rows = {}
    for measure, name in (
        ("callbacks", "on_content"),
        ("text_stream", "text_stream"),
        ("result", "result()"),
    ):
        rows[name] = _ours(measure, size, how)
        rows[name + NO_ORJSON] = _ours(measure, size, how, "--no-orjson")
    rows[NODE] = _node(size, how)
    rows[FLOOR] = _plain("floor", size, how)
    return rows


def groups(deltas: int, rows: int, scale: float) -> list[Group]:
    """Return all that is measured; `scale` makes what has no size of its own smaller."""

    def scaled(size: int) -> int:
        return max(10, int(size * scale))

    many = _deltas(deltas, "many")
    many[SYNC] = _plain("websockets", deltas)
    many[PLAIN] = _plain("websocket-client", deltas)
    one = _deltas(deltas, "one")
    ours = [name for name in one if name not in {NODE, FLOOR}]
    events = {
        f"{name}{suffix}": _ours(measure, deltas, "many", *flags)
        for measure, name in (("on_event", "on_event"), ("iteration", "for event in turn"))
        for suffix, flags in (("", ()), (NO_ORJSON, ("--no-orjson",)))
    }
    parsing = {
        f"query_results{NO_ORJSON}": _ours("rows", rows, "many", "--no-orjson"),
        "json alone": _ours("parser", rows, "many", "--no-orjson"),
        "raw socket and json": _plain("rows", rows, "json"),
        "query_results": _ours("rows", rows),
        "orjson alone": _ours("parser", rows),
        "raw socket and orjson": _plain("rows", rows, "orjson"),
    }
    pings = scaled(300)
    idle, big = scaled(100), scaled(64 * 2**20)
    return [
        Group(
            f"Deltas, many frames a server write ({deltas:,} a turn)",
            "thousand/s",
            many,
            tuple(
                target
                for name in ours
                for target in (_ratio(name, NODE, 1.5), _ratio(name, PLAIN, 20.0))
            ),
            (NODE, PLAIN, FLOOR),
        ),
        Group(
            f"Deltas, one frame a server write ({deltas:,} a turn)",
            "thousand/s",
            one,
            tuple(_ratio(name, NODE, 1.0) for name in ours),
            (NODE, FLOOR),
        ),
        Group(
            f"Events of deltas, many frames a server write ({deltas:,} a turn)",
            "thousand/s",
            {**events, NODE: many[NODE]},
            tuple(_ratio(name, NODE, 0.5) for name in events),
            (NODE,),
        ),
        Group(
            f"Rows of one result ({rows:,})",
            "thousand/s",
            parsing,
            (
                _ratio(f"query_results{NO_ORJSON}", "json alone", 0.9),
                _ratio("query_results", "orjson alone", 0.9),
            ),
            ("json alone", "orjson alone"),
        ),
        Group(
            "Latency: the server's write to the callback, median of a run",
            "µs",
            {
                "on_content": _ours("latency", pings, "callback"),
                "text_stream": _ours("latency", pings, "stream"),
                "blocking socket read": _plain("latency", pings),
            },
            tuple(
                Target(
                    f"{name} - blocking socket read",
                    (name, "blocking socket read"),
                    lambda m, name=name: m[name] - m["blocking socket read"],  # type: ignore[misc]
                    150.0,
                    at_least=False,
                    unit="µs",
                )
                for name in ("on_content", "text_stream")
            ),
            rate=False,
        ),
        Group(
            "Import",
            "ms",
            {
                "fluxbase_aichat": _ours("importing", 1, "fluxbase_aichat"),
                "websocket, attrs": _ours("importing", 1, "websocket, attrs"),
            },
            (
                Target(
                    "fluxbase_aichat - (websocket, attrs)",
                    ("fluxbase_aichat", "websocket, attrs"),
                    lambda m: m["fluxbase_aichat"] - m["websocket, attrs"],
                    25.0,
                    at_least=False,
                    unit="ms",
                ),
            ),
            rate=False,
        ),
        Group(
            f"Memory of each of {idle} idle clients",
            "KiB",
            {"resident": _ours("idle_memory", idle)},
            (
                Target(
                    "an idle client",
                    ("resident",),
                    lambda m: m["resident"],
                    100.0,
                    at_least=False,
                    unit="KiB",
                ),
            ),
            rate=False,
        ),
        Group(
            f"Memory of an answer of {big / 2**20:.3g} MiB, at its peak",
            "times its size",
            {"resident": _ours("answer_memory", big)},
            (
                Target(
                    "a large answer",
                    ("resident",),
                    lambda m: m["resident"],
                    2.5,
                    at_least=False,
                ),
            ),
            rate=False,
        ),
        Group(
            f"{idle} clients streaming at once: the slowest",
            "times the median",
            {"on_content": _ours("clients", scaled(20_000), idle)},
            (
                Target(
                    f"the slowest of {idle} clients",
                    ("on_content",),
                    lambda m: m["on_content"],
                    2.0,
                    at_least=False,
                ),
            ),
            rate=False,
        ),
        Group(
            "Beside a thread that computes without pause (no target)",
            "thousand/s",
            {"on_content": _ours("busy", deltas), "the same alone": many["on_content"]},
        ),
        Group(
            "An answer's cost, by its bytes",
            "ns",
            {
                f"{size / 1e6:g} MB": _ours("answer", size)
                for size in (scaled(10**6), scaled(10**7), scaled(10**8))
            },
            growth=True,
        ),
        Group(
            "A turn's cost, by its deltas",
            "ns",
            {
                f"{size:,} deltas": _ours("callbacks", size)
                for size in sorted({10, scaled(10**3), scaled(10**5), scaled(10**6)})
            },
            growth=True,
        ),
        Group(
            "A client's cost, by its conversations",
            "ns",
            {
                f"{size:,} conversations": _ours("conversations", size)
                for size in sorted({1, 10, 100 if scale >= 1 else 20, scaled(1000)})
            },
            growth=True,
        ),
    ]
