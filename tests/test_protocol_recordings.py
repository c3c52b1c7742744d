"""`ChatProtocol` against the recordings: whose each frame is, and what it ends.

Here stand the parts that no public call would send: frames written ahead, a cancel without a
turn, mixed identities. The requests are those of the recorded client; what each answer must be
given to is written by hand.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from recordings import TRANSCRIPTS, load, names
from test_recordings_client import REPLAYED

from fluxbase_aichat import errors, events
from fluxbase_aichat._protocol import ChatProtocol, Delivery, Message, Request, Start, error_of
from fluxbase_aichat._wire import ContentRun, Decoder

REST = {"rest"}
"""The recording of REST calls, which are not this file's."""


class Replay:
    """The protocol of one connection, and the steps of its recording, one after the other."""

    def __init__(self, name: str, connection: int = 0, *, depth: int = 1) -> None:
        self.protocol = ChatProtocol(depth=depth)
        self.steps = [
            step for step in load(name)[connection].steps if step.kind in {"out", "in", "closed"}
        ]
        self.decoder = Decoder()

    def next_frame(self, kind: str) -> dict[str, Any]:
        """Take the next step, which must be a frame of that kind."""
        step = self.steps.pop(0)
        assert kind == step.kind
        frame: dict[str, Any] = json.loads(step.text)
        return frame

    def skip(self, count: int) -> list[dict[str, Any]]:
        """Leave out frames; return them."""
        return [json.loads(self.steps.pop(0).text) for _ in range(count)]

    def start(self, **changes: Any) -> Start:
        """Send the recorded `start_chat`; what is written must be the recorded frame."""
        recorded = self.next_frame("out")
        fields = {k: v for k, v in recorded.items() if k != "type"} | changes
        request = Start(**fields)
        assert recorded == json.loads(self.protocol.send(request))
        return request

    def message(self) -> Message:
        """Send the recorded `message`."""
        recorded = self.next_frame("out")
        request = Message(conversation_id=recorded["conversation_id"], content=recorded["content"])
        assert recorded == json.loads(self.protocol.send(request))
        return request

    def hear(self, count: int) -> list[Delivery]:
        """Take the next frames of the server, one at a time."""
        return [d for _ in range(count) for d in self.hear_one()]

    def hear_one(self) -> list[Delivery]:
        """Take the next frame of the server."""
        step = self.steps.pop(0)
        assert "in" == step.kind
        return self.protocol.receive(self.decoder.decode([step.text.encode()]))

    def expect(self, request: Request | None, *kinds: str, ends: bool) -> events.Event | ContentRun:
        """Take as many frames: all are `request`'s, and the last one ends it or not."""
        deliveries = self.hear(len(kinds))
        assert list(kinds) == [kind(delivery) for delivery in deliveries]
        assert all(delivery.request is request for delivery in deliveries)
        assert [False] * (len(kinds) - 1) + [ends] == [d.final for d in deliveries]
        item = deliveries[-1].item
        assert isinstance(item, events.Event | ContentRun)
        return item

    def end(self) -> list[Request]:
        """Take the end of the stream, which must come now or where the recording stops."""
        assert all(step.kind == "closed" for step in self.steps)
        return self.protocol.receive_end()


def kind(delivery: Delivery) -> str:
    """Name what arrived by the wire's word."""
    item = delivery.item
    return "content" if isinstance(item, ContentRun) else getattr(item, "type", "malformed")


TURN = ("progress", "progress")


def test_two_messages_pipelined() -> None:
    """Four frames written ahead: each answer goes to the oldest that it can be for."""
    replay = Replay("two_messages_pipelined", depth=4)
    for _ in range(2):
        started = replay.expect(replay.start(), "chat_started", ends=True)
        assert isinstance(started, events.ChatStarted)
        assert "sql-assistant" == started.chatbot
    a, b, nope, support = replay.message(), replay.message(), replay.start(), replay.start()
    assert not replay.protocol.ready
    replay.expect(a, *TURN, "content", "content", "content", "done", ends=True)
    replay.expect(b, *TURN, "content", "content", "done", ends=True)
    error = replay.expect(nope, "error", ends=True)
    assert isinstance(error, events.ErrorEvent)
    assert errors.ChatbotNotFoundError is type(error_of(error))
    replay.expect(support, "chat_started", ends=True)
    assert not replay.protocol.needs_start(
        "1f1de8b6-9ea5-48e4-8d03-0965fb35efdc", "support", "default"
    )
    assert replay.protocol.needs_start(a.conversation_id, "sql-assistant", "default")
    assert [] == replay.end()


def test_two_messages_in_one_read() -> None:
    """The same when everything comes at once."""
    replay = Replay("two_messages_pipelined", depth=4)
    replay.expect(replay.start(), "chat_started", ends=True)
    replay.expect(replay.start(), "chat_started", ends=True)
    requests = [replay.message(), replay.message(), replay.start(), replay.start()]
    items = replay.decoder.decode([step.text.encode() for step in replay.steps])
    deliveries = replay.protocol.receive(items)
    assert requests == [delivery.request for delivery in deliveries if delivery.final]
    owners = [requests.index(delivery.request) for delivery in deliveries if delivery.request]
    # Each turn is two steps, a run of deltas, and its end.
    assert [0] * 4 + [1] * 4 + [2, 3] == owners
    assert replay.protocol.unanswered is None


def test_message_then_close() -> None:
    """A second message of the same conversation waits behind the first; both are lost."""
    replay = Replay("message_then_close", depth=2)
    replay.expect(replay.start(), "chat_started", ends=True)
    first, second = replay.message(), replay.message()
    replay.expect(first, *TURN, "content", ends=False)
    assert first is replay.protocol.unanswered
    assert [first, second] == replay.end()
    assert not replay.protocol.ready
    assert replay.protocol.unanswered is None


def test_cancel_when_idle() -> None:
    """A cancel after the end is not written; a `cancelled` that nobody asked for is nobody's."""
    replay = Replay("cancel_when_idle")
    replay.expect(replay.start(), "chat_started", ends=True)
    turn = replay.message()
    replay.expect(turn, *TURN, "content", "done", ends=True)
    (recorded,) = replay.skip(1)
    assert "cancel" == recorded["type"]
    assert replay.protocol.cancel(turn) is None
    assert not replay.protocol.cancelling
    replay.expect(None, "cancelled", ends=False)
    assert [] == replay.end()


def test_cancel_in_mid_turn() -> None:
    """Of a cancelled turn only its end is handed on, and that is silenced; nothing is lost."""
    replay = Replay("cancel_mid_turn")
    replay.expect(replay.start(), "chat_started", ends=True)
    turn = replay.message()
    replay.expect(turn, *TURN, "content", "content", "content", ends=False)
    recorded = replay.next_frame("out")
    payload = replay.protocol.cancel(turn)
    assert payload is not None
    assert recorded == json.loads(payload)
    assert (True, False) == (replay.protocol.cancelling, replay.protocol.ready)
    assert [] == replay.hear(3)
    (end,) = replay.hear(1)
    assert (turn, True, True) == (end.request, end.final, turn.silenced)
    assert [] == replay.hear(1)  # cancelled
    with pytest.raises(errors.LocalProtocolError):
        replay.protocol.send(Start(chatbot="sql-assistant"))
    assert [] == replay.end()


def test_resume_too_early() -> None:
    """A message before its start is refused here; the server's `NO_SESSION` is nobody's then."""
    replay = Replay("resume_same_server", 1)
    early, _ = replay.steps[:2]
    frame = json.loads(early.text)
    with pytest.raises(errors.LocalProtocolError, match="start it first"):
        replay.protocol.send(
            Message(conversation_id=frame["conversation_id"], content=frame["content"])
        )
    assert replay.protocol.unanswered is None
    replay.skip(1)
    error = replay.expect(None, "error", ends=False)
    assert isinstance(error, events.ErrorEvent)
    assert errors.NoSessionError is type(error_of(error))
    replay.expect(replay.start(), "chat_started", ends=True)
    replay.expect(replay.message(), *TURN, "content", "content", "content", "done", ends=True)


def test_no_session() -> None:
    """A conversation that the server does not know on a connection must be started again."""
    replay = Replay("resume_same_server", 1)
    early, answer = replay.skip(2)
    replay.expect(replay.start(), "chat_started", ends=True)
    cid = early["conversation_id"]
    assert not replay.protocol.needs_start(cid, "keeper", "default")
    turn = Message(conversation_id=cid, content=early["content"])
    assert early == json.loads(replay.protocol.send(turn))
    items = replay.decoder.decode([json.dumps(answer).encode()])
    (delivery,) = replay.protocol.receive(items)
    assert (turn, True) == (delivery.request, delivery.final)
    assert replay.protocol.needs_start(cid, "keeper", "default")


def test_start_errors() -> None:
    """Failures of a start come without a conversation, and answer the oldest request."""
    replay = Replay("start_errors")
    kinds = []
    for number in range(4):
        if number == 2:  # a start that names no chatbot at all: this client always names one
            assert [{"type": "start_chat"}] == replay.skip(1)
            request = Start(chatbot="")
            replay.protocol.send(request)
        else:
            request = replay.start()
        error = replay.expect(request, "error", ends=True)
        assert isinstance(error, events.ErrorEvent)
        kinds.append(type(error_of(error)))
    assert [errors.ChatbotNotFoundError] * 4 == kinds
    replay.expect(replay.start(), "chat_started", ends=True)
    replay.skip(2)  # another identity: see test_identities_are_not_mixed
    replay.expect(replay.start(), "chat_started", ends=True)
    assert replay.protocol.needs_start("76dcd6b9-ff55-46be-84c8-a24d6450abed", "hidden", "default")


def test_identities_are_not_mixed() -> None:
    """What the recorded client sent under four identities, a connection refuses unsent."""
    replay = Replay("impersonation")
    replay.expect(replay.start(), "chat_started", ends=True)
    for _ in range(3):
        recorded, _ = replay.skip(2)
        with pytest.raises(errors.IdentityConflictError):
            replay.protocol.send(
                Start(
                    chatbot=recorded["chatbot"],
                    impersonate_user_id=recorded["impersonate_user_id"],
                )
            )
        assert (None, True) == (replay.protocol.unanswered, replay.protocol.ready)


def test_impersonation_is_said_once() -> None:
    """Two refused identities fix nothing; the third sticks, and is not said again."""
    replay = Replay("impersonation")
    replay.skip(2)
    codes = []
    for _ in range(2):
        error = replay.expect(replay.start(), "error", ends=True)
        assert isinstance(error, events.ErrorEvent)
        codes.append((error.code, type(error_of(error))))
    assert [
        ("USER_NOT_FOUND", errors.ServerError),
        ("USER_ERROR", errors.ServerError),
    ] == codes
    bob = replay.start()
    replay.expect(bob, "chat_started", ends=True)
    replay.expect(replay.message(), *TURN, "content", "content", "done", ends=True)
    other, _ = replay.skip(2)
    with pytest.raises(errors.IdentityConflictError):
        replay.protocol.send(
            Start(chatbot="keeper", impersonate_user_id=other["impersonate_user_id"])
        )
    again = replay.start(impersonate_user_id=bob.impersonate_user_id)
    replay.expect(again, "chat_started", ends=True)


def test_server_shutdown_idle() -> None:
    """The message that the wrong chatbot answered is one that needs a start by our rules."""
    replay = Replay("server_shutdown_idle")
    replay.expect(replay.start(), "chat_started", ends=True)
    replay.expect(replay.start(), "chat_started", ends=True)
    kept = replay.message()
    replay.expect(kept, *TURN, "content", "content", "content", "done", ends=True)
    memory = json.loads(replay.steps[0].text)["conversation_id"]
    assert not replay.protocol.needs_start(kept.conversation_id, "keeper", "default")
    assert replay.protocol.needs_start(memory, "sql-assistant", "default")
    replay.expect(replay.message(), *TURN, "content", "content", "content", "done", ends=True)
    assert [] == replay.end()

    after = Replay("server_shutdown_idle", 1)
    lost = after.start()
    moved = after.expect(lost, "chat_started", ends=True)
    assert moved.conversation_id != lost.conversation_id
    assert not after.protocol.needs_start(moved.conversation_id, "sql-assistant", "default")
    assert after.protocol.needs_start(memory, "sql-assistant", "default")
    same = after.start()
    assert same.conversation_id == after.expect(same, "chat_started", ends=True).conversation_id
    after.expect(after.message(), *TURN, "content", "content", "done", ends=True)


def test_two_chatbots_switched_by_resume() -> None:
    """A resume decides the connection's chatbot as a new conversation does."""
    replay = Replay("two_chatbots_switched_by_resume")
    a = replay.expect(replay.start(), "chat_started", ends=True).conversation_id
    b = replay.expect(replay.start(), "chat_started", ends=True).conversation_id

    def needed() -> tuple[bool, bool]:
        return (
            replay.protocol.needs_start(a, "sql-assistant", "default"),
            replay.protocol.needs_start(b, "oneturn", "default"),
        )

    assert (True, False) == needed()
    replay.expect(replay.message(), *TURN, *["content"] * 4, "done", ends=True)
    for _ in range(2):  # the second of these starts was not needed
        replay.expect(replay.start(), "chat_started", ends=True)
        assert (False, True) == needed()
        replay.expect(replay.message(), *TURN, *["content"] * 3, "done", ends=True)
    replay.expect(replay.start(), "chat_started", ends=True)
    assert (True, False) == needed()
    error = replay.expect(replay.message(), "error", ends=True)
    assert isinstance(error, events.ErrorEvent)
    assert errors.TurnLimitError is type(error_of(error))


def test_error_without_code_or_conversation() -> None:
    """An error that names nothing ends the oldest request: here the running turn."""
    replay = Replay("error_without_code_or_conversation")
    replay.expect(replay.start(), "chat_started", ends=True)
    error = replay.expect(replay.message(), *TURN, "progress", "error", ends=True)
    assert isinstance(error, events.ErrorEvent)
    assert ("", "", errors.ServerError) == (
        error.code,
        error.conversation_id,
        type(error_of(error)),
    )
    replay.expect(replay.message(), *TURN, "content", "content", "done", ends=True)


@pytest.mark.parametrize(
    "name",
    names(),
)
def test_no_recorded_frame_is_unreadable(name: str) -> None:
    """Every frame of every recording is an event that is known, and kept whole."""
    for connection in load(name):
        for frame in connection.received():
            (item,) = Decoder().decode([frame.encode()])
            read = list(item.events()) if isinstance(item, ContentRun) else [item]
            assert [json.loads(frame)] == [event.raw for event in read]  # type: ignore[union-attr]
            assert not isinstance(item, events.UnknownEvent)


def test_every_recording_is_replayed() -> None:
    """No recording is forgotten: the client's tests play each, or a part of it."""
    assert {path.stem for path in TRANSCRIPTS.glob("*.jsonl")} - REST == REPLAYED
