"""Payload bytes to events, requests to payload bytes: the only JSON of the client.

It knows one message at a time. What a message means for a conversation is `_protocol`'s.
"""

from __future__ import annotations

import decimal
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn

import attrs

from . import events
from ._value import Value
from .errors import ConfigurationError, LocalProtocolError, RemoteProtocolError
from .results import IntentRule, QueryResult, Quota, QuotaCounter, ToolOutput, Usage

__all__ = [
    "ContentRun",
    "Decoder",
    "Item",
    "Malformed",
    "check_message",
    "encode_cancel",
    "encode_message",
    "encode_start",
    "fast_loads",
    "read_object",
    "write_object",
]


_new = object.__new__
_set_type, _set_conversation_id, _set_delta, _set_raw = (
    getattr(events.Content, name).__set__  # a slot's
    for name in ("type", "conversation_id", "delta", "raw")
)


@attrs.define(eq=False, repr=False)
class ContentRun(Value):
    """Neighbouring `content` messages that differ in nothing but their delta.

    Handing on the deltas as one list, and making `Content` events only for those who look at
    them, is what lets two threads keep pace with a fast server.
    """

    conversation_id: str
    deltas: list[str]
    rest: dict[str, Any] = attrs.field(repr=False)
    """The message without its delta."""

    def events(self) -> Iterator[events.Content]:
        """Make the events that the run stands for."""
        conversation_id, rest = self.conversation_id, self.rest
        for delta in self.deltas:
            # As Content(...), whose __init__ takes three times as long because it is frozen.
            raw = rest.copy()
            raw["delta"] = delta
            event = _new(events.Content)
            _set_type(event, "content")
            _set_conversation_id(event, conversation_id)
            _set_delta(event, delta)
            _set_raw(event, raw)
            yield event


@attrs.frozen(eq=False, repr=False)
class Malformed(Value):
    """What came is no message of this protocol; nothing after it can be trusted."""

    reason: str
    """Says what was wrong, without quoting what came."""
    close_code: int
    """What to close with (RFC 6455, 7.4.1): 1007 for bad UTF-8, 1002 for the rest."""


Item = events.Event | ContentRun | Malformed


class _UnusableError(Exception):
    """A field of a known message has a value that cannot be used. Never leaves this module."""


def _unusable(message: dict[str, Any], name: str) -> NoReturn:
    # The type is one of our own table; the value could be anybody's data.
    raise _UnusableError(f"a {message['type']} message has an unusable {name}")


def _text(message: dict[str, Any], name: str, *, required: bool = False) -> str:
    value = message.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        _unusable(message, name)
    return value


def _number(message: dict[str, Any], name: str) -> int:
    value = message.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        _unusable(message, name)
    return value


def _rows(message: dict[str, Any]) -> list[dict[str, Any]]:
    value = message.get("data")
    if value is None:
        return []
    if not isinstance(value, list) or not set(map(type, value)) <= {dict}:
        _unusable(message, "data")
    return value


def _usage(message: dict[str, Any]) -> Usage | None:
    value = message.get("usage")
    if value is None:
        return None
    if not isinstance(value, dict):
        _unusable(message, "usage")
    counts = {name: value.get(name) for name in attrs.fields_dict(Usage)}
    if any(isinstance(n, bool) or not isinstance(n, int | None) for n in counts.values()):
        _unusable(message, "usage")
    return Usage(**{name: count for name, count in counts.items() if count is not None})


# The fields of 2026.6 were read of and not recorded: one that looks otherwise than documented
# is left empty, and stays in `raw`, rather than failing an answer that is whole without it.


def _lenient_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _lenient_rules(value: object) -> tuple[IntentRule, ...]:
    if not isinstance(value, list):
        return ()
    names = attrs.fields_dict(IntentRule)
    return tuple(
        IntentRule(**{k: v for k, v in rule.items() if k in names and isinstance(v, str)})
        for rule in value
        if isinstance(rule, dict)
    )


def _lenient_quota(value: object) -> Quota | None:
    if not isinstance(value, dict):
        return None
    counters = {}
    for name in ("requests", "tokens"):
        counter = value.get(name)
        numbers = counter.items() if isinstance(counter, dict) else ()
        counters[name] = QuotaCounter(
            **{k: v for k, v in numbers if k in {"used", "limit"} and type(v) is int}
        )
    return Quota(**counters, resets_at=_lenient_text(value.get("resets_at")) or None)


def _query_result(message: dict[str, Any]) -> QueryResult:
    return QueryResult(
        query=_text(message, "query"),
        summary=_text(message, "summary"),
        row_count=_number(message, "row_count"),
        data=_rows(message),
    )


def _chat_started(message: dict[str, Any]) -> events.Event:
    return events.ChatStarted(
        conversation_id=_text(message, "conversation_id", required=True),
        chatbot=_text(message, "chatbot"),
        raw=message,
    )


def _empty_content(message: dict[str, Any]) -> events.Event:
    # With a delta it is part of a run; an empty one is left out by the server.
    return events.Content(
        conversation_id=_text(message, "conversation_id", required=True), raw=message
    )


def _progress(message: dict[str, Any]) -> events.Event:
    return events.Progress(
        conversation_id=_text(message, "conversation_id"),
        step=_text(message, "step"),
        message=_text(message, "message"),
        raw=message,
    )


def _query(message: dict[str, Any]) -> events.Event:
    return events.QueryResultEvent(
        conversation_id=_text(message, "conversation_id", required=True),
        result=_query_result(message),
        raw=message,
    )


def _tool(message: dict[str, Any]) -> events.Event:
    tool = _text(message, "message")
    # Only execute_sql gives a query; other tools have one row {"tool": …, "result": …}.
    query = _query_result(message) if message.get("query") else None
    return events.ToolResult(
        conversation_id=_text(message, "conversation_id", required=True),
        output=ToolOutput(tool=tool, data=_rows(message), query_result=query),
        raw=message,
    )


def _transition(message: dict[str, Any]) -> events.Event:
    value = message.get("agent_transition")
    change = value if isinstance(value, dict) else {}
    route = change.get("route")
    return events.AgentTransition(
        conversation_id=_text(message, "conversation_id"),
        agent=_lenient_text(message.get("agent")),
        from_agent=_lenient_text(change.get("from")),
        to_agent=_lenient_text(change.get("to")),
        route=tuple(a for a in route if isinstance(a, str)) if isinstance(route, list) else (),
        reason=_lenient_text(change.get("reason")),
        raw=message,
    )


def _thought(message: dict[str, Any]) -> events.Event:
    value = message.get("agent_thought")
    thought = value if isinstance(value, dict) else {}
    plan = thought.get("plan")
    return events.AgentThought(
        conversation_id=_text(message, "conversation_id"),
        agent=_lenient_text(thought.get("agent")),
        kind=_lenient_text(thought.get("kind")),
        delta=_lenient_text(thought.get("delta")),
        tool_name=_lenient_text(thought.get("tool_name")),
        tool_args=thought.get("tool_args"),
        plan=plan if isinstance(plan, dict) else None,
        raw=message,
    )


def _done(message: dict[str, Any]) -> events.Event:
    return events.Done(
        conversation_id=_text(message, "conversation_id", required=True),
        usage=_usage(message),
        matched_intent_rules=_lenient_rules(message.get("matched_intent_rules")),
        daily_quota=_lenient_quota(message.get("daily_quota")),
        raw=message,
    )


def _error(message: dict[str, Any]) -> events.Event:
    return events.ErrorEvent(
        conversation_id=_text(message, "conversation_id"),
        error=_text(message, "error") or "Unknown error",
        code=_text(message, "code"),
        raw=message,
    )


def _cancelled(message: dict[str, Any]) -> events.Event:
    return events.Cancelled(conversation_id=_text(message, "conversation_id"), raw=message)


_BUILDERS: dict[str, Callable[[dict[str, Any]], events.Event]] = {
    "chat_started": _chat_started,
    "content": _empty_content,
    "progress": _progress,
    "query_result": _query,
    "tool_result": _tool,
    "agent_transition": _transition,
    "agent_thought": _thought,
    "done": _done,
    "error": _error,
    "cancelled": _cancelled,
}


def _event(message: dict[str, Any]) -> events.Event:
    kind = message.get("type")
    build = _BUILDERS.get(kind) if isinstance(kind, str) else None
    if build is not None:
        return build(message)
    # What is unknown reaches the user and fails nothing, whatever its fields look like.
    return events.UnknownEvent(
        type=_lenient_text(kind),
        conversation_id=_lenient_text(message.get("conversation_id")),
        raw=message,
    )


def _constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _long_integer(digits: str) -> int | decimal.Decimal:
    # PostgreSQL's numeric has up to 131,072 digits. int() refuses more than 4,300, because its
    # time grows with their square; a Decimal keeps them all and takes none.
    try:
        return int(digits)
    except ValueError:
        return decimal.Decimal(digits)


# Maps a payload's digits to "0" and leaves only the minus beside them.
_DIGITS: Final = bytes(
    48 if 48 <= byte <= 57 else 45 if byte == 45 else 32  # noqa: PLR2004 - 0 to 9, and -
    for byte in range(256)
)


def _beyond_64_bits(payload: bytes) -> bool:
    """Whether there may be an integer that orjson would read as a float; seldom wrongly so."""
    digits = payload.translate(_DIGITS)
    return b"0" * 19 in digits and (b"0" * 20 in digits or b"-" + b"0" * 19 in digits)


def fast_loads() -> Callable[[bytes], Any] | None:
    """Return what orjson reads with, `None` where it is not installed; the first call loads it."""
    try:
        import orjson  # noqa: PLC0415 - the extra `speed`
    except ImportError:
        return None
    return orjson.loads


class Decoder:
    """Turns the payloads of one connection into items. Not thread-safe.

    With `exact_numbers`, numbers with a fraction become `decimal.Decimal` with all digits.

    There is a plain way, message by message, and two faster ones that give the same: a run of
    `content` messages is parsed in one call (`_deltas`), and orjson, where it is installed, parses
    the others. Whatever one of these does not understand goes the plain way.
    """

    def __init__(self, *, exact_numbers: bool = False) -> None:
        options: dict[str, Any] = {"parse_constant": _constant}
        if exact_numbers:
            options["parse_float"] = decimal.Decimal
        # A decoder of one's own and a str are almost twice as fast as json.loads(bytes).
        self._parse = json.JSONDecoder(**options).decode
        self._parse_long = json.JSONDecoder(**options, parse_int=_long_integer).decode
        # It follows 1,024 levels of nesting, json as many as Python's version lets it, about
        # 1,000: no message of a server has ten. It cannot keep the digits of a fraction.
        self._parse_fast = None if exact_numbers else fast_loads()
        # The last content message without its delta, and, once it has come twice, the bytes in
        # front of the delta's value if they alone say the same.
        self._rest: dict[str, Any] = {}
        self._head: bytes | None = None

    def decode(self, payloads: Sequence[bytes]) -> list[Item]:
        """Return what the payloads say, in order; a `Malformed` is always the last item."""
        items: list[Item] = []
        run: ContentRun | None = None  # what further deltas may be added to
        for item in self._items(payloads):
            if not isinstance(item, ContentRun):
                run = None
            elif run is not None and run.rest == item.rest:
                run.deltas.extend(item.deltas)
                continue
            else:
                # 1 equals True and 1.0 here, and not on the wire: only text is compared.
                plain = all(type(value) is str for value in item.rest.values())
                run = item if plain else None
            items.append(item)
            if isinstance(item, Malformed):
                break
        return items

    def _items(self, payloads: Sequence[bytes]) -> Iterator[Item]:
        """Yield what they say, deltas together where they can be parsed so."""
        deltas = self._deltas(payloads)  # nearly always all of them are deltas
        if deltas is not None:
            yield self._run(deltas)
            return
        position, count = 0, len(payloads)
        while position < count:
            end = position
            while end < count and self._head and payloads[end].startswith(self._head):
                end += 1
            deltas = self._deltas(payloads[position:end])
            if deltas is not None:
                yield self._run(deltas)
            else:
                end = max(end, position + 1)
                yield from map(self._item, payloads[position:end])
            position = end

    # -- message by message -----------------------------------------------------------------

    def _item(self, payload: bytes) -> Item:
        """Return what one payload says; of a delta, a run of one."""
        try:
            message = self._message(payload)
            if message.get("type") != "content" or message.get("delta") is None:
                return _event(message)
            conversation_id = _text(message, "conversation_id", required=True)
            delta = _text(message, "delta")
            del message["delta"]
            self._learn(payload, message)
            return ContentRun(conversation_id, [delta], message)
        except UnicodeDecodeError:
            return Malformed("a message is not valid UTF-8", 1007)
        except _UnusableError as error:
            return Malformed(str(error), 1002)
        except (ValueError, RecursionError):
            return Malformed("a message is not a JSON object", 1002)

    def _message(self, payload: bytes) -> dict[str, Any]:
        message = None
        if self._parse_fast is not None and not _beyond_64_bits(payload):
            try:
                message = self._parse_fast(payload)
            except ValueError:
                pass  # it refuses more than JSON does; what is wrong, if anything, json says
        if message is None:
            text = payload.decode()
            try:
                message = self._parse(text)
            except json.JSONDecodeError:
                raise
            except ValueError:
                message = self._parse_long(text)
        if not isinstance(message, dict):
            raise ValueError("not an object")  # noqa: TRY004 - caught in decode()
        return message

    # -- many deltas at once ----------------------------------------------------------------

    def _run(self, deltas: list[str]) -> ContentRun:
        return ContentRun(self._rest["conversation_id"], deltas, self._rest)

    def _learn(self, payload: bytes, rest: dict[str, Any]) -> None:
        """Learn the head of a message that came for the second time, with another delta."""
        if rest != self._rest:
            self._rest, self._head = rest, None
        elif self._head is None:
            self._head = b""  # not to be tried again
            head = payload[: payload.find(b'"delta":') + 8]
            plain = all(type(value) is str for value in rest.values())
            try:
                proved = self._parse(head.decode() + '""}') == {**rest, "delta": ""}
            except (ValueError, RecursionError):
                return  # something stands behind the delta
            if plain and proved:
                self._rest, self._head = rest, head

    def _deltas(self, payloads: Sequence[bytes]) -> list[str] | None:
        """Parse the deltas of payloads that differ in nothing else; `None` where they may.

        Each payload must be the head, one JSON string and `}`. The heads are taken off, and with
        `,` for the last byte of each the rest is the inside of one JSON array:

            HEAD"Hel"}          ["Hel",
            HEAD"lo"}     ->     "lo"]

        The newlines make that safe. There is one between two payloads and none inside of one, and
        none can stand inside a JSON string: so n strings from n payloads are one string each.
        """
        head, count = self._head, len(payloads)
        if not head or not count:
            return None
        inside = b"\n".join([payload.removeprefix(head) for payload in payloads])
        breaks = count - 1
        if (
            len(inside) != sum(map(len, payloads)) - count * len(head) + breaks
            or inside.count(b"\n") != breaks
            or inside.count(b"}\n") != breaks
            or not inside.endswith(b"}")
        ):
            return None
        try:
            array = b"[%b]" % inside[:-1].replace(b"}\n", b",\n")
            deltas: list[Any] = self._parse(array.decode())
        except (ValueError, RecursionError):
            return None
        return deltas if len(deltas) == count and set(map(type, deltas)) == {str} else None


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(
            f"the text has half of a surrogate pair at position {error.start}, "
            "which UTF-8 cannot carry; decode it properly first"
        ) from None


def _encode(message: dict[str, Any]) -> bytes:
    present = {name: value for name, value in message.items() if value is not None}
    try:
        return _utf8(_ENCODER.encode(present))
    except LocalProtocolError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise LocalProtocolError(f"page_context cannot be written as JSON: {error}") from None


def encode_start(
    chatbot: str,
    namespace: str,
    conversation_id: str | None = None,
    impersonate_user_id: str | None = None,
) -> bytes:
    """Write a `start_chat`; raise `LocalProtocolError` for text that UTF-8 cannot carry."""
    return _encode(
        {
            "type": "start_chat",
            "chatbot": chatbot,
            "namespace": namespace if namespace != "default" else None,
            "conversation_id": conversation_id,
            "impersonate_user_id": impersonate_user_id,
        }
    )


def encode_message(conversation_id: str, content: str, page_context: Any = None) -> bytes:
    """Write a `message`; raise `LocalProtocolError` for what JSON or UTF-8 cannot carry."""
    return _encode(
        {
            "type": "message",
            "conversation_id": conversation_id,
            "content": content,
            "page_context": page_context,
        }
    )


def check_message(content: object, page_context: Any) -> str:
    """Return the content if it can be sent, so that nothing fails later; raise if it cannot.

    Raises `ConfigurationError` for what is not text, `LocalProtocolError` for what cannot be
    written.
    """
    if not isinstance(content, str):
        raise ConfigurationError(f"content must be text (a str), not {type(content).__name__}")
    if page_context is None:
        _utf8(content)
    elif not isinstance(page_context, (str, dict)):
        what = type(page_context).__name__
        raise LocalProtocolError(f"page_context must be text or a dict, not {what}")
    else:
        encode_message("", content, page_context)
    return content


def encode_cancel(conversation_id: str) -> bytes:
    """Write a `cancel`."""
    return _encode({"type": "cancel", "conversation_id": conversation_id})


def read_object(body: bytes, *, exact_numbers: bool = False) -> dict[str, Any]:
    """Read the JSON object of a REST answer; raise `RemoteProtocolError` for anything else."""
    try:
        return Decoder(exact_numbers=exact_numbers)._message(body)  # noqa: SLF001 - of this module
    except (ValueError, RecursionError):
        raise RemoteProtocolError("the server's answer is not a JSON object", sent=True) from None


def write_object(values: dict[str, Any]) -> bytes:
    """Write the JSON object of a REST call; what is `None` is left out."""
    return _encode(values)
