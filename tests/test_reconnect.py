"""When a lost connection is tried again: delays, what the server asks for, what is final."""

from __future__ import annotations

import datetime as dt
import email.utils
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbase_aichat._handshake import _retry_after
from fluxbase_aichat._reconnect import Backoff, is_final
from fluxbase_aichat.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    FluxbaseChatError,
    HandshakeError,
    MissingExtraError,
    NotConnectedError,
    PermissionDeniedError,
    ProxyError,
    RateLimitError,
    RemoteProtocolError,
    TLSError,
)

LOST = ConnectionLostError("the stream ended")


def delays(backoff: Backoff, error: FluxbaseChatError = LOST) -> list[float]:
    """Return the delays until it gives up."""
    found = []
    while (delay := backoff.next(error)) is not None:
        found.append(delay)
        assert len(found) <= 1000
    return found


def drawn(seed: int) -> Callable[[], float]:
    """Return numbers from 0 to 1 that are the same each time."""
    return random.Random(seed).random  # noqa: S311 - no secret depends on it


def steps(attempts: int, delay: float) -> list[float]:
    """Return the whole delays, of which at least half is waited."""
    return [min(30.0, delay * 2.0**n) for n in range(attempts)]


# -- delays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("delay", [0.001, 1.0, 7.0, 30.0, 60.0])
def test_r05_twenty_attempts(seed, delay) -> None:
    """Each of 20 delays is between half and all of its step, which is never above 30 s."""
    found = delays(Backoff(20, delay, drawn(seed)))
    assert 20 == len(found)
    for seconds, step in zip(found, steps(20, delay), strict=True):
        assert step / 2 <= seconds <= step
    assert 20 == len(set(found))


@pytest.mark.parametrize(("number", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_r05_the_share_that_is_random(number, share) -> None:
    """Half of each delay is drawn, so clients of one server do not come back together."""
    found = delays(Backoff(7, 1.0, lambda: number))
    assert [step * share for step in (1, 2, 4, 8, 16, 30, 30)] == found


def test_r05_many_attempts() -> None:
    """The delays do not grow out of what a number can hold."""
    backoff = Backoff(5000, 1.0, lambda: 1.0)
    found = [backoff.next(LOST) for _ in range(5000)]
    assert {30.0} == set(found[5:])
    assert backoff.next(LOST) is None


def test_r05_no_delay() -> None:
    """A delay of 0 stays one."""
    assert [0.0] * 4 == delays(Backoff(4, 0.0, drawn(1)))


def test_r05_no_attempts() -> None:
    """With 0 attempts nothing is tried again, whatever has happened."""
    backoff = Backoff(0, 1.0, lambda: 1.0)
    assert [] == delays(backoff)
    backoff.reset()
    assert [] == delays(backoff)
    assert 0 == backoff.attempt


@given(attempts=st.integers(0, 40), delay=st.floats(0, 60), seed=st.integers())
def test_r05_any_policy(attempts, delay, seed) -> None:
    """Whatever the policy: so many attempts, each within its step."""
    backoff = Backoff(attempts, delay, drawn(seed))
    found = delays(backoff)
    assert (attempts, attempts) == (len(found), backoff.attempt)
    for seconds, step in zip(found, steps(attempts, delay), strict=True):
        assert step / 2 <= seconds <= step
    assert backoff.next(LOST) is None, "it has given up"


def test_r05_counting_anew() -> None:
    """After a good connection all attempts are there again, from the shortest delay on."""
    backoff = Backoff(3, 1.0, lambda: 1.0)
    assert 1.0 == backoff.next(LOST)
    assert 2.0 == backoff.next(LOST)
    assert 2 == backoff.attempt
    backoff.reset()
    assert 0 == backoff.attempt
    assert [1.0, 2.0, 4.0] == delays(backoff)
    backoff.reset()
    assert [1.0, 2.0, 4.0] == delays(backoff)


# -- what is final --------------------------------------------------------------------------

FINAL: list[FluxbaseChatError] = [
    HandshakeError("", status=400),
    AuthenticationError(""),
    PermissionDeniedError(""),
    HandshakeError("", status=404),
    TLSError(""),
    ConfigurationError(""),
    MissingExtraError(""),
    ProxyError("", retryable=False),
    NotConnectedError(""),
]
PASSING: list[FluxbaseChatError] = [
    LOST,
    ConnectError(""),
    ConnectTimeoutError(""),
    ProxyError(""),
    RateLimitError(""),
    RemoteProtocolError(""),
    *(HandshakeError("", status=status) for status in (None, 408, 426, 500, 502, 503, 504)),
]


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_r05_final_errors(error) -> None:
    """What waiting cannot mend is not tried again, and uses up no attempt."""
    backoff = Backoff(3, 1.0, lambda: 1.0)
    assert is_final(error)
    assert backoff.next(error) is None
    assert 0 == backoff.attempt


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_r05_passing_errors(error) -> None:
    """Everything else is."""
    assert not is_final(error)
    assert [1.0, 2.0, 4.0] == delays(Backoff(3, 1.0, lambda: 1.0), error)


# -- R09: what the server asks for ----------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "waited"),
    [(5, 5.0), (0, 1.0), (0.5, 1.0), (60, 60.0), (61, 60.0), (1e9, 60.0), (None, 1.0)],
)
@pytest.mark.parametrize("kind", [RateLimitError, HandshakeError])
def test_r09_retry_after_within_the_cap(kind, asked, waited) -> None:
    """It is waited as long as was asked, at most a minute, and never less than by our own step."""
    error = kind("busy", retry_after=asked)
    assert waited == Backoff(3, 1.0, lambda: 1.0).next(error)


def test_r09_the_longer_counts() -> None:
    """A later step that is longer than what was asked for is kept."""
    backoff = Backoff(6, 1.0, lambda: 1.0)
    busy = RateLimitError("busy", retry_after=5)
    assert [5, 5, 5, 8, 16, 30] == delays(backoff, busy)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 5 ", 5.0),
        ("0", 0.0),
        ("2.5", 2.5),
        ("1000000000", 1e9),
        ("-1", None),
        ("-0.1", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e999", None),
        ("", None),
        ("soon", None),
        ("5 seconds", None),
        ("0x10", None),
        ("Wed, 32 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
        (None, None),
    ],
)
def test_r09_numbers_and_junk(value, seconds) -> None:
    """A number of seconds is taken, junk is as if nothing was said."""
    assert seconds == _retry_after(value, None)


def test_r09_dates() -> None:
    """A date is as many seconds as are left until then: none, when it is past."""
    now = dt.datetime.now(dt.UTC)
    soon = _retry_after(email.utils.format_datetime(now + dt.timedelta(seconds=40)), None)
    assert soon is not None
    assert 30 < soon <= 40
    far = _retry_after(email.utils.format_datetime(now + dt.timedelta(days=900)), None)
    assert far is not None
    assert 60.0 == Backoff(1, 1.0, lambda: 1.0).next(RateLimitError("", retry_after=far))
    assert 0.0 == _retry_after("Wed, 21 Oct 2015 07:28:00 GMT", None)


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"retry_after": 5}, 5.0),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": -5}, None),
        ({"retry_after": True}, None),
        ({"retry_after": None}, None),
        ({"retry_after": [5]}, None),
        ({}, None),
        ([5], None),
        ("5", None),
    ],
)
def test_r09_the_field_of_the_body(body, seconds) -> None:
    """Without the header the body's field counts; beside it, it does not."""
    assert seconds == _retry_after(None, body)
    assert 3.0 == _retry_after("3", body)


@given(st.text() | st.from_regex(r"\w{3}, [\d:+ -]{1,30}( GMT)?", fullmatch=True))
def test_r09_any_value(value) -> None:
    """No value of the header breaks anything, or gives what cannot be waited for."""
    seconds = _retry_after(value, None)
    assert seconds is None or 0 <= seconds < float("inf")
