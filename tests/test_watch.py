"""The timers of a connection, as the table at the top of `_watch` says."""

import math

import pytest

from fluxbase_aichat._protocol import Message, Start
from fluxbase_aichat._watch import Watch


def message(idle=300.0, limit=None):
    return Message(conversation_id="c", content="hi", idle=idle, limit=limit)


def test_idle_link_is_pinged_and_a_dead_peer_noticed():
    """After 20 s of silence a ping goes out, and its pong is awaited for 20 s."""
    watch = Watch(100.0, drain=300.0)
    assert (120.0, "ping") == watch.next()
    watch.pinged(120.0)
    assert (140.0, "dead") == watch.next()
    watch.heard(121.0)
    assert (141.0, "ping") == watch.next()


def test_no_pong_is_awaited_in_a_turn():
    """A server reads nothing in a turn: a ping on its way is forgotten when a message goes out."""
    watch = Watch(0.0, drain=300.0)
    watch.pinged(20.0)
    watch.wrote(message(), 21.0)
    assert (321.0, "idle") == watch.next()
    watch.ended(400.0)
    assert (420.0, "ping") == watch.next()


@pytest.mark.parametrize(
    ("idle", "limit", "expected"),
    [
        (300.0, None, (300.0, "idle")),
        (300.0, 60.0, (60.0, "turn")),
        (None, 60.0, (60.0, "turn")),
        (None, None, (math.inf, "turn")),
    ],
)
def test_the_limits_of_a_turn(idle, limit, expected):
    """The sooner of the two counts; None is no limit."""
    watch = Watch(0.0, drain=300.0)
    watch.wrote(message(idle, limit), 0.0)
    assert expected == watch.next()


def test_silence_counts_from_the_last_byte():
    """Every byte moves the end of the silence, and none the end of the turn."""
    watch = Watch(0.0, drain=300.0)
    watch.wrote(message(10.0, 25.0), 0.0)
    for moment in (9.0, 14.0):
        watch.heard(moment)
        assert (moment + 10.0, "idle") == watch.next()
    watch.heard(20.0)
    assert (25.0, "turn") == watch.next()


def test_a_start_has_one_limit():
    """What is heard meanwhile does not lengthen it."""
    watch = Watch(0.0, drain=300.0)
    watch.wrote(Start(chatbot="bot", limit=30.0), 5.0)
    watch.heard(20.0)
    assert (35.0, "start") == watch.next()


def test_a_pause_counts_for_nothing_but_a_turn():
    """What is not read cannot be late; a turn has its limit for all that happens to it."""
    watch = Watch(0.0, drain=300.0)
    watch.wrote(Start(chatbot="bot", limit=30.0), 5.0)
    watch.paused(20.0)
    assert (50.0, "start") == watch.next()
    watch.wrote(message(10.0, 25.0), 50.0)
    watch.paused(59.0)
    assert (69.0, "idle") == watch.next()
    watch.paused(70.0)
    assert (75.0, "turn") == watch.next()


def test_a_cancelled_turn_drains():
    """Its end is awaited as long as nothing may be heard in a turn."""
    watch = Watch(0.0, drain=300.0)
    watch.wrote(message(), 0.0)
    watch.drains(10.0)
    watch.heard(50.0)
    assert (350.0, "drained") == watch.next()
    endless = Watch(0.0, drain=None)
    endless.drains(0.0)
    assert (math.inf, "drained") == endless.next()
