"""What arrives for one turn, for the threads that wait for it."""

import threading
import time

import pytest
from helpers import run as call
from hypothesis import given
from hypothesis import strategies as st

from fluxbase_aichat import (
    ChatTimeoutError,
    ConnectionLostError,
    TurnCancelledError,
    _answer,
    events,
)
from fluxbase_aichat._answer import Answer, Outcome, Position, Text, fresh
from fluxbase_aichat._deadline import Deadline
from fluxbase_aichat._wire import ContentRun

DONE = events.Done(conversation_id="c")
STEP = events.Progress(conversation_id="c", step="generating")


def run(*deltas):
    return ContentRun("c", list(deltas), {"type": "content", "conversation_id": "c"})


def answer():
    moments = iter(range(100))
    return Answer("bot", lambda: float(next(moments)))


@given(st.lists(st.one_of(st.just("split"), st.lists(st.text(max_size=3)))))
def test_text(actions):
    """The segments are what was said between tools, and the text is all of them."""
    text, expected = Text(), [""]
    for action in actions:
        if action == "split":
            text.split()
            expected.append("")
        else:
            text.add(run(*action))
            expected[-1] += "".join(action)
        assert "".join(expected) == text.value
    assert tuple(part for part in expected if part) == text.segments


def test_long_texts_are_joined_on_the_way():
    """A million deltas are not kept as a million strings."""
    text, rest = Text(), {"type": "content"}
    begun = [text.add(ContentRun("c", ["ab"] * 1000, rest)) for _ in range(1000)]
    kept = [new.deltas for new in begun if new is not None]
    assert sum(map(len, kept)) < 50_000
    assert "ab" * 1_000_000 == "".join(delta for deltas in kept for delta in deltas) == text.value


@given(st.lists(st.one_of(st.just("read"), st.just("event"), st.integers(1, 9)), max_size=60))
def test_every_reader_gets_every_delta_once(actions):
    """However runs grow, end and are joined: one that reads now and then, and a late one."""
    rest = {"type": "content", "conversation_id": "c"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_answer, "_RUN", 4)
        patch.setattr(_answer, "_LOOSE_RUNS", 2)
        it, count = answer(), 0
        position, expected, got = Position(), [], []
        for action in actions:
            if action == "read":
                got += flat(it.read(position, Deadline(0))[0])
            elif action == "event":
                it.feed([STEP], 0)
                expected.append("|")
            else:
                deltas = [chr(0x4E00 + count + n) for n in range(action)]
                count += action
                came = ContentRun("c", deltas.copy(), rest)
                it.feed([came], action)
                assert deltas == came.deltas  # it is the callback thread's as well
                expected += deltas
        got += flat(it.read(position, Deadline(0))[0])
    assert "".join(expected) == "".join(got)
    assert "".join(expected) == "".join(flat(it.read(Position(), Deadline(0))[0]))
    assert "".join(expected).replace("|", "") == it.current_text()


def flat(items):
    """Return the deltas of items; `|` is an event."""
    return [d for i in items for d in (i.deltas if isinstance(i, ContentRun) else ["|"])]


def test_an_outcome_is_set_once():
    """The first value or error counts, and each raise is an exception of its own."""
    outcome = Outcome()
    assert outcome.wait(0) is False
    assert outcome.fail(ChatTimeoutError("late", phase="start"))
    assert outcome.resolve("c") is False
    raised = []
    for _ in range(2):
        with pytest.raises(ChatTimeoutError) as caught:
            outcome.get()
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert "start" == raised[0].phase == raised[1].phase


def test_fresh_errors_keep_their_cause():
    """A copy to raise says what caused the first."""
    error = ConnectionLostError("lost", sent=True)
    error.__cause__ = OSError("reset")
    assert error.__cause__ is fresh(error).__cause__


class Interrupted(list):
    """Those who wait; Ctrl-C comes when the first of them is taken out."""

    def pop(self, *arguments):
        """Take one out, and nobody has it."""
        super().pop(*arguments)
        raise KeyboardInterrupt


def test_ctrl_c_while_a_flag_is_set():
    """Whoever waits hears of it all the same."""
    outcome = Outcome()
    outcome._set._waiting = Interrupted()
    waiting = call(outcome.wait, None)
    while not outcome._set._waiting:
        pass
    with pytest.raises(KeyboardInterrupt):
        outcome.resolve("c-1")
    assert not outcome.resolve("c-1")
    assert waiting.result()


def test_ctrl_c_while_an_answer_ends():
    """Whoever reads it hears of it all the same."""
    answer = Answer("bot", time.monotonic)
    reading = call(answer.read, Position(), Deadline(None))
    while not answer._readers:
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer, "_wake", Interrupted([1]).pop)
        with pytest.raises(KeyboardInterrupt):
            answer.fail(TurnCancelledError("it was"))
    assert not answer.fail(TurnCancelledError("it was"))
    assert ([], True) == reading.result()


def test_an_answer_is_resolved_once():
    """What comes after the end is refused, and changes nothing."""
    it = answer()
    assert it.feed([run("a")], 1)
    assert it.fail(TurnCancelledError("cancelled"))
    assert it.feed([run("b")], 1) is False
    assert it.finish(DONE) is False
    assert it.fail(ConnectionLostError("lost")) is False
    assert "a" == it.current_text() == it.error.partial_text
    assert it.cancelled
    assert it.done is None


def test_reading():
    """A reader gets what there is from its position, and hears of the end."""
    it, position = answer(), Position()
    it.feed([run("a", "b"), run("c")], 3)
    items, last = it.read(position, Deadline(0))
    assert ([run("a", "b"), run("c")], False) == (items, last)
    assert ([], False) == it.read(position, Deadline(0))
    it.feed([DONE], 0)
    it.finish(DONE)
    assert ([DONE], True) == it.read(position, Deadline(0))


def test_a_reader_of_a_run_that_grows():
    """What came behind the reader's place in a run is given once, and alone."""
    it, position, came = answer(), Position(), run("a")
    it.feed([came], 1)
    assert ([run("a")], False) == it.read(position, Deadline(0))
    it.feed([ContentRun("c", ["b", "c"], came.rest)], 2)
    assert ([run("b", "c")], False) == it.read(position, Deadline(0))
    assert ([run("a", "b", "c")], False) == it.read(Position(), Deadline(0))


def test_a_reader_is_woken():
    """A waiting reader gets the next batch as it comes."""
    it, got, ready = answer(), [], threading.Event()

    def read():
        ready.set()
        got.extend(it.read(Position(), Deadline(5))[0])

    thread = threading.Thread(target=read)
    thread.start()
    assert ready.wait(5)
    it.feed([run("a")], 1)
    thread.join(5)
    assert [run("a")] == got


def test_a_turn_that_nobody_holds_keeps_no_events():
    """The text and the results stay; the log is empty."""
    it = answer()
    it.feed([run("a")], 1)
    it.forget()
    it.feed([run("b")], 1)
    assert [] == it._log
    assert "ab" == it.current_text()


def test_the_times_of_a_reply():
    """The duration and the time to the first delta count from the sending."""
    it = answer()
    it.sent("c")  # 0
    it.feed([run("a")], 1)  # 1
    it.feed([run("b")], 1)
    it.finish(DONE)  # 2
    reply = it.reply()
    assert (1.0, 2.0) == (reply.time_to_first_content, reply.duration)
    assert ("ab", ("ab",), "bot", "c") == (
        reply.text,
        reply.segments,
        reply.chatbot,
        reply.conversation_id,
    )
