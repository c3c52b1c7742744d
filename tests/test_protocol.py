"""`ChatProtocol`: whose answer a message is, and what may be sent when."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fluxbase_aichat import errors, events
from fluxbase_aichat._protocol import ChatProtocol, Delivery, Message, Request, Start, error_of
from fluxbase_aichat._wire import Decoder, Item, Malformed
from fluxbase_aichat.errors import (
    FluxbaseChatError,
    IdentityConflictError,
    LocalProtocolError,
    RemoteProtocolError,
    ServerError,
)

MALFORMED = Malformed("a message is not a JSON object", 1002)


def items(*messages: dict[str, Any]) -> list[Item]:
    """Return what the decoder makes of the server's messages."""
    return Decoder().decode([json.dumps(message).encode() for message in messages])


def started(conversation_id: str) -> dict[str, Any]:
    """Return the answer to a start."""
    return {"type": "chat_started", "conversation_id": conversation_id}


def content(conversation_id: str, delta: str = "x") -> dict[str, Any]:
    """Return a delta."""
    return {"type": "content", "conversation_id": conversation_id, "delta": delta}


def done(conversation_id: str) -> dict[str, Any]:
    """Return the end of a turn."""
    return {"type": "done", "conversation_id": conversation_id}


def error(conversation_id: str = "", code: str = "") -> dict[str, Any]:
    """Return an error."""
    return {"type": "error", "conversation_id": conversation_id, "error": "no", "code": code}


def cancelled(conversation_id: str) -> dict[str, Any]:
    """Return the answer to a cancel."""
    return {"type": "cancelled", "conversation_id": conversation_id}


def whose(deliveries: list[Delivery]) -> list[tuple[Request | None, bool]]:
    """Return the requests and whether they end."""
    return [(delivery.request, delivery.final) for delivery in deliveries]


def message(conversation_id: str = "c-1") -> Message:
    """Return a turn."""
    return Message(conversation_id=conversation_id, content="Hello")


def with_conversation(
    *conversation_ids: str, chatbot: str = "a", depth: int = 1, **start: Any
) -> ChatProtocol:
    """Return the protocol of a connection on which these were started."""
    protocol = ChatProtocol(depth=depth)
    for conversation_id in conversation_ids:
        protocol.send(Start(chatbot=chatbot, **start))
        protocol.receive(items(started(conversation_id)))
    return protocol


def look(protocol: ChatProtocol) -> tuple[Any, ...]:
    """Return all that can be seen of a protocol."""
    seen = {
        name: value.copy() if hasattr(value, "copy") else value
        for name, value in vars(protocol).items()
    }
    return (seen, protocol.unanswered, protocol.ready, protocol.cancelling)


# -- what may be sent ---------------------------------------------------------------------------


def running() -> ChatProtocol:
    """A turn is running."""
    protocol = with_conversation("c-1")
    protocol.send(message())
    return protocol


def starting() -> ChatProtocol:
    """A start is unanswered."""
    protocol = ChatProtocol()
    protocol.send(Start(chatbot="a"))
    return protocol


def giving_up() -> ChatProtocol:
    """A start is unanswered, and nobody waits for it any more."""
    protocol = starting()
    assert protocol.unanswered is not None
    protocol.unanswered.silenced = True
    return protocol


def cancelling() -> ChatProtocol:
    """A turn was cancelled, and goes on at the server."""
    protocol = with_conversation("c-1")
    turn = message()
    protocol.send(turn)
    protocol.cancel(turn)
    return protocol


def drained() -> ChatProtocol:
    """A cancelled turn has ended, and the stream has not."""
    protocol = cancelling()
    protocol.receive(items(done("c-1"), cancelled("c-1")))
    return protocol


def ended() -> ChatProtocol:
    """The stream has ended."""
    protocol = with_conversation("c-1")
    protocol.receive_end()
    return protocol


def broken() -> ChatProtocol:
    """The server has broken the protocol."""
    protocol = with_conversation("c-1")
    protocol.receive([MALFORMED])
    return protocol


@pytest.mark.parametrize("made", [running, starting, giving_up, cancelling, drained, ended, broken])
@pytest.mark.parametrize("request_", [Start(chatbot="a"), message()], ids=["start", "message"])
def test_illegal_times(made: Callable[[], ChatProtocol], request_: Request) -> None:
    """Only one request at a time, and none when the connection is closing."""
    protocol = made()
    before = look(protocol)
    assert not protocol.ready
    with pytest.raises(LocalProtocolError) as refused:
        protocol.send(request_)
    assert refused.value.sent is False
    assert before == look(protocol)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (message("c-2"), LocalProtocolError),
        (Start(chatbot="a", impersonate_user_id="bob"), IdentityConflictError),
        (Start(chatbot="a\ud800"), LocalProtocolError),
        (Message(conversation_id="c-1", content="\udfff"), LocalProtocolError),
        (Message(conversation_id="c-1", content="x", page_context={1, 2}), LocalProtocolError),
        (
            Message(conversation_id="c-1", content="x", page_context=float("nan")),
            LocalProtocolError,
        ),
    ],
)
def test_illegal_requests(request_: Request, expected: type[FluxbaseChatError]) -> None:
    """What cannot be asked for raises, and the connection is as it was."""
    protocol = with_conversation("c-1")
    before = look(protocol)
    with pytest.raises(expected) as refused:
        protocol.send(request_)
    assert (expected, False) == (type(refused.value), refused.value.sent)
    assert before == look(protocol)
    assert protocol.send(message())


def test_depth() -> None:
    """A recorded client wrote ahead; its depth bounds what is unanswered."""
    protocol = ChatProtocol(depth=2)
    first, second = Start(chatbot="a"), Start(chatbot="b")
    protocol.send(first)
    assert protocol.ready
    protocol.send(second)
    assert not protocol.ready
    assert first is protocol.unanswered
    assert [(first, True)] == whose(protocol.receive(items(started("c-1"))))
    assert second is protocol.unanswered
    assert protocol.ready


def test_frames() -> None:
    """What is written holds what was asked, and nothing that is empty."""
    protocol = ChatProtocol()
    start = Start(chatbot="a", namespace="shop", conversation_id="c-1", impersonate_user_id="bob")
    assert {
        "type": "start_chat",
        "chatbot": "a",
        "namespace": "shop",
        "conversation_id": "c-1",
        "impersonate_user_id": "bob",
    } == json.loads(protocol.send(start))
    protocol.receive(items(started("c-1")))
    turn = Message(conversation_id="c-1", content="Hello", page_context={"page": 1})
    assert {
        "type": "message",
        "conversation_id": "c-1",
        "content": "Hello",
        "page_context": {"page": 1},
    } == json.loads(protocol.send(turn))
    payload = protocol.cancel(turn)
    assert payload is not None
    assert {"type": "cancel", "conversation_id": "c-1"} == json.loads(payload)
    assert {"type": "start_chat", "chatbot": "a"} == json.loads(
        ChatProtocol().send(Start(chatbot="a", namespace="default"))
    )


# -- whose it is --------------------------------------------------------------------------------


def test_a_turn() -> None:
    """Everything that names the conversation is the turn's; `done` ends it."""
    protocol = with_conversation("c-1")
    turn = message()
    protocol.send(turn)
    others = [
        {"type": kind, "conversation_id": "c-1"}
        for kind in ("progress", "query_result", "agent_thought", "agent_transition", "new")
    ]
    tool = {"type": "tool_result", "conversation_id": "c-1"}
    deliveries = protocol.receive(items(*others, content("c-1"), tool, done("c-1")))
    assert [(turn, False)] * 7 + [(turn, True)] == whose(deliveries)
    assert (None, True) == (protocol.unanswered, protocol.ready)


@pytest.mark.parametrize(
    "stray",
    [
        content("c-2"),
        done("c-2"),
        error("c-2"),
        cancelled("c-2"),
        started("c-2"),
        {"type": "progress", "step": "thinking"},
        {"type": "agent_thought"},
        {"type": "new", "conversation_id": "c-2"},
        {"type": "new"},
    ],
    ids=lambda stray: stray["type"],
)
def test_what_is_nobodys(stray: dict[str, Any]) -> None:
    """What names another conversation, or none, is handed on for nobody and ends nothing."""
    protocol = with_conversation("c-1", "c-2")
    turn = message()
    protocol.send(turn)
    (delivery,) = protocol.receive(items(stray))
    assert (None, False) == (delivery.request, delivery.final)
    assert turn is protocol.unanswered
    assert [(turn, True)] == whose(protocol.receive(items(done("c-1"))))


@pytest.mark.parametrize(
    "stray", [content("c-1"), done("c-1"), error("c-1"), error(), started("c-1")]
)
def test_what_comes_for_nobody_when_idle(stray: dict[str, Any]) -> None:
    """Nothing is asked, so nothing is answered."""
    protocol = with_conversation("c-1")
    assert [(None, False)] == whose(protocol.receive(items(stray)))
    assert protocol.ready
    assert protocol.send(message())


def test_a_turn_does_not_answer_a_start() -> None:
    """While a start is unanswered, an event of a conversation is not the start's."""
    protocol = with_conversation("c-1")
    start = Start(chatbot="a", conversation_id="c-1")
    protocol.send(start)
    deliveries = protocol.receive(items(content("c-1"), done("c-1"), cancelled("c-1")))
    assert [(None, False)] * 3 == whose(deliveries)
    assert start is protocol.unanswered


def test_error_without_an_id_behind_a_turn() -> None:
    """It answers the oldest request, also when that is a turn and a start waits behind it."""
    protocol = with_conversation("c-1", depth=2)
    turn, start = message(), Start(chatbot="b")
    protocol.send(turn)
    protocol.send(start)
    assert [(turn, True)] == whose(protocol.receive(items(error())))
    assert [(start, True)] == whose(protocol.receive(items(error())))


def test_error_that_names_a_turn_behind_a_start() -> None:
    """It is the turn's that it names, not the oldest request's."""
    protocol = with_conversation("c-1", depth=2)
    start, turn = Start(chatbot="b"), message()
    protocol.send(start)
    protocol.send(turn)
    assert [(turn, True)] == whose(protocol.receive(items(error("c-1"))))
    assert start is protocol.unanswered


def test_error_that_names_a_resumed_conversation() -> None:
    """A start that asked for that conversation is answered by it."""
    protocol = ChatProtocol()
    start = Start(chatbot="a", conversation_id="c-9")
    protocol.send(start)
    assert [(start, True)] == whose(protocol.receive(items(error("c-9", "CONVERSATION_ERROR"))))


@pytest.mark.parametrize("busy", [True, False])
def test_malformed(busy: bool) -> None:
    """What cannot be read ends the request that it interrupts, and the connection."""
    protocol = with_conversation("c-1")
    turn = message()
    if busy:
        protocol.send(turn)
    deliveries = protocol.receive([*items(content("c-1")), MALFORMED])
    expected = [(turn, False), (turn, True)] if busy else [(None, False), (None, False)]
    assert expected == whose(deliveries)
    assert (None, False) == (protocol.unanswered, protocol.ready)
    assert [] == protocol.receive_end()


def test_the_end_of_the_stream() -> None:
    """What was unanswered has no answer any more, in order, and once."""
    protocol = with_conversation("c-1", depth=3)
    requests: list[Request] = [message(), Start(chatbot="b"), Start(chatbot="c")]
    for request in requests:
        protocol.send(request)
    requests[1].silenced = True
    assert [requests[0], requests[2]] == protocol.receive_end()
    assert [] == protocol.receive_end()
    assert (None, False) == (protocol.unanswered, protocol.ready)


# -- starts that nobody waits for ---------------------------------------------------------------


def test_a_silenced_start() -> None:
    """Its late answer reaches nobody, but it has switched the connection's chatbot."""
    protocol = with_conversation("c-1")
    start = Start(chatbot="b")
    protocol.send(start)
    start.silenced = True
    assert not protocol.ready
    assert [(start, True)] == whose(protocol.receive(items(started("c-2"))))
    assert start.silenced
    assert protocol.ready
    assert protocol.needs_start("c-1", "a", "default")
    assert not protocol.needs_start("c-2", "b", "default")


def test_a_silenced_start_that_fails() -> None:
    """It frees the wire too, and has switched nothing."""
    protocol = with_conversation("c-1")
    start = Start(chatbot="b")
    protocol.send(start)
    start.silenced = True
    assert [(start, True)] == whose(protocol.receive(items(error(code="CHATBOT_NOT_FOUND"))))
    assert protocol.ready
    assert not protocol.needs_start("c-1", "a", "default")


# -- the chatbot and the identity of a connection -----------------------------------------------


def test_a_new_connection_has_nothing() -> None:
    """Every conversation must be started on it."""
    assert ChatProtocol().needs_start("c-1", "a", "default")


@pytest.mark.parametrize(
    ("conversation_id", "chatbot", "namespace", "needed"),
    [
        ("c-2", "b", "default", False),
        ("c-1", "b", "default", False),
        ("c-1", "a", "default", True),
        ("c-2", "b", "shop", True),
        ("c-3", "b", "default", True),
    ],
)
def test_the_chatbot_started_last(
    conversation_id: str, chatbot: str, namespace: str, needed: bool
) -> None:
    """It answers every message, so its conversations need no start, and all others do."""
    protocol = with_conversation("c-1", chatbot="a")
    protocol.send(Start(chatbot="b"))
    protocol.receive(items(started("c-2")))
    assert needed == protocol.needs_start(conversation_id, chatbot, namespace)


def test_the_name_is_as_asked() -> None:
    """What the server calls the chatbot in its answer decides nothing."""
    protocol = ChatProtocol()
    protocol.send(Start(chatbot="A"))
    protocol.receive(items({**started("c-1"), "chatbot": "another name"}))
    assert not protocol.needs_start("c-1", "A", "default")


def test_a_resume_that_gave_another_conversation() -> None:
    """The one received is started; the one asked for is not."""
    protocol = ChatProtocol()
    start = Start(chatbot="a", conversation_id="c-1")
    protocol.send(start)
    assert [(start, True)] == whose(protocol.receive(items(started("c-2"))))
    assert protocol.needs_start("c-1", "a", "default")
    assert not protocol.needs_start("c-2", "a", "default")


def test_a_failed_start_changes_nothing() -> None:
    """The chatbot before it still answers, and the identity is still open."""
    protocol = ChatProtocol()
    protocol.send(Start(chatbot="a", impersonate_user_id="nobody"))
    protocol.receive(items(error(code="USER_NOT_FOUND")))
    bob = Start(chatbot="a", impersonate_user_id="bob")
    assert "bob" == json.loads(protocol.send(bob))["impersonate_user_id"]
    protocol.receive(items(started("c-1")))
    protocol.send(Start(chatbot="nope", impersonate_user_id="bob"))
    protocol.receive(items(error(code="CHATBOT_NOT_FOUND")))
    assert not protocol.needs_start("c-1", "a", "default")


@pytest.mark.parametrize("mine", [None, "bob"])
@pytest.mark.parametrize("other", [None, "bob", "eve"])
def test_identities(mine: str | None, other: str | None) -> None:
    """A connection acts as one user; it says so once, and is asked for no other."""
    protocol = with_conversation("c-1", impersonate_user_id=mine)
    start = Start(chatbot="a", impersonate_user_id=other)
    if mine == other:
        assert {"type": "start_chat", "chatbot": "a"} == json.loads(protocol.send(start))
    else:
        with pytest.raises(IdentityConflictError):
            protocol.send(start)
        assert protocol.ready


def test_no_session() -> None:
    """A conversation that the server has forgotten must be started again."""
    protocol = with_conversation("c-1", "c-2")
    turn = message("c-1")
    protocol.send(turn)
    assert [(turn, True)] == whose(protocol.receive(items(error("c-1", "NO_SESSION"))))
    assert protocol.needs_start("c-1", "a", "default")
    assert not protocol.needs_start("c-2", "a", "default")
    with pytest.raises(LocalProtocolError):
        protocol.send(turn)


def test_no_session_without_a_conversation() -> None:
    """The server may leave the id out: then it is the oldest request's conversation."""
    protocol = with_conversation("c-1")
    turn = message("c-1")
    protocol.send(turn)
    assert [(turn, True)] == whose(protocol.receive(items(error(code="NO_SESSION"))))
    assert protocol.needs_start("c-1", "a", "default")


@pytest.mark.parametrize("code", ["", "STREAM_ERROR", "TURN_LIMIT"])
def test_other_errors_forget_nothing(code: str) -> None:
    """A turn that failed leaves its conversation started."""
    protocol = with_conversation("c-1")
    protocol.send(message())
    protocol.receive(items(error("c-1", code)))
    assert not protocol.needs_start("c-1", "a", "default")


# -- cancelling ---------------------------------------------------------------------------------


def test_cancel() -> None:
    """Of a cancelled turn only its end is handed on, silenced; its `cancelled` is nobody's."""
    protocol = with_conversation("c-1")
    turn = message()
    protocol.send(turn)
    assert [(turn, False)] == whose(protocol.receive(items(content("c-1"))))
    assert protocol.cancel(turn) is not None
    assert (True, False) == (turn.silenced, protocol.ready)
    late = [content("c-1"), {"type": "query_result", "conversation_id": "c-1"}]
    assert [] == protocol.receive(items(*late))
    assert [(turn, True)] == whose(protocol.receive(items(done("c-1"))))
    assert [] == protocol.receive(items(cancelled("c-1")))
    assert not protocol.ready
    assert [] == protocol.receive_end()


@pytest.mark.parametrize("end", [error("c-1"), error(), cancelled("c-1")])
def test_cancelled_turns_end_in_other_ways(end: dict[str, Any]) -> None:
    """An error, or a server that ends the turn by the cancel: it ends silenced."""
    protocol = with_conversation("c-1")
    turn = message()
    protocol.send(turn)
    protocol.cancel(turn)
    assert [(turn, True)] == whose(protocol.receive(items(end)))
    assert turn.silenced
    assert protocol.unanswered is None


def test_a_cancelled_turn_is_not_lost() -> None:
    """The end of its stream is expected, so nothing is without an answer."""
    protocol = cancelling()
    assert [] == protocol.receive_end()


def test_cancel_twice() -> None:
    """The second writes nothing."""
    protocol = with_conversation("c-1")
    turn = message()
    protocol.send(turn)
    assert protocol.cancel(turn) is not None
    before = look(protocol)
    assert protocol.cancel(turn) is None
    assert before == look(protocol)


@pytest.mark.parametrize("made", [with_conversation, running, ended, broken])
def test_cancel_of_what_is_not_on_the_wire(made: Callable[[], ChatProtocol]) -> None:
    """A turn that was never written, or has ended, costs no connection."""
    protocol = made()
    before = look(protocol)
    assert protocol.cancel(message()) is None
    assert before == look(protocol)


def test_cancel_after_the_end() -> None:
    """`done` was read first: there is nothing to cancel."""
    protocol = with_conversation("c-1")
    turn = message()
    protocol.send(turn)
    protocol.receive(items(done("c-1")))
    assert protocol.cancel(turn) is None
    assert protocol.ready


def test_the_server_cancels() -> None:
    """A `cancelled` that nobody asked for ends the turn that it names."""
    protocol = with_conversation("c-1")
    turn = message()
    protocol.send(turn)
    assert [(turn, True)] == whose(protocol.receive(items(cancelled("c-1"))))


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected", "retryable"),
    [
        ("AUTH_REQUIRED", errors.AuthenticationError, False),
        ("FORBIDDEN", errors.PermissionDeniedError, False),
        ("RATE_LIMITED", errors.RateLimitError, True),
        ("DAILY_LIMIT", errors.QuotaError, False),
        ("TOKEN_BUDGET", errors.QuotaError, False),
        ("CHATBOT_NOT_FOUND", errors.ChatbotNotFoundError, False),
        ("NO_SESSION", errors.NoSessionError, False),
        ("TURN_LIMIT", errors.TurnLimitError, False),
        ("PROVIDER_ERROR", errors.ProviderError, True),
        ("STREAM_ERROR", errors.ProviderError, True),
        ("PROMPT_ERROR", errors.ProviderError, True),
        ("INVALID_MESSAGE", ServerError, False),
        ("UNKNOWN_TYPE", ServerError, False),
        ("USER_ERROR", ServerError, False),
        ("USER_NOT_FOUND", ServerError, False),
        ("CHATBOT_ERROR", ServerError, False),
        ("CONVERSATION_ERROR", ServerError, False),
        ("NO_CHATBOT", ServerError, False),
        ("NEXT_YEARS_CODE", ServerError, False),
        ("turn_limit", ServerError, False),
        ("", ServerError, False),
    ],
)
def test_error_codes(code: str, expected: type[FluxbaseChatError], retryable: bool) -> None:
    """Each code has its class; the rest are plain server errors that keep theirs."""
    event = events.ErrorEvent(error="Sorry", code=code, conversation_id="c-1")
    made = error_of(event)
    assert expected is type(made)
    assert (True, retryable) == (made.sent, made.retryable)
    assert str(made).startswith(f"Sorry ({code})" if code else "Sorry")
    assert f"Sorry ({code})" == made.args[0] or not code
    if isinstance(made, ServerError):
        assert (code, "c-1") == (made.code, made.conversation_id)
    assert made is not error_of(event)


def test_who_is_not_signed_in_hears_both_ways() -> None:
    """A client has its token from a parameter, or from the environment."""
    made = error_of(events.ErrorEvent(error="Sorry", code="AUTH_REQUIRED"))
    assert made.hint.endswith("pass token=, or set FLUXBASE_TOKEN for from_env()")


def test_error_of_what_cannot_be_read() -> None:
    """It is the server's mistake, and says what was wrong."""
    made = error_of(MALFORMED)
    assert RemoteProtocolError is type(made)
    assert made.sent is True
    assert "the server broke the protocol: a message is not a JSON object" == str(made)
