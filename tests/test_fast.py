"""The fast ways change no result: they and the plain way are fed the same, however hostile.

The plain way is the same code without its short cuts: every frame read by websocket-client, every
message parsed alone, by the standard library's `json`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import pytest
from helpers import run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

from fluxbase_aichat import _transport, events
from fluxbase_aichat._deadline import Deadline
from fluxbase_aichat._handshake import Redactor
from fluxbase_aichat._net import Waker
from fluxbase_aichat._transport import Transport
from fluxbase_aichat._wire import ContentRun, Decoder, Item, Malformed
from fluxbase_aichat.config import Settings

CID = "c-1"
HEAD = b'{"type":"content","conversation_id":"c-1","delta":'


# -- payloads to items --------------------------------------------------------------------------


class PlainDecoder(Decoder):
    """A decoder without short cuts."""

    def __init__(self, *, exact_numbers: bool = False) -> None:
        super().__init__(exact_numbers=exact_numbers)
        self._parse_fast = None

    def _deltas(self, _payloads: Sequence[bytes]) -> list[str] | None:
        return None


def fast_decoder(*, exact_numbers: bool, speed: bool) -> Decoder:
    """Return a decoder as it is with the extra `speed`, or without."""
    with pytest.MonkeyPatch.context() as patch:
        if not speed:
            patch.setitem(sys.modules, "orjson", None)  # so that importing it fails
        decoder = Decoder(exact_numbers=exact_numbers)
    assert (decoder._parse_fast is not None) is (speed and not exact_numbers)
    return decoder


def exactly(value: Any) -> Any:
    """Return a value in which 1, 1.0 and true differ, and 0.0 and -0.0, and the order of keys."""
    if isinstance(value, dict):
        return [(key, exactly(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [type(value), *map(exactly, value)]
    if attrs.has(type(value)):
        return type(value), [
            (f.name, exactly(getattr(value, f.name))) for f in attrs.fields(type(value))
        ]
    return type(value), repr(value)


def decoded(decoder: Decoder, batches: Iterable[Sequence[bytes]]) -> list[Any]:
    """Decode batches up to the first that is malformed; deltas run on, batch by batch."""
    found = []
    for batch in batches:
        items: list[Item] = decoder.decode(batch)
        # The runs themselves, and the events that they stand for.
        found.append([exactly(item) for item in items])
        made = [list(item.events()) if isinstance(item, ContentRun) else item for item in items]
        found.append(exactly(made))
        if items and isinstance(items[-1], Malformed):
            break
    return found


def written(message: Any, *, ascii_only: bool = False, spaces: bool = False) -> bytes:
    """Write JSON in one of the ways it can be written."""
    separators = (", ", ": ") if spaces else (",", ":")
    text = json.dumps(message, ensure_ascii=ascii_only, separators=separators)
    return text.encode("utf-8", "surrogatepass")  # which is no valid UTF-8 then


texts = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(codec=None), max_size=4),  # halves of surrogate pairs too
    st.sampled_from(["", '"', "\\", "}\n", "\n", "\x00", "\x7f", "é", "日本", "🎉", HEAD.decode()]),
)
numbers = st.one_of(
    st.integers(),
    st.integers(-(2**80), 2**80),
    st.integers(2**63 - 2, 2**64 + 2),
    st.integers(-(2**63) - 2, -(2**63) + 2),
    st.floats(),  # NaN and the infinities, which are no JSON
    st.decimals(allow_nan=False, allow_infinity=False).map(str).map(lambda s: f"\0{s}\0"),
    st.sampled_from(["1" * 5000, "0." + "3" * 400, "-0", "-0.0", "1e400", "1E-400", "01", "-"]).map(
        lambda s: f"\0{s}\0"
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def unquoted(payload: bytes) -> bytes:
    """Make bare numbers of strings between zero characters: digits that Python cannot hold."""
    return payload.replace(b'"\\u0000', b"").replace(b'\\u0000"', b"")


plain_content = texts.map(lambda delta: {"type": "content", "conversation_id": CID, "delta": delta})
any_content = st.fixed_dictionaries(
    {"type": st.just("content"), "conversation_id": st.sampled_from([CID, "c-2", "", 1])},
    optional={"message_id": values, "delta": texts | values},
)
any_message = st.fixed_dictionaries(
    {"type": st.sampled_from(["progress", "query_result", "tool_result", "done", "error", "new"])},
    optional={
        "conversation_id": st.just(CID),
        "data": values | st.lists(st.dictionaries(texts, values, max_size=3), max_size=3),
        "usage": values,
        "row_count": numbers,
        "step": texts,
        "message": texts,
    },
)
# What would be taken for deltas, or for one delta, or for none, by a careless look.
HOSTILE_PIECES = [
    b'"a"}', b'"a","b"}', b'"a"', b"}", b" }", b'"a"} ', b' "a" }', b'"a"}}', b'["a"]}', b"1}",
    b"null}", b'"a"}\n' + HEAD + b'"b"}', b'"a"\n}', b'\n"a"}', b'"a\n"}', b'"a\x01"}', b'"\xc3"}',
    b'"\xff"}', b'"\xe6\x97', b'\xa5"}', b'"a","delta":"b"}', b'"a","x":1}', b'{"a":"b"}}', b"",
    b'"\\ud83c\\udf89"}', b'"\\ud83c"}', b'"\\', b'"\\"}', b'"a"},', b',"a"}', b'"a"]}', b'["a"}',
    b'"a"}, "b"}', b"[" * 1100 + b'"a"' + b"]" * 1100 + b"}", b'"a"}\n', b'"a"}\n"b"}', b'""}',
]  # fmt: skip
hostile = st.one_of(
    st.builds(
        lambda head, piece: head + piece,
        st.sampled_from(
            [
                HEAD,
                HEAD.replace(b"c-1", b"c-2"),
                b'{"type":"content","delta":',
                b"",
                HEAD[:-1],
                b" " + HEAD,
            ]
        ),
        st.sampled_from(HOSTILE_PIECES),
    ),
    st.sampled_from(
        [
            b'{"delta":"a","type":"content","conversation_id":"c-1"}',
            b'{"type":"content","conversation_id":"c-1","delta":"a","delta":"b"}',
            b'{"delta":"x","type":"content","conversation_id":"c-1","delta":"b"}',
            b'{"type":"content","conversation_id":"c-1","m":{"delta":"x"},"delta":"a"}',
            b'{"type":"content","conversation_id":"c-1","delta":"\\"delta\\":"}',
            b'{"type":"error","type":"content","conversation_id":"c-1","delta":"a"}',
            b"{}",
            b"[]",
            b"1",
            b'"a"',
            b"null",
            b"\xef\xbb\xbf{}",
            b"{",
            b"",
            b"\x00",
            b"\n",
        ]
    ),
    st.binary(max_size=6),
)
payloads = st.one_of(
    st.builds(written, plain_content),
    st.builds(written, plain_content),
    st.builds(written, plain_content, ascii_only=st.booleans(), spaces=st.booleans()),
    st.builds(written, any_content, ascii_only=st.just(True)).map(unquoted),
    st.builds(written, any_message, ascii_only=st.just(True)).map(unquoted),
    hostile,
)
# Most rows begin well, so that the head has been learned when it gets hostile.
GOOD = [HEAD + b'"a"}', HEAD + b'"b"}']
rows = st.builds(
    lambda good, others: [*good, *others],
    st.sampled_from([[], GOOD, GOOD]),
    st.lists(payloads, max_size=12),
)


def batches_of(row: list[bytes], cuts: list[int]) -> list[list[bytes]]:
    """Cut a row of payloads into batches, as reads of a socket do."""
    edges = [0, *sorted(min(cut, len(row)) for cut in cuts), len(row)]
    return [row[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("speed", [False, True])
@settings(max_examples=400)
@given(rows, st.lists(st.integers(0, 14), max_size=4))
@example([*GOOD, HEAD + b'"a"}\n' + HEAD + b'"b"}', HEAD + b'"c"', b" }"], [2])
@example([*GOOD, HEAD + b'"a","b"}', HEAD + b'"c"', b" }"], [2])
@example([*GOOD, HEAD + b'"a"}', b'"b"}'], [2])
def test_decoding_in_runs_changes_nothing(speed, exact, row, cuts) -> None:
    """Deltas decoded together, and messages by orjson, are what each alone gives by `json`."""
    batches = batches_of(row, cuts)
    expected = decoded(PlainDecoder(exact_numbers=exact), batches)
    assert expected == decoded(fast_decoder(exact_numbers=exact, speed=speed), batches)


@pytest.mark.parametrize("first", HOSTILE_PIECES)
def test_two_hostile_payloads_beside_each_other(first) -> None:
    """Every pair of hostile pieces, which together could look like whole deltas."""
    for second, head in itertools.product(HOSTILE_PIECES, [HEAD, b""]):
        row = [*GOOD, HEAD + first, head + second, HEAD + b'"z"}']
        batches = batches_of(row, [2])
        expected = decoded(PlainDecoder(), batches)
        assert expected == decoded(fast_decoder(exact_numbers=False, speed=True), batches)


def test_a_long_run_is_one_item() -> None:
    """A thousand deltas are one run, whose events are those of the plain way."""
    row = [
        written({"type": "content", "conversation_id": CID, "delta": f"{n}é"}) for n in range(1000)
    ]
    (run,) = Decoder().decode(row)
    assert isinstance(run, ContentRun)
    assert [f"{n}é" for n in range(1000)] == run.deltas
    assert decoded(PlainDecoder(), [row]) == decoded(Decoder(), [row])


def test_runs_are_parsed_in_one_call() -> None:
    """What is behind the first two deltas is not parsed message by message."""
    decoder = Decoder()
    decoder.decode(GOOD)
    decoder._item = None  # the plain way is not there any more
    decoder.decode(GOOD * 100)


@pytest.mark.parametrize("number", [2**63, 2**64, 10**19, 10**30, -(2**63) - 1, -(10**19)])
def test_integers_beyond_64_bits_are_exact(number) -> None:
    """An integer that orjson would read as a float keeps its digits."""
    row = [written({"type": "query_result", "conversation_id": CID, "data": [{"n": number}]})]
    (event,) = fast_decoder(exact_numbers=False, speed=True).decode(row)
    assert isinstance(event, events.QueryResultEvent)
    assert exactly([{"n": number}]) == exactly(event.result.data)


def test_an_event_of_a_run_is_complete() -> None:
    """It has all that a `Content` made in the usual way has."""
    (event,) = ContentRun(CID, ["a"], {"type": "content", "conversation_id": CID}).events()
    raw = {"type": "content", "conversation_id": CID, "delta": "a"}
    assert exactly(events.Content(conversation_id=CID, delta="a", raw=raw)) == exactly(event)


# -- bytes to payloads --------------------------------------------------------------------------


@contextlib.contextmanager
def opened(limit: int = 1 << 20) -> Iterator[tuple[Transport, socket.socket]]:
    """Give a transport whose connection is open, and the server's end of it."""
    settings = Settings(endpoint="ws://127.0.0.1")
    ours, theirs = socket.socketpair()
    waker = Waker()
    ours.setblocking(False)
    guard = _transport._GuardedSocket(ours, settings, None, Deadline(None), waker)
    guard.opening = False
    ws = _transport._WebSocket(limit)
    ws.sock, ws.connected = guard, True
    transport = Transport(
        ours, ws, guard, waker, limit=limit, clock=lambda: 0.0, redact=Redactor(settings, None)
    )
    try:
        yield transport, theirs
    finally:
        transport.close()
        waker.close()
        theirs.close()


def received(pieces: Iterable[bytes], limit: int) -> tuple[list[bytes], str, int]:
    """Return what a transport makes of bytes: payloads, why it ended, and pongs."""
    found: list[bytes] = []
    with opened(limit) as (transport, theirs):
        for piece in (p[at : at + 32768] for p in pieces for at in range(0, len(p), 32768)):
            theirs.sendall(piece)
            found += transport.receive()
            while transport.unread and transport.end is None:
                found += transport.receive()
            if transport.end is not None:
                break
        return found, repr(transport.end), transport.pongs


def test_who_writes_quickly_is_read_less_often(monkeypatch) -> None:
    """After a few messages at once it waits for more; after one, or many, it does not."""
    naps: list[float] = []
    monkeypatch.setattr(_transport, "time", types.SimpleNamespace(sleep=naps.append))
    with opened() as (transport, theirs):
        for count, size, seconds, expected in [
            (1, 100, None, []),
            (7, 100, None, []),
            (8, 100, None, [0.003]),
            (8, 100, 0.001, [0.001]),
            (8, 20_000, None, []),
        ]:
            naps.clear()
            sender = run(theirs.sendall, frame(TEXT, b"x" * size) * count)
            found: list[bytes] = []
            while len(found) < count:
                naps.clear()
                transport.wait(None, streaming=True)
                found += transport.receive()
            sender.result()
            theirs.sendall(frame(PONG, b""))  # so that the wait ends
            transport.wait(seconds, streaming=True)
            assert expected == naps, (count, size)
            transport.receive()
        theirs.sendall(frame(TEXT, b"x") * 8)
        transport.wait(None)
        transport.receive()
        naps.clear()
        transport.wait(0.0)  # the answer is whole, and the next request waits for nothing
        transport.send(b"Hi")
        transport.flush()
        transport.wait(0.0, streaming=True)
        assert [] == naps


def masked(payload: bytes) -> bytes:
    """Return a text frame with a mask, which no server may send."""
    key = b"\x01\x02\x03\x04"
    size = len(payload)
    head = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return b"\x81" + head + key + bytes(c ^ key[i % 4] for i, c in enumerate(payload))


bodies = st.one_of(
    st.binary(max_size=10),
    st.integers(120, 130).map(lambda size: b"x" * size),
    st.sampled_from([b"", b"\x81\x05", b"\xff\xfe", HEAD + b'"a"}', b"y" * 300, b"z" * 70_000]),
)
frames = st.one_of(
    st.builds(frame, st.just(TEXT), bodies),
    st.builds(frame, st.just(TEXT), bodies),
    st.builds(
        frame,
        st.sampled_from([TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE, 3, 0xF]),
        bodies,
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 4, 1]),
    ),
    st.builds(masked, bodies.filter(lambda body: len(body) < 65536)),
    # The same lengths in more bytes than they need.
    bodies.map(lambda body: b"\x81\x7f" + len(body).to_bytes(8) + body),
    st.binary(max_size=9).map(lambda body: b"\x81\x7e" + len(body).to_bytes(2) + body),
    st.sampled_from([frame(TEXT, length=1 << 40), b"\x81", b"\x81\x7e", b"\x81\x7e\x00"]),
    st.lists(bodies, min_size=2, max_size=4).map(
        lambda parts: b"".join(
            frame(CONTINUATION if n else TEXT, part, fin=n == len(parts) - 1) + frame(PING, b"p")
            for n, part in enumerate(parts)
        )
    ),
)


@settings(max_examples=300)
@given(
    st.lists(frames, max_size=8).map(b"".join),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from([5, 100, 125, 126, 200, 65_535, 1 << 20]),
)
def test_cutting_frames_changes_nothing(stream, cuts, limit) -> None:
    """Text frames cut out of the buffer are what websocket-client makes of the same bytes."""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges) if a < b]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_transport, "_TEXT_FIN", -1)  # no frame is taken for a simple one
        expected = received(pieces, limit)
    assert expected == received(pieces, limit)
