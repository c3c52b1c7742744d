"""Lost answers: which stored answer is whose, and the connection cut at every point of a turn."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from helpers import Heard, run
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import Gate as Pass
from recordings import lines
from relay import Relay
from servers import WAIT, Peer, RawServer, content
from test_http import head

from fluxbase_aichat import FluxbaseAI, FluxbaseAIChat, Reply, Turn, _recover
from fluxbase_aichat._answer import Answer
from fluxbase_aichat._api import Said
from fluxbase_aichat._conversations import Conversations
from fluxbase_aichat._entry import Entry, Place, Record
from fluxbase_aichat._recover import Question, find
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.errors import (
    AuthenticationError,
    ChatTimeoutError,
    ConfigurationError,
    ConnectionLostError,
    LocalProtocolError,
    NotConnectedError,
    ProviderError,
    RecoveryError,
    TurnCancelledError,
)
from fluxbase_aichat.stored import StoredConversation, StoredMessage

Q = "the question"
NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)

# -- which answer is whose ------------------------------------------------------------------


def said(*messages: tuple[str, str] | tuple[str, str, float], date: bool = True) -> Any:
    """Return a stored conversation as it was read ten seconds after the question was sent.

    The times of its messages are seconds from the sending; the server's clock says noon.
    """
    stored = []
    for role, text, *at in messages:
        stamp = NOON + dt.timedelta(seconds=at[0] - 10) if at else None
        stored.append(StoredMessage(role=role, content=text, timestamp=stamp))
    conversation = StoredConversation(messages=tuple(stored))
    return Said(conversation, NOON.timestamp() if date else None, 110.0, 110.0)


def asked(**known: Any) -> Question:
    """Return the question, sent at 100."""
    return Question(**{"content": Q, "sent_at": 100.0, **known})


BEGUN = {"least": 0, "most": 0}
"""The first message of a conversation that this client began."""

OLD = [("user", Q, -60.0), ("assistant", "old", -59.0)]
MINE = [("user", Q, 0.1)]
ANSWERED = [*MINE, ("assistant", "mine", 2.0)]
LATER = [("user", "something else", 3.0)]

VERDICTS = {
    "an empty conversation": (asked(), [], False),
    "the question": (asked(), MINE, True),
    "the answer": (asked(), ANSWERED, "mine"),
    "the answer, counted": (asked(**BEGUN), [("user", Q), ("assistant", "mine")], "mine"),
    "an answer before it": (asked(), [*OLD, *ANSWERED], "mine"),
    "other messages before it": (
        asked(),
        [("user", "x", -9.0), ("assistant", "y", -8.0), *ANSWERED],
        "mine",
    ),
    "messages of other kinds": (asked(), [("system", "x", -9.0), *ANSWERED], "mine"),
    "a greeting before it": (asked(), [("assistant", "Hello", -9.0), *ANSWERED], "mine"),
    "another question only": (asked(), [("user", "x", -9.0), ("assistant", "y", -8.0)], False),
    # The same text was asked before.
    "the old question only": (asked(), OLD, False),
    "the old question of this client only": (asked(least=1, most=1), OLD, False),
    "the old question, a moment before": (
        asked(least=1, most=1, previous_at=99.9),
        [("user", Q, -0.1), ("assistant", "old", -0.05)],
        False,
    ),
    "the second of two, a moment later": (
        asked(least=1, most=1, previous_at=99.9),
        [("user", Q, -0.1), ("assistant", "old", -0.05), *ANSWERED],
        "mine",
    ),
    "counts without times": (
        asked(least=1, most=1),
        [("user", Q), ("assistant", "old"), ("user", Q), ("assistant", "mine")],
        "mine",
    ),
    "one that failed before": (asked(least=0, most=1), ANSWERED, "mine"),
    "one that failed a moment before": (
        asked(least=0, most=1, previous_at=99.0),
        ANSWERED,
        "ambiguous",
    ),
    "a second one of unknown times": (asked(), [("user", Q), ("assistant", "?")], "ambiguous"),
    "a history of which only the end is there": (asked(least=90, most=90), ANSWERED, "mine"),
    "of an unknown past, a moment before": (
        asked(previous_at=99.5),
        [("user", Q, -0.4), ("assistant", "?", 0.1)],
        "ambiguous",
    ),
    # What the clocks prove: the server's is known to a second, and a second is allowed.
    "surely later": (
        asked(previous_at=99.5),
        [("user", Q, 1.0), ("assistant", "mine", 2.0)],
        "mine",
    ),
    "perhaps earlier, and alone": (
        asked(),
        [("user", Q, -0.9), ("assistant", "mine", 2.0)],
        "mine",
    ),
    "surely earlier": (asked(), [("user", Q, -1.1), ("assistant", "old", -1.0)], False),
    # Something stands behind it.
    "superseded": (asked(), [*MINE, *LATER], "superseded"),
    "answered and superseded": (asked(), [*ANSWERED, *LATER], "superseded"),
    "superseded by the same text": (asked(), [*MINE, ("user", Q, 3.0)], "superseded"),
    "not there, and others are": (asked(), [*OLD, *LATER], False),
    # Whose the answer is.
    "an older question is open": (asked(), [("user", "x", -9.0), *ANSWERED], "ambiguous"),
    "an older question is open, and no answer is there": (
        asked(),
        [("user", "x", -9.0), *MINE],
        "ambiguous",
    ),
    "two answers": (asked(), [*ANSWERED, ("assistant", "whose?", 3.0)], "ambiguous"),
    # From another process.
    "whatever was asked last": (Question(content=None), ANSWERED, "mine"),
    "whatever was asked last is open": (Question(content=None), [*OLD, *MINE], True),
    "nothing was asked": (Question(content=None), [], False),
    "the last question": (Question(content=Q), [*OLD, *ANSWERED], "mine"),
    "not the last question": (Question(content=Q), [*ANSWERED, *LATER], "superseded"),
    "not there yet": (Question(content=Q), LATER, False),
}


@pytest.mark.parametrize(("question", "messages", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_verdicts(question, messages, verdict) -> None:
    """Only an answer that is provably this question's is taken for it."""
    try:
        answer: Any = find(question, said(*messages))
    except RecoveryError as error:
        answer = error.reason
    assert verdict == (answer.content if isinstance(answer, StoredMessage) else answer)


def test_no_clock() -> None:
    """Without the server's time only counts can prove anything."""
    with pytest.raises(RecoveryError) as caught:
        find(asked(), said(*ANSWERED, date=False))
    assert "ambiguous" == caught.value.reason
    assert isinstance(find(asked(**BEGUN), said(*ANSWERED, date=False)), StoredMessage)


def test_slow_looks() -> None:
    """What a look takes makes the server's time less certain, not wrong."""
    slow = Said(said(*OLD).value, NOON.timestamp(), 105.0, 110.0)
    assert find(asked(), slow) is False
    near = StoredConversation(
        messages=(StoredMessage(role="user", content=Q, timestamp=NOON - dt.timedelta(seconds=8)),)
    )
    assert find(asked(), Said(near, NOON.timestamp(), 105.0, 110.0)) is True
    with pytest.raises(RecoveryError):
        find(asked(previous_at=99.5), Said(near, NOON.timestamp(), 105.0, 110.0))


@dataclass(eq=False)
class Sent:
    """A message of this client and what became of it."""

    text: str
    gap: float
    """Seconds since the message before."""
    fate: Literal["told", "kept", "open", "failed", "unread"]
    """Answered and the client knows; answered; not answered yet; taken out; never read."""


FATES = st.sampled_from(["told", "kept", "open", "failed", "unread"])
SENT = st.builds(Sent, st.sampled_from([Q, "another"]), st.floats(0.05, 8), FATES)


@settings(max_examples=300)
@given(
    others=st.lists(SENT, max_size=2),
    before=st.lists(SENT, max_size=4),
    gap=st.floats(0.05, 8),
    fate=FATES,
    delay=st.floats(0, 0.9),
    look=st.floats(0, 5),
    skew=st.floats(-1e6, 1e6),
    order=st.randoms(use_true_random=False),
)
def test_never_the_wrong_answer(others, before, gap, fate, delay, look, skew, order) -> None:
    """Whatever became of the messages before: the answer that is found is this question's.

    `others` were sent by another client, three seconds before this one began: the server's time is
    not known any better. Without them this one knows all that was sent.
    """
    now, stored, answers = 0.0, [], []
    known: list[Sent] = []
    times: list[float] = []
    mine = Sent(Q, gap, fate)
    for sent in [*others, *before, mine]:
        now += sent.gap
        if not known and sent not in others:
            now += 3.0
        if sent is mine or sent in before:
            times.append(now)
            known.append(sent)
        if sent.fate in {"told", "kept", "open"}:
            at = now + (delay if sent is mine else 0.0)
            stored.append((at, "user", sent.text))
        if sent.fate in {"told", "kept"}:
            answer = "mine" if sent is mine else "other"
            landed = len(stored) if sent.fate == "told" else order.randint(len(stored), 99)
            answers.append((landed, answer))
    sent_at = times[-1]
    same = [at for at, sent in zip(times[:-1], known[:-1], strict=True) if sent.text == Q]
    recent = [at for at in same if sent_at - at <= 5]
    # Each answer lands behind its question, some of them late.
    for landed, answer in sorted(answers, reverse=True):
        stored.insert(min(landed, len(stored)), (0.0, "assistant", answer))
    messages = tuple(
        StoredMessage(role=role, content=text, timestamp=NOON + dt.timedelta(seconds=at))
        for at, role, text in stored
    )
    asked_at = sent_at + delay + look
    question = Question(
        content=Q,
        sent_at=sent_at + skew,
        previous_at=recent[-1] + skew if recent else None,
        least=None if others else sum(sent.fate == "told" for sent in before),
        most=None if others else len(before),
    )
    date = float(int(NOON.timestamp() + asked_at + 0.05))
    look_at = Said(
        StoredConversation(messages=messages), date, asked_at + skew, asked_at + skew + 0.1
    )
    try:
        found = find(question, look_at)
    except RecoveryError:
        return
    if isinstance(found, StoredMessage):
        assert "mine" == found.content
    simple = all(sent.fate == "told" for sent in [*others, *before])
    if simple and fate in {"told", "kept"} and (not others or not recent):
        assert isinstance(found, StoredMessage)


def test_a_message_that_was_not_written_after_all() -> None:
    """What is written again, over the next connection, is one message and not two."""
    conversations = Conversations(None)
    record = Record(chatbot="keeper", namespace="default")

    def write(text: str, at: float) -> Entry:
        answer = Answer("keeper", lambda: at)
        entry = Entry(record=record, context=copy_context(), answer=answer, content=text)
        if record.id is None:
            conversations.started(entry, "c-1")
        answer.sent("c-1")
        conversations.wrote(entry)
        return entry

    first, second = write("one", 100.0), write("one", 101.0)
    assert Place(new=True, sent=1, kept=0, previous_at=100.0) == second.place
    assert not conversations.is_latest(first)
    conversations.unwrote(second)
    assert second.place is None
    assert conversations.is_latest(first)
    conversations.unwrote(second)
    assert Place(new=True, sent=1, kept=0, previous_at=100.0) == write("one", 102.0).place
    assert Place(new=True, sent=2, kept=0, previous_at=None) == write("one", 108.0).place


RECORDED = {
    "connection_lost_mid_turn_answer_kept": ("one twothree four", 248, 0),
    "connection_lost_between_tool_rounds": ("Two users.", None, 1),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_histories(name) -> None:
    """What recorded servers have stored of a turn that was cut is taken for its answer."""
    recording = lines(name)
    question = next(line["text"] for line in recording if '"message"' in line.get("text", ""))
    bodies = [line["body"].encode() for line in recording if "body" in line]

    def script(peer: Peer) -> None:
        peer.read_request()
        if "/ai/ws" in peer.request.splitlines()[0]:
            peer.accept()
            peer.start("489e40f6-d555-4242-9976-2ec9bf4327de")
            cid = peer.message()["conversation_id"]
            peer.send_text(
                {"type": "progress", "conversation_id": cid, "step": "generating"},
                content(cid, "one"),
            )
            peer.cut()
        else:
            peer.send_raw(head("200 OK", bodies[0] if len(bodies) == 1 else bodies.pop(0)))

    text, tokens, results = RECORDED[name]
    with RawServer(script) as server:
        chat = FluxbaseAIChat(server.url, "t0k3n", reconnect_attempts=0)
        turn = chat.conversation("keeper").send(json.loads(question)["content"])
        reply = turn.recover(timeout=WAIT) if turn.wait(WAIT) else None
        chat.disconnect()
    assert reply is not None
    assert (text, "keeper", results) == (reply.text, reply.chatbot, len(reply.query_results))
    assert tokens is None or tokens == reply.usage.total_tokens


# -- against the dev server -----------------------------------------------------------------


@pytest.fixture
def gate() -> Pass:
    """Return what a script's `pause` waits at."""
    return Pass()


@pytest.fixture
def server(gate: Pass) -> Iterator[DevServer]:
    """Start a dev server."""
    with DevServer(pause=gate) as server:
        yield server


@pytest.fixture
def chat(server: DevServer) -> Iterator[FluxbaseAIChat]:
    """Return a chat that does not wait long to connect again."""
    with FluxbaseAIChat(server.ws_url, server.token(), reconnect_delay=0.001) as chat:
        yield chat


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often."""
    monkeypatch.setattr(_recover, "_LONGEST_DELAY", 0.02)
    monkeypatch.setattr(_recover, "_FIRST_DELAY", 0.02)


def reason(turn: Turn, timeout: float = WAIT) -> str:
    """Return why a turn's answer is not recovered."""
    with pytest.raises(RecoveryError) as caught:
        turn.recover(timeout)
    assert isinstance(caught.value.sent, bool)
    assert caught.value.partial_text == turn.text
    return caught.value.reason


def looks(server: DevServer) -> int:
    """Return how often a stored conversation was asked for."""
    return sum("/ai/conversations/" in request.target for request in server.requests)


def lost(chat: FluxbaseAIChat, content: str, chatbot: str = "keeper") -> Turn:
    """Send a message and wait for the loss of its connection."""
    turn = chat.conversation(chatbot).send(content)
    assert turn.wait(WAIT)
    assert isinstance(turn.error, ConnectionLostError)
    assert turn.error.sent is True
    return turn


SQL = "SELECT id, name FROM users LIMIT 2"
SCRIPTS = {
    "text": ("say one two three", "one two three", 0),
    "nothing said": ("say \nsay x", "x", 0),
    "a tool round": (f"say Let me look.\nsql {SQL}\n---\nsay Two users.", "Two users.", 1),
    "three tool rounds": (f"sql {SQL}\n---\nsql {SQL}\n---\nsql {SQL}\n---\nsay Done.", "Done.", 3),
    "two tools in a round": (f"sql {SQL}\nsql {SQL}\n---\nsay Both.", "Both.", 2),
    "a failed query": ("sql SELECT nothing FROM users\n---\nsay Hm.", "Hm.", 0),
    "long": ("flood 300 20", "x" * 6000, 0),
}


def frames(script: str) -> int:
    """Return how many frames the server sends for a script."""
    heard = Heard()
    with (
        DevServer() as server,
        FluxbaseAIChat(server.ws_url, server.token(), on_event=heard) as chat,
    ):
        assert chat.conversation("keeper").send(script).wait(WAIT)
    ours = {"connected", "disconnected", "chat_started"}
    return len([name for name in heard.types if name not in ours])


@pytest.mark.parametrize(("script", "text", "results"), SCRIPTS.values(), ids=SCRIPTS)
def test_cut_after_every_frame(script, text, results, server, chat) -> None:
    """Wherever a turn is cut, its answer is found: the prose of the last round, all results."""
    whole = chat.conversation("keeper").ask(script)
    count = frames(script)
    for after in range(1, count) if count < 50 else (1, 2, 3, 150, count - 1):
        server.faults.set(drop=after, times=1)
        turn = lost(chat, script)
        reply = turn.recover(timeout=WAIT)
        assert (text, (text,), "keeper") == (reply.text, reply.segments, reply.chatbot)
        assert reply.conversation_id == turn.conversation_id
        assert whole.query_results[:results] == reply.query_results
        assert whole.usage == reply.usage
        assert (reply.duration, reply.time_to_first_content) == (None, None)
        assert Reply.from_dict(reply.to_dict()) == reply
        assert isinstance(turn.error, ConnectionLostError)
        again = looks(server)
        assert turn.recover() is reply  # and the server is not asked again
        assert again == looks(server)


def test_cut_after_any_byte(server) -> None:
    """The same question twice, over a connection that carries so many bytes and no more.

    Wherever that is, in the handshake, in a question or in an answer: what is recovered is the
    answer to the question that was lost, or it is said that there is none.
    """
    outcomes = set()
    for limit in range(300, 2300, 47):
        with (
            Relay(server.ws_url) as relay,
            FluxbaseAIChat(relay.url, server.token(), reconnect_attempts=0) as chat,
        ):
            conversation = chat.conversation("keeper")
            relay.set(limit=limit)
            turns = []
            for _ in range(2):
                turns.append(conversation.send("say one two"))
                assert turns[-1].wait(WAIT)
                if turns[-1].error is not None:
                    break
            relay.clear()
            outcomes.add(verdict(server, conversation, turns))
    assert {(1, "answer"), (2, "answer"), (2, "timeout"), (2, "whole")} <= outcomes


def verdict(server: DevServer, conversation: Any, turns: list[Turn]) -> tuple[int, str]:
    """Return what became of the last turn, having checked it against what is stored."""
    *_, turn = turns
    if turn.error is None:
        return len(turns), "whole"
    if not turn.error.sent:
        return len(turns), "unsent"
    # All that was read has been answered: what is stored now is stored for good.
    assert server.wait_for(lambda: server.active == 0)
    history = conversation.history()
    if len(history) < 2 * len(turns):
        assert 2 * len(turns) - 2 == len(history)
        return len(turns), reason(turn, 0.1)
    reply = turn.recover(timeout=WAIT)
    assert (reply.text, reply.usage) == ("one two", history[-1].usage)
    return len(turns), "answer"


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_the_server_is_not_done(after, server, chat, gate) -> None:
    """While the server still writes, it is asked again and again."""
    server.faults.set(drop=after, times=1)
    turn = chat.conversation("keeper").send("say one two\npause 1\nsay three")
    gate.wait_until_reached()
    assert turn.wait(WAIT)
    recovering = run(turn.recover)
    assert server.wait_for(lambda: looks(server) >= 3)
    assert not recovering.ended
    gate.open()
    assert "one twothree" == recovering.result().text


def test_before_the_message_was_read(server) -> None:
    """A message that was never read has no answer, however long it is waited for."""
    with (
        Relay(server.ws_url) as relay,
        FluxbaseAIChat(relay.url, server.token(), reconnect_delay=0.001) as chat,
    ):
        conversation = chat.conversation("keeper")
        assert "Hi" == conversation.ask("say Hi").text
        turn = unread(relay, conversation, "say Hello")
        assert "timeout" == reason(turn, 0.3)
        assert looks(server) >= 1
        relay.clear()


def unread(relay: Relay, conversation: Any, text: str) -> Turn:
    """Send a message that no server reads, and lose the connection."""
    swallowed = relay.swallowed
    relay.set(swallow=True)
    turn = conversation.send(text)
    assert relay.wait_for(lambda: relay.swallowed > swallowed)
    relay.set(swallow=False)
    assert turn.wait(WAIT)
    assert isinstance(turn.error, ConnectionLostError)
    return turn


def test_q06_asked_twice(server) -> None:
    """The same question asked twice, the first answered, the second lost unread: no answer."""
    with (
        Relay(server.ws_url) as relay,
        FluxbaseAIChat(relay.url, server.token(), reconnect_delay=0.001) as chat,
    ):
        conversation = chat.conversation("keeper")
        assert "Hi" == conversation.ask("say Hi").text
        turn = unread(relay, conversation, "say Hi")
        assert "timeout" == reason(turn, 0.3)
        # From another process there is nothing to tell the two apart by.
        other = FluxbaseAIChat(server.ws_url, server.token())
        assert "Hi" == other.recover(turn.conversation_id, question="say Hi").text


def test_asked_twice_and_read(server, chat) -> None:
    """The same question asked twice, the second lost while it is answered: the second answer."""
    conversation = chat.conversation("keeper")
    first = conversation.ask("say Hi")
    server.faults.set(drop=2, times=1)
    turn = conversation.send("say Hi")
    assert turn.wait(WAIT)
    reply = turn.recover(timeout=WAIT)
    assert "Hi" == reply.text
    assert first.usage.prompt_tokens < reply.usage.prompt_tokens
    assert conversation.history()[-1].usage == reply.usage


def test_asked_twice_and_the_second_still_runs(server, chat, gate) -> None:
    """The first answer is there at once, and is not taken for the second."""
    conversation = chat.conversation("keeper")
    gate.open()
    first = conversation.ask("pause 1\nsay Hi")
    server.faults.set(drop=1, times=1)
    turn = conversation.send("pause 1\nsay Hi")
    gate.wait_until_reached()
    assert turn.wait(WAIT)
    recovering = run(turn.recover)
    assert server.wait_for(lambda: looks(server) >= 2)
    assert not recovering.ended
    gate.open()
    assert first.usage.prompt_tokens < recovering.result().usage.prompt_tokens


def test_a_resumed_conversation(server, chat) -> None:
    """Of a conversation with an unknown past the times prove what the counts cannot."""
    chat.ask("keeper", "say Before")
    conversation_id = FluxbaseAI(server.url, server.token()).last_conversation("keeper").id
    with FluxbaseAIChat(server.ws_url, server.token(), reconnect_delay=0.001) as other:
        conversation = other.conversation("keeper", conversation_id=conversation_id)
        server.faults.set(drop=3, times=1)
        turn = conversation.send("say Mine")
        assert turn.wait(WAIT)
        assert "Mine" == turn.recover(timeout=WAIT).text
        assert 4 == len(conversation.history())


# -- turns that leave nothing ---------------------------------------------------------------


def test_before_an_error(server, chat, gate) -> None:
    """A question that was there and is gone has failed: told at once, for it is certain."""
    server.faults.set(drop=1, times=1)
    turn = chat.conversation("keeper").send("pause 1\nfail")
    gate.wait_until_reached()
    assert turn.wait(WAIT)
    recovering = run(reason, turn)
    assert server.wait_for(lambda: looks(server) >= 2)
    gate.open()
    assert "failed" == recovering.result()


def test_behind_an_error(server, chat) -> None:
    """A turn that was seen to generate, and is not stored, has failed."""
    server.faults.set(drop=3, times=1)
    assert "failed" == reason(lost(chat, "say one\nfail"))


def test_behind_an_error_that_nothing_told_of(server, chat) -> None:
    """Where nothing was seen but thinking, the question may still come: nothing is certain."""
    server.faults.set(drop=1, times=1)
    turn = lost(chat, "fail")
    assert server.wait_for(lambda: server.turns == 1)  # the question was there for a moment
    assert "timeout" == reason(turn, 0.2)


def test_all_rounds_used_up(server, chat) -> None:
    """A turn that uses up its tool rounds is not kept."""
    server.faults.set(drop=4, times=1)
    rounds = "\n---\n".join([f"sql {SQL}"] * 6)
    assert "failed" == reason(lost(chat, rounds))


def test_an_error_of_the_server(server, chat) -> None:
    """A turn that the server ended with an error has failed; nobody needs to be asked."""
    turn = chat.conversation("keeper").send("say one\nfail")
    with pytest.raises(ProviderError):
        turn.result()
    assert "failed" == reason(turn)
    assert 0 == looks(server)


def test_a_message_that_was_never_sent(server, gate, chat) -> None:
    """What was cancelled in the queue has no answer."""
    conversation = chat.conversation("keeper")
    running = conversation.send("say one\npause 1")
    queued = conversation.send("say two")
    queued.cancel()
    with pytest.raises(RecoveryError, match="never sent") as caught:
        queued.recover()
    assert ("failed", False) == (caught.value.reason, caught.value.sent)
    gate.open()
    running.result()


def test_not_kept(server, chat) -> None:
    """A chatbot that does not persist its conversations keeps no answer: told at once."""
    server.faults.set(drop=3, times=1)
    assert "not kept" == reason(lost(chat, "say one two", "sql-assistant"))
    assert 1 == looks(server)


def test_deleted_meanwhile(server, chat, gate) -> None:
    """A conversation that is deleted is not kept either."""
    server.faults.set(drop=1, times=1)
    turn = chat.conversation("keeper").send("pause 1")
    gate.wait_until_reached()
    assert turn.wait(WAIT)
    recovering = run(reason, turn)
    assert server.wait_for(lambda: looks(server) >= 1)
    FluxbaseAI(server.url, server.token()).delete_conversation(turn.conversation_id)
    assert "not kept" == recovering.result()
    gate.open()


def test_superseded_by_this_client(server, chat) -> None:
    """Another message of the same client is known: nobody needs to be asked."""
    conversation = chat.conversation("keeper")
    server.faults.set(drop=3, times=1)
    turn = conversation.send("say one")
    assert turn.wait(WAIT)
    assert "two" == conversation.ask("say two").text
    assert "superseded" == reason(turn)
    assert 0 == looks(server)


def test_superseded_by_another_client(server, chat) -> None:
    """Another's message stands behind it in what is stored."""
    server.faults.set(drop=3, times=1)
    turn = lost(chat, "say one")
    assert server.wait_for(lambda: server.turns == 1)
    with FluxbaseAIChat(server.ws_url, server.token()) as other:
        other.conversation("keeper", conversation_id=turn.conversation_id).ask("say two")
    assert "superseded" == reason(turn)


def test_an_older_answer_may_still_land(server, chat, gate) -> None:
    """Behind a cancelled turn that the server still runs, nobody can tell whose an answer is."""
    conversation = chat.conversation("keeper")
    cancelled = conversation.send("say old\npause 1\nsay end")
    gate.wait_until_reached()
    cancelled.cancel()
    server.faults.set(drop=3, times=1)
    turn = conversation.send("say new")
    assert turn.wait(WAIT)
    assert "ambiguous" == reason(turn)
    gate.open()
    assert server.wait_for(lambda: server.turns == 2)
    assert "ambiguous" == reason(turn)
    assert "superseded" == reason(cancelled)


# -- turns that ended otherwise -------------------------------------------------------------


def test_a_whole_turn(server, chat) -> None:
    """There is nothing to recover."""
    turn = chat.conversation("keeper").send("say one")
    assert turn.result() == turn.recover()
    assert 0 == looks(server)


def test_a_running_turn(chat, gate) -> None:
    """It is waited for, not recovered."""
    turn = chat.conversation("keeper").send("pause 1")
    with pytest.raises(LocalProtocolError, match="has not ended"):
        turn.recover()
    gate.open()
    turn.result()


def test_a_cancelled_turn(server, chat, gate) -> None:
    """The server finishes what was cancelled; who wants it after all can have it."""
    turn = chat.conversation("keeper").send("say one\npause 1\nsay two")
    gate.wait_until_reached()
    turn.cancel()
    with pytest.raises(TurnCancelledError):
        turn.result()
    gate.open()
    assert "onetwo" == turn.recover(timeout=WAIT).text


def test_a_turn_that_took_too_long(server, chat, gate) -> None:
    """So it is with one that was given up."""
    turns = []
    submit = chat._session.submit_turn
    chat._session.submit_turn = lambda entry, busy: (turns.append(entry), submit(entry, busy))
    conversation = chat.conversation("keeper")
    conversation.start()
    asking = run(conversation.ask, "say one\npause 1\nsay two", timeout=1.0)
    gate.wait_until_reached()
    with pytest.raises(ChatTimeoutError):
        asking.result()
    gate.open()
    assert "onetwo" == Turn(chat._lease, turns[0]).recover(timeout=WAIT).text


def test_garbage(server, chat) -> None:
    """And with one that the client could not read."""
    server.faults.set(garbage="<html>", times=1)
    turn = chat.conversation("keeper").send("say one two")
    assert turn.wait(WAIT)
    assert "one two" == turn.recover(timeout=WAIT).text


# -- the server on the way ------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [{"status": 503}, {"status": 500}, {"status": 429, "retry_after": 0.01}, {"refuse": True}],
    ids=str,
)
def test_the_server_cannot_be_asked_for_a_while(fault, server, chat, monkeypatch) -> None:
    """What may pass is waited for."""
    monkeypatch.setattr("fluxbase_aichat._api._RETRY_DELAY", 0.01)
    server.faults.set(drop=3, times=1)
    turn = lost(chat, "say one")
    assert server.wait_for(lambda: server.turns == 1)
    server.faults.set(**fault)
    with pytest.raises(RecoveryError, match="could not be asked") as caught:
        turn.recover(timeout=0.3)
    assert "timeout" == caught.value.reason
    assert caught.value.__cause__ is not None
    recovering = run(turn.recover)
    server.faults.clear()
    assert "one" == recovering.result().text


def test_the_token_has_expired(server, chat) -> None:
    """What waiting cannot mend is told at once."""
    server.faults.set(drop=3, times=1)
    turn = lost(chat, "say one")
    chat.token = server.token(expires_in=-60)
    with pytest.raises(AuthenticationError, match="the token expired at"):
        turn.recover()
    chat.token = server.token()
    assert "one" == turn.recover().text


def test_a_restarted_server(server, chat, gate) -> None:
    """A turn that died with its server has a question and no answer, for ever."""
    turn = chat.conversation("keeper").send("say one\npause 1")
    gate.wait_until_reached()
    killing = run(server.kill)
    assert server.wait_for(server._runtime.stopping.is_set)
    gate.open()
    killing.result()
    assert turn.wait(WAIT)
    server.start()
    stored = FluxbaseAI(server.url, server.token()).get_conversation(turn.conversation_id)
    assert ["user"] == [message.role for message in stored.messages]
    assert "timeout" == reason(turn, 0.3)


def test_disconnect_ends_the_search(server, chat, gate) -> None:
    """As every wait of the client."""
    server.faults.set(drop=1, times=1)
    turn = chat.conversation("keeper").send("pause 1")
    gate.wait_until_reached()
    assert turn.wait(WAIT)
    recovering = [
        run(turn.recover, timeout=None),
        run(chat.recover, turn.conversation_id, timeout=None),
    ]
    assert server.wait_for(lambda: looks(server) >= 4 and len(chat._session._wakers) == 2)
    chat.disconnect()
    for each in recovering:
        with pytest.raises(NotConnectedError):
            each.result()
    gate.open()
    assert "" == turn.recover(timeout=WAIT).text  # and the next one needs no connection


def test_after_the_with_block(server) -> None:
    """The error takes its turn out of the block, and the answer can still be had."""
    server.faults.set(drop=3, times=1)
    with (
        pytest.raises(ConnectionLostError) as caught,
        FluxbaseAIChat(server.ws_url, server.token()) as chat,
    ):
        chat.ask("keeper", "say one two")
    assert "disconnected" == chat.state
    assert "one two" == caught.value.turn.recover().text


# -- recover_replies ------------------------------------------------------------------------


def recovering_chat(server: DevServer, **options: Any) -> FluxbaseAIChat:
    """Return a chat that recovers lost answers by itself."""
    return FluxbaseAIChat(
        server.ws_url, server.token(), recover_replies=True, reconnect_delay=0.001, **options
    )


def test_by_itself(server) -> None:
    """`ask` and `result` give the recovered answer; callbacks and iterators hear of the loss."""
    errors = Heard()
    with recovering_chat(server, on_error=errors) as chat:
        for ask in (chat.ask, lambda *args: chat.conversation(args[0]).ask(args[1])):
            server.faults.set(drop=3, times=1)
            assert "one two" == ask("keeper", "say one two").text
        server.faults.set(drop=3, times=1)
        turn = chat.conversation("keeper").send("say one two")
        with pytest.raises(ConnectionLostError):
            list(turn)
        assert "one two" == turn.result().text
        assert turn.result() is turn.result()
        assert isinstance(turn.error, ConnectionLostError)
    assert ["CONNECTION_LOST"] * 3 == [code for _, code, _ in errors.items]


def test_by_itself_in_vain(server) -> None:
    """The loss is what is raised, with why nothing was recovered."""
    with recovering_chat(server) as chat:
        server.faults.set(drop=3, times=1)
        with pytest.raises(ConnectionLostError, match="does not keep") as caught:
            chat.ask("sql-assistant", "say one two")
        assert isinstance(caught.value.__cause__, RecoveryError)
        assert isinstance(caught.value.turn, Turn)
        assert (caught.value.sent, caught.value.partial_text) == (True, "one")


@pytest.mark.parametrize("call", ["ask", "result"])
def test_by_itself_and_too_late(call, server, gate) -> None:
    """The time of the call ends the search too."""
    with recovering_chat(server) as chat:
        server.faults.set(drop=3, times=1)
        conversation = chat.conversation("keeper")
        text = "say one\npause 1"
        with pytest.raises(ChatTimeoutError) as caught:  # noqa: PT012 - one of two calls
            if call == "ask":
                conversation.ask(text, timeout=1.5)
            else:
                conversation.send(text).result(timeout=1.5)
        assert ("recover", True) == (caught.value.phase, caught.value.sent)
        gate.wait_until_reached()
        gate.open()


def test_by_itself_only_what_was_lost(server) -> None:
    """An error of the server and a cancelled turn are what they are."""
    with recovering_chat(server) as chat:
        with pytest.raises(ProviderError):
            chat.ask("keeper", "fail")
        assert "one" == chat.ask("keeper", "say one").text
    assert 0 == looks(server)


def test_a_disconnect_while_it_recovers_by_itself(server, gate) -> None:
    """It ends the call."""
    with recovering_chat(server) as chat:
        server.faults.set(drop=3, times=1)
        asking = run(chat.ask, "keeper", "say one\npause 1")
        gate.wait_until_reached()
        assert server.wait_for(lambda: looks(server) >= 1)
        chat.disconnect()
        with pytest.raises(NotConnectedError):
            asking.result()
        gate.open()


# -- from another process -------------------------------------------------------------------


def test_from_another_process(server, chat) -> None:
    """Whoever knows the conversation has the answer to its last question."""
    server.faults.set(drop=3, times=1)
    turn = lost(chat, "say one two")
    other = FluxbaseAIChat(server.ws_url, server.token())
    assert "one two" == other.recover(turn.conversation_id).text
    assert "one two" == other.recover(turn.conversation_id, question="say one two").text
    with pytest.raises(RecoveryError) as caught:
        other.recover(turn.conversation_id, question="say something else", timeout=0.1)
    assert "timeout" == caught.value.reason
    assert "new" == other.state  # it needs no connection


def test_from_another_process_while_it_runs(server, chat, gate) -> None:
    """The last question has no answer yet; the one before has."""
    conversation = chat.conversation("keeper")
    conversation.ask("say zero")
    turn = conversation.send("say one\npause 1\nsay two")
    gate.wait_until_reached()
    recovering = run(FluxbaseAIChat(server.ws_url, server.token()).recover, conversation.id)
    assert server.wait_for(lambda: looks(server) >= 2)
    gate.open()
    assert "onetwo" == recovering.result().text == turn.result().text


def test_of_another_user(server, chat) -> None:
    """Another user's conversation is kept from the caller."""
    chat.ask("keeper", "say one")
    conversation_id = FluxbaseAI(server.url, server.token()).last_conversation("keeper").id
    with pytest.raises(RecoveryError) as caught:
        FluxbaseAIChat(server.ws_url, server.token("bob")).recover(conversation_id)
    assert "not kept" == caught.value.reason
    assert conversation_id not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"conversation_id": ""}, "conversation_id"),
        ({"conversation_id": None}, "conversation_id"),
        ({"question": 5}, "content must be text"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"time_out": 5}, "did you mean timeout"),
    ],
)
def test_bad_parameters(options, said, server, chat) -> None:
    """They are told before anything is asked."""
    with pytest.raises(ConfigurationError, match=said):
        chat.recover(**{"conversation_id": "c-1", **options})
    assert 0 == looks(server)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/ai/ws", ""), ("/ai/ws/", ""), ("/flux/ai/ws", "/flux"), ("/moved", ""), ("", "")],
)
def test_where_the_api_is(path, expected) -> None:
    """It is beside the chat; beside one that a proxy has moved it is where it always is."""

    def script(peer: Peer) -> None:
        peer.refuse("404 Not Found")

    with RawServer(script) as server:
        chat = FluxbaseAIChat(f"ws://127.0.0.1:{server.port}{path}?key=1")
        with pytest.raises(RecoveryError):
            chat.recover("c-1")
        target = server.peer().request.split(" ")[1]
    assert f"{expected}/api/v1/ai/conversations/c-1?key=1" == target
