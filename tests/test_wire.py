"""Payloads to events and requests to payloads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbase_aichat import events
from fluxbase_aichat._wire import (
    ContentRun,
    Decoder,
    Item,
    Malformed,
    check_message,
    encode_cancel,
    encode_message,
    encode_start,
)
from fluxbase_aichat.errors import ConfigurationError, LocalProtocolError
from fluxbase_aichat.results import (
    IntentRule,
    QueryResult,
    Quota,
    QuotaCounter,
    ToolOutput,
    Usage,
)

CID = "c-1"
SECRET = "s3cret"


def decode(*payloads: bytes | str | dict[str, Any], exact: bool = False) -> list[Item]:
    """Decode messages that come in one read."""
    return Decoder(exact_numbers=exact).decode([encoded(payload) for payload in payloads])


def encoded(payload: bytes | str | dict[str, Any]) -> bytes:
    """Return a message's bytes."""
    if isinstance(payload, bytes):
        return payload
    return (payload if isinstance(payload, str) else json.dumps(payload)).encode()


def one(payload: bytes | str | dict[str, Any], *, exact: bool = False) -> Item:
    """Decode one message."""
    (item,) = decode(payload, exact=exact)
    return item


def expanded(items: list[Item]) -> Iterator[Item]:
    """Make events of runs."""
    for item in items:
        if isinstance(item, ContentRun):
            yield from item.events()
        else:
            yield item


def exactly(value: Any) -> str:
    """Write a value so that 1, 1.0 and true differ, and -0.0 and 0.0, and the key order does not.

    In Python the first three are equal.
    """
    return json.dumps(value, sort_keys=True, default=repr)


# -- every type of message ----------------------------------------------------------------------

FULL: list[tuple[dict[str, Any], events.Event]] = [
    (
        {"type": "chat_started", "conversation_id": CID, "chatbot": "a"},
        events.ChatStarted(conversation_id=CID, chatbot="a"),
    ),
    (
        {"type": "progress", "conversation_id": CID, "step": "thinking", "message": "Thinking..."},
        events.Progress(conversation_id=CID, step="thinking", message="Thinking..."),
    ),
    (
        {"type": "content", "conversation_id": CID, "delta": "Hi <b>"},
        events.Content(conversation_id=CID, delta="Hi <b>"),
    ),
    (
        {
            "type": "query_result",
            "conversation_id": CID,
            "query": "SELECT 1",
            "summary": "Query returned 1 row(s)",
            "row_count": 1,
            "data": [{"n": 1}],
        },
        events.QueryResultEvent(
            conversation_id=CID,
            result=QueryResult("SELECT 1", "Query returned 1 row(s)", 1, [{"n": 1}]),
        ),
    ),
    (
        {
            "type": "tool_result",
            "conversation_id": CID,
            "message": "execute_sql",
            "query": "SELECT 1",
            "summary": "Returned 1 row(s)",
            "row_count": 1,
            "data": [{"n": 1}],
        },
        events.ToolResult(
            conversation_id=CID,
            output=ToolOutput(
                "execute_sql",
                [{"n": 1}],
                QueryResult("SELECT 1", "Returned 1 row(s)", 1, [{"n": 1}]),
            ),
        ),
    ),
    (
        {
            "type": "tool_result",
            "conversation_id": CID,
            "message": "think",
            "data": [{"tool": "think", "result": "hm"}],
        },
        events.ToolResult(
            conversation_id=CID, output=ToolOutput("think", [{"tool": "think", "result": "hm"}])
        ),
    ),
    (
        {
            "type": "agent_transition",
            "conversation_id": CID,
            "agent": "router",
            "agent_transition": {
                "from": "router",
                "to": "analyst",
                "route": ["router", "analyst"],
                "reason": "numbers",
                "page_context": {"page": 1},
            },
            "page_context": {"page": 1},
        },
        events.AgentTransition(
            conversation_id=CID,
            agent="router",
            from_agent="router",
            to_agent="analyst",
            route=("router", "analyst"),
            reason="numbers",
        ),
    ),
    (
        {
            "type": "agent_thought",
            "conversation_id": CID,
            "agent_thought": {
                "agent": "analyst",
                "kind": "tool_call",
                "delta": "I",
                "tool_name": "execute_sql",
                "tool_args": {"sql": "SELECT 1"},
                "plan": {"user_language": "en", "route": ["analyst"], "min_tool_calls": 1},
            },
        },
        events.AgentThought(
            conversation_id=CID,
            agent="analyst",
            kind="tool_call",
            delta="I",
            tool_name="execute_sql",
            tool_args={"sql": "SELECT 1"},
            plan={"user_language": "en", "route": ["analyst"], "min_tool_calls": 1},
        ),
    ),
    (
        {
            "type": "done",
            "conversation_id": CID,
            "usage": {
                "prompt_tokens": 4,
                "completion_tokens": 2,
                "total_tokens": 6,
                "cached_tokens": 3,
            },
            "matched_intent_rules": [
                {"keyword": "orders", "forbidden_tool": "execute_sql"},
                {
                    "keyword": "k",
                    "required_table": "t",
                    "forbidden_table": "f",
                    "required_tool": "r",
                },
            ],
            "daily_quota": {
                "requests": {"used": 1, "limit": 10},
                "tokens": {"used": 6, "limit": 1000},
                "resets_at": "2026-11-24T00:00:00Z",
            },
        },
        events.Done(
            conversation_id=CID,
            usage=Usage(4, 2, 6, 3),
            matched_intent_rules=(
                IntentRule("orders", forbidden_tool="execute_sql"),
                IntentRule("k", "t", "f", "r"),
            ),
            daily_quota=Quota(QuotaCounter(1, 10), QuotaCounter(6, 1000), "2026-11-24T00:00:00Z"),
        ),
    ),
    (
        {"type": "error", "conversation_id": CID, "error": "no", "code": "TURN_LIMIT"},
        events.ErrorEvent(conversation_id=CID, error="no", code="TURN_LIMIT"),
    ),
    ({"type": "cancelled", "conversation_id": CID}, events.Cancelled(conversation_id=CID)),
]

BARE: list[tuple[dict[str, Any], events.Event]] = [
    (
        {"type": "chat_started", "conversation_id": CID},
        events.ChatStarted(conversation_id=CID),
    ),
    ({"type": "progress"}, events.Progress()),
    ({"type": "content", "conversation_id": CID}, events.Content(conversation_id=CID)),
    (
        {"type": "query_result", "conversation_id": CID},
        events.QueryResultEvent(conversation_id=CID, result=QueryResult("", "", 0, [])),
    ),
    (
        {"type": "tool_result", "conversation_id": CID},
        events.ToolResult(conversation_id=CID, output=ToolOutput("", [], None)),
    ),
    ({"type": "agent_transition"}, events.AgentTransition()),
    ({"type": "agent_thought"}, events.AgentThought()),
    ({"type": "done", "conversation_id": CID}, events.Done(conversation_id=CID)),
    ({"type": "error"}, events.ErrorEvent(error="Unknown error")),
    ({"type": "cancelled"}, events.Cancelled()),
    ({"type": ""}, events.UnknownEvent()),
    ({}, events.UnknownEvent()),
]


def without_raw(item: Item) -> Any:
    """Return an event with nothing in `raw`."""
    assert isinstance(item, events.Event)
    return attrs.evolve(item, raw={})


def by_type(value: object) -> str | None:
    """Name a test's parameter by the message's type."""
    return str(value.get("type", "nothing")) if isinstance(value, dict) else "-"


@pytest.mark.parametrize(("message", "event"), [*FULL, *BARE], ids=by_type)
def test_messages(message: dict[str, Any], event: events.Event) -> None:
    """Each type with all of its fields, and with none but the ones it cannot do without."""
    (made,) = expanded(decode(message))
    assert event == without_raw(made)
    assert type(event) is type(made)
    assert message.get("type", "") == made.type  # type: ignore[union-attr]


@pytest.mark.parametrize(("message", "event"), [*FULL, *BARE], ids=by_type)
def test_raw(message: dict[str, Any], event: events.Event) -> None:
    """`raw` is the whole message as it came, with what this version does not know."""
    more = {**message, "message_id": "m-1", "news": {"of": ["2027"]}}
    (made,) = expanded(decode(more))
    assert exactly(more) == exactly(made.raw)  # type: ignore[union-attr]
    assert event == without_raw(made)


@pytest.mark.parametrize(("message", "event"), BARE, ids=by_type)
def test_nulls(message: dict[str, Any], event: events.Event) -> None:
    """A field that is null is one that was left out."""
    for full, of in FULL:
        if of.type == event.type:
            nulls = dict.fromkeys(full) | message
            (made,) = expanded(decode(nulls))
            assert event == without_raw(made)
            assert exactly(nulls) == exactly(made.raw)  # type: ignore[union-attr]


def test_usage() -> None:
    """Zeros are kept, a part is enough, and none is none."""
    for usage, expected in (
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(0, 0, 0)),
        ({}, Usage()),
        ({"total_tokens": 5}, Usage(0, 0, 5)),
        ({"total_tokens": 5, "cached_tokens": None, "thinking_tokens": 9}, Usage(0, 0, 5, None)),
        (None, None),
    ):
        done = one({"type": "done", "conversation_id": CID, "usage": usage})
        assert isinstance(done, events.Done)
        assert expected == done.usage


@pytest.mark.parametrize("kind", ["news", "message", "Content", "start_chat"])
def test_unknown_types(kind: str) -> None:
    """What is unknown is kept whole, whatever its fields look like."""
    message = {"type": kind, "conversation_id": CID, "delta": {"a": [1]}, "usage": "x", "data": 0}
    event = one(message)
    assert events.UnknownEvent(type=kind, conversation_id=CID, raw=message) == event
    odd = {"type": kind, "conversation_id": 7}
    assert events.UnknownEvent(type=kind, raw=odd) == one(odd)


@pytest.mark.parametrize("kind", [None, 7, True, ["content"], {"type": "done"}])
def test_types_that_are_no_text(kind: Any) -> None:
    """A type that is no text is unknown too."""
    message = {"type": kind, "conversation_id": CID}
    assert events.UnknownEvent(conversation_id=CID, raw=message) == one(message)


# -- what cannot be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        ("content", "delta", [1, True, [SECRET], {"x": SECRET}]),
        ("content", "conversation_id", [None, "", 7, [SECRET]]),
        ("chat_started", "conversation_id", [None, "", 7, {"x": SECRET}]),
        ("chat_started", "chatbot", [7, [SECRET]]),
        ("progress", "conversation_id", [7]),
        ("progress", "step", [7, {"x": SECRET}]),
        ("progress", "message", [True, [SECRET]]),
        ("query_result", "conversation_id", [None, "", 7]),
        ("query_result", "query", [7, [SECRET]]),
        ("query_result", "summary", [7, [SECRET]]),
        ("query_result", "row_count", ["1", 1.0, True, [SECRET]]),
        ("query_result", "data", [SECRET, {"x": SECRET}, [SECRET], [[SECRET]], [None], 0]),
        ("tool_result", "conversation_id", [None, "", 7]),
        ("tool_result", "message", [7, [SECRET]]),
        ("tool_result", "query", [7, [SECRET]]),
        ("tool_result", "data", [SECRET, [SECRET], 0]),
        ("done", "conversation_id", [None, "", 7]),
        ("done", "usage", [SECRET, [SECRET], 0, {"total_tokens": SECRET}, {"prompt_tokens": 1.5}]),
        ("done", "usage", [{"completion_tokens": True}, {"cached_tokens": [SECRET]}]),
        ("error", "error", [7, [SECRET]]),
        ("error", "code", [7, [SECRET]]),
        ("error", "conversation_id", [7, [SECRET]]),
        ("cancelled", "conversation_id", [7, [SECRET]]),
        ("agent_thought", "conversation_id", [7]),
        ("agent_transition", "conversation_id", [7]),
    ],
)
def test_unusable_fields(kind: str, field: str, values: list[Any]) -> None:
    """A known type with an unusable field names both, and quotes nothing that came (M05)."""
    for value in values:
        item = one({"type": kind, "conversation_id": CID, field: value})
        assert Malformed(f"a {kind} message has an unusable {field}", 1002) == item


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("agent_thought", {"agent_thought": SECRET}),
        ("agent_thought", {"agent_thought": {"agent": 7, "kind": [], "delta": {}, "plan": "x"}}),
        ("agent_transition", {"agent": 7, "agent_transition": [SECRET]}),
        ("agent_transition", {"agent_transition": {"from": 7, "to": [], "route": "x"}}),
        ("agent_transition", {"agent_transition": {"route": [7, None]}}),
        ("done", {"matched_intent_rules": SECRET, "daily_quota": SECRET}),
        ("done", {"matched_intent_rules": [SECRET, None]}),
        ("error", {"page_context": 7}),
    ],
)
def test_unrecorded_fields_are_lenient(kind: str, fields: dict[str, Any]) -> None:
    """What was only read of is empty when it looks otherwise, and fails no answer."""
    message = {"type": kind, "conversation_id": CID, **fields}
    event = one(message)
    assert isinstance(event, events.Event)
    (bare,) = (expected for sent, expected in BARE if sent.get("type") == kind)
    assert exactly(message) == exactly(event.raw)
    assert type(bare) is type(event)
    assert {**vars_of(bare), "conversation_id": CID} == vars_of(event)


def vars_of(event: events.Event) -> dict[str, Any]:
    """Return the fields of an event but `raw`."""
    return {k: v for k, v in attrs.asdict(event, recurse=False).items() if k != "raw"}


def test_quota_in_parts() -> None:
    """Counters of a quota that are no numbers are zero."""
    done = one(
        {
            "type": "done",
            "conversation_id": CID,
            "daily_quota": {"requests": {"used": 1, "limit": "many"}, "tokens": 7, "resets_at": 0},
            "matched_intent_rules": [{"keyword": "orders", "required_table": 7, "new": "x"}, 7],
        }
    )
    assert isinstance(done, events.Done)
    assert Quota(QuotaCounter(1, 0), QuotaCounter(), None) == done.daily_quota
    assert (IntentRule("orders"),) == done.matched_intent_rules


@pytest.mark.parametrize(
    "payload",
    [
        "",
        " ",
        "hello s3cret",
        "[]",
        '"content"',
        "7",
        "null",
        "true",
        '{"type":"content"',
        '{"type":"content"} {}',
        "{'type':'content'}",
        '{"type":"content",}',
        '{"type":"news","n":NaN}',
        '{"type":"news","n":Infinity}',
        '{"type":"news","n":-Infinity}',
        '{"type":"news","n":01}',
        '{"type":"news","t":"a\nb"}',
        "\ufeff{}",
        '{"type":"news","n":' + "[" * 200_000 + "]" * 200_000 + "}",
    ],
    ids=lambda payload: payload[:24] or "empty",
)
def test_what_is_no_json_object(payload: str) -> None:
    """It says so without quoting it (M01)."""
    assert Malformed("a message is not a JSON object", 1002) == one(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b'{"type":"content","conversation_id":"c-1","delta":"\xe2\x82"}',
        b'{"type":"content","conversation_id":"c-1","delta":"\x80"}',
        b'{"type":"news","t":"\xed\xa0\x80"}',
        b'{"type":"news","t":"\xc0\xaf"}',
        b'{"type":"content"}\xe2\x82',
    ],
)
def test_what_is_no_utf8(payload: bytes) -> None:
    """Bad bytes, halves of a character, surrogates and overlong forms close with 1007 (F07)."""
    assert Malformed("a message is not valid UTF-8", 1007) == one(payload)


def test_nothing_comes_after_malformed() -> None:
    """What came before it in the same read counts, and what comes after does not."""
    good = {"type": "content", "conversation_id": CID, "delta": "x"}
    items = decode(good, good, b"{", good, {"type": "done", "conversation_id": CID})
    assert 2 == len(items)
    assert isinstance(items[0], ContentRun)
    assert ["x", "x"] == items[0].deltas
    assert isinstance(items[1], Malformed)


def test_duplicate_fields() -> None:
    """The last one counts, as with every JSON parser of Python."""
    item = one('{"type":"content","type":"done","conversation_id":"x","conversation_id":"c-1"}')
    assert events.Done(conversation_id=CID, raw={"type": "done", "conversation_id": CID}) == item


def test_text() -> None:
    """All of Unicode, escaped or not, NUL and line ends included."""
    text = 'Béla 日本 😀 \x00 \n \u2028 " \\ \u007f'
    for ascii_only in (True, False):
        payload = json.dumps(
            {"type": "content", "conversation_id": CID, "delta": text}, ensure_ascii=ascii_only
        )
        (content,) = expanded(decode(payload))
        assert events.Content(conversation_id=CID, delta=text) == without_raw(content)
    go = '{"type":"content","conversation_id":"c-1","delta":"\\u003cb\\u003e\\u0026amp;"}'
    (content,) = expanded(decode(go))
    assert "<b>&amp;" == content.delta  # type: ignore[union-attr]


# -- numbers ------------------------------------------------------------------------------------


def numbers(text: str, *, exact: bool) -> Any:
    """Return the value of a cell that holds this."""
    event = one(
        '{"type":"query_result","conversation_id":"c-1","data":[{"n":' + text + "}]}", exact=exact
    )
    assert isinstance(event, events.QueryResultEvent)
    return event.result.data[0]["n"]


@pytest.mark.parametrize(
    ("text", "inexact", "exact"),
    [
        ("12.50", 12.5, Decimal("12.50")),
        ("0.1", 0.1, Decimal("0.1")),
        (
            "12345678901234567890.123456789",
            12345678901234567890.123456789,
            Decimal("12345678901234567890.123456789"),
        ),
        ("9007199254740993.0000", 9007199254740992.0, Decimal("9007199254740993.0000")),
        ("1e3", 1000.0, Decimal("1E+3")),
        ("-0.0", -0.0, Decimal("-0.0")),
        ("7", 7, 7),
        ("9223372036854775807", 9223372036854775807, 9223372036854775807),
        ("-9223372036854775809", -9223372036854775809, -9223372036854775809),
        ("[1, 2.5]", [1, 2.5], [1, Decimal("2.5")]),
        ("true", True, True),
        ("null", None, None),
    ],
)
def test_numbers(text: str, inexact: Any, exact: Any) -> None:
    """Integers are exact always, fractions when that was asked for."""
    for wanted, value in (
        (inexact, numbers(text, exact=False)),
        (exact, numbers(text, exact=True)),
    ):
        assert wanted == value
        assert repr(wanted) == repr(value)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("sign", ["", "-"])
def test_big_integers(exact: bool, sign: str) -> None:
    """PostgreSQL's numeric has up to 131,072 digits; beyond int()'s 4,300 it is a Decimal."""
    value = numbers(sign + "9" * 4_300, exact=exact)
    assert (int, (10**4_300 - 1) * (-1 if sign else 1)) == (type(value), value)
    digits = sign + "9" * 131_072
    value = numbers(digits, exact=exact)
    assert (Decimal, digits) == (type(value), str(value))


def test_big_integers_cost_no_more_than_their_length() -> None:
    """A message of nothing but digits is read at once: int() would take hours."""
    assert 10_000_000 == len(str(numbers("7" * 10_000_000, exact=False)))


def test_a_big_integer_among_others() -> None:
    """It changes nothing about its neighbours."""
    digits = "9" * 5_000
    inexact, exact = (numbers(f"[{digits}, 1.50, -2]", exact=exact) for exact in (False, True))
    assert [Decimal(digits), 1.5, -2] == inexact
    assert [Decimal(digits), Decimal("1.50"), -2] == exact
    assert [Decimal, Decimal, int] == [type(value) for value in exact]


def test_a_row_count_has_no_fraction() -> None:
    """Exact numbers change nothing about the counts."""
    event = one(
        {"type": "query_result", "conversation_id": CID, "row_count": 2, "data": []}, exact=True
    )
    assert isinstance(event, events.QueryResultEvent)
    assert (2, int) == (event.result.row_count, type(event.result.row_count))


def test_nesting() -> None:
    """Values as deep as any server writes are read."""
    deep: Any = 1
    for _ in range(100):
        deep = [{"a": deep}]
    assert deep == numbers(json.dumps(deep), exact=False)


# -- runs ---------------------------------------------------------------------------------------


def test_runs() -> None:
    """Neighbouring deltas that differ in nothing else are one run."""
    first = {"type": "content", "conversation_id": "c-1", "delta": "a"}
    items = decode(first, {**first, "delta": "b"}, {**first, "delta": "c"})
    assert [ContentRun("c-1", ["a", "b", "c"], {"type": "content", "conversation_id": "c-1"})] == (
        items
    )
    assert [{**first, "delta": delta} for delta in "abc"] == [
        event.raw  # type: ignore[union-attr]
        for event in expanded(items)
    ]


@pytest.mark.parametrize(
    "between",
    [
        {"type": "content", "conversation_id": "c-2", "delta": "b"},
        {"type": "content", "conversation_id": "c-1", "delta": "b", "message_id": "m-2"},
        {"type": "progress", "conversation_id": "c-1", "step": "generating"},
        {"type": "news"},
    ],
    ids=lambda between: between.get("message_id", between["type"]),
)
def test_what_ends_a_run(between: dict[str, Any]) -> None:
    """Another conversation, another field, another message."""
    delta = {"type": "content", "conversation_id": "c-1", "delta": "a"}
    items = decode(delta, between, delta)
    assert 3 == len(items)
    apart = [event for m in (delta, between, delta) for event in expanded(decode(m))]
    assert apart == list(expanded(items))


@pytest.mark.parametrize(
    ("one_way", "other_way"), [("1", "true"), ("0", "false"), ("1", "1.0"), ("0.0", "-0.0")]
)
def test_equal_in_python_is_not_the_same(one_way: str, other_way: str) -> None:
    """A field of a later server keeps its value: 1 is not true, though Python calls it equal."""
    delta = '{"type":"content","conversation_id":"c-1","delta":"a","news":%s}'
    payloads = [delta % one_way, delta % other_way]
    raws = [event.raw for event in expanded(decode(*payloads))]  # type: ignore[union-attr]
    assert [exactly(json.loads(payload)) for payload in payloads] == list(map(exactly, raws))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=3,
)
DELTAS = st.fixed_dictionaries(
    {"type": st.just("content"), "conversation_id": st.sampled_from(["c-1", "c-2"])},
    optional={
        "delta": st.text(max_size=3) | st.none(),
        "message_id": st.sampled_from(["m-1", "m-2"]),
        "news": st.sampled_from([0, 1, 2, "x"]),
    },
)
OTHERS = st.sampled_from([message for message, _ in FULL]) | st.fixed_dictionaries(
    {"type": st.sampled_from(["done", "progress", "news", "content"])},
    optional={"conversation_id": JSON, "delta": JSON, "usage": JSON, "step": JSON, "news": JSON},
)


@given(st.lists(DELTAS | OTHERS, max_size=8))
def test_runs_change_nothing(messages: list[dict[str, Any]]) -> None:
    """A batch gives the same events as its messages one by one, up to what cannot be read."""
    decoder = Decoder()
    together = list(expanded(decoder.decode([encoded(message) for message in messages])))
    apart: list[Item] = []
    for message in messages:
        apart += expanded(decoder.decode([encoded(message)]))
        if isinstance(apart[-1], Malformed):
            break
    assert apart == together


@given(st.lists(DELTAS, min_size=1, max_size=8))
def test_runs_lose_nothing(messages: list[dict[str, Any]]) -> None:
    """The text of a batch is the text of its messages, each in its conversation."""
    items = Decoder().decode([encoded(message) for message in messages])
    for cid in ("c-1", "c-2"):
        assert "".join(m.get("delta") or "" for m in messages if m["conversation_id"] == cid) == (
            "".join(
                event.delta
                for event in expanded(items)
                if isinstance(event, events.Content) and event.conversation_id == cid
            )
        )


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_any_object(message: dict[str, Any]) -> None:
    """Any JSON object is an event with the object in `raw`, or says what is wrong with it."""
    (item,) = expanded(decode(message))
    if not isinstance(item, Malformed):
        assert exactly(message) == exactly(item.raw)  # type: ignore[union-attr]


@given(st.binary(max_size=40))
def test_any_bytes(payload: bytes) -> None:
    """Nothing raises."""
    (item,) = decode(payload)
    assert isinstance(item, events.Event | ContentRun | Malformed)


# -- out ----------------------------------------------------------------------------------------


def test_encode_start() -> None:
    """What is absent is left out; `default` is absent."""
    assert {"type": "start_chat", "chatbot": "a"} == json.loads(encode_start("a", "default"))
    assert {
        "type": "start_chat",
        "chatbot": "a",
        "namespace": "shop",
        "conversation_id": CID,
        "impersonate_user_id": "bob",
    } == json.loads(encode_start("a", "shop", CID, "bob"))


def test_encode_cancel() -> None:
    """A cancel names its conversation."""
    assert {"type": "cancel", "conversation_id": CID} == json.loads(encode_cancel(CID))


@pytest.mark.parametrize("context", ["the orders page", {"page": "orders", "rows": [1, 2.5, None]}])
def test_encode_message(context: Any) -> None:
    """A page's context goes along as it is."""
    message = {"type": "message", "conversation_id": CID, "content": "Hi"}
    assert message == json.loads(encode_message(CID, "Hi"))
    assert {**message, "page_context": context} == json.loads(encode_message(CID, "Hi", context))


@given(st.text())
def test_any_text_goes_out(content: str) -> None:
    """NUL, emoji and line ends arrive as they were (M09)."""
    try:
        content.encode()
    except UnicodeEncodeError:
        with pytest.raises(LocalProtocolError):
            encode_message(CID, content)
    else:
        payload = encode_message(CID, content)
        assert content == json.loads(payload.decode())["content"]
        assert content == check_message(content, None)


def test_text_goes_out_as_utf8() -> None:
    """Text that is not ASCII is not blown up by escapes."""
    assert "Béla 日本 😀".encode() in encode_message(CID, "Béla 日本 😀")


@pytest.mark.parametrize("text", [chr(0xD800), "a" + chr(0xDFFF), chr(0xD83D) + "b"])
def test_half_a_surrogate_pair(text: str) -> None:
    """UTF-8 cannot carry it: it is refused before anything is written, everywhere."""
    for write in (
        lambda: encode_start(text, "default"),
        lambda: encode_start("a", text),
        lambda: encode_start("a", "default", text),
        lambda: encode_start("a", "default", None, text),
        lambda: encode_message(CID, text),
        lambda: encode_message(CID, "Hi", text),
        lambda: encode_message(CID, "Hi", {"page": text}),
        lambda: encode_message(CID, "Hi", {text: 1}),
        lambda: check_message(text, None),
        lambda: check_message("Hi", {"page": text}),
    ):
        with pytest.raises(LocalProtocolError, match="surrogate") as refused:
            write()
        assert refused.value.sent is False


def loop() -> list[Any]:
    """Return a list that holds itself."""
    ring: list[Any] = []
    ring.append(ring)
    return ring


def deep() -> Any:
    """Return what is nested too deep."""
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "context", [{1, 2}, {"x": object()}, float("nan"), float("inf"), b"x", loop(), {(1, 2): 3}]
)
def test_contexts_that_are_no_json(context: Any) -> None:
    """They are refused before anything is written."""
    for write in (encode_message, lambda _, content, c: check_message(content, c)):
        with pytest.raises(LocalProtocolError, match="page_context"):
            write(CID, "Hi", context)


def test_a_context_that_is_too_deep() -> None:
    """It is refused, and nothing else breaks."""
    with pytest.raises(LocalProtocolError, match="page_context"):
        encode_message(CID, "Hi", deep())


@pytest.mark.parametrize("content", [None, 7, b"Hi", ["Hi"]])
def test_content_that_is_no_text(content: Any) -> None:
    """It names the type that it got."""
    with pytest.raises(ConfigurationError, match=type(content).__name__):
        check_message(content, None)
