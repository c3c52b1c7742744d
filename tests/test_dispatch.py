"""The callback thread and what callbacks are given."""

import contextvars
import functools
import threading

import pytest

from fluxbase_aichat import ConfigurationError, events
from fluxbase_aichat._deadline import Deadline
from fluxbase_aichat._dispatch import Callbacks, Dispatcher, Post
from fluxbase_aichat._wire import ContentRun

EVENT = events.Progress(conversation_id="c", step="thinking", message="Thinking...")


@pytest.fixture
def told():
    """Return what callbacks were given."""
    return []


def tell(*items, **callbacks):
    """Run one dispatcher over some items, to its end; return a mark for each that failed."""
    failures = []
    dispatcher = Dispatcher(Callbacks.of(**callbacks), lambda: failures.append("failed"))
    dispatcher.want()
    dispatcher.start()
    dispatcher.post(Post(contextvars.copy_context(), items))
    dispatcher.rest()
    dispatcher.stop(Deadline(5))
    return failures


class Method:
    """An object whose bound method is a callback."""

    def __init__(self, told):
        self.told = told

    def on_progress(self, step, message):
        """Keep both."""
        self.told.append((step, message))

    def __call__(self, step):
        """Keep it."""
        self.told.append(step)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda t: lambda step: t.append(step.upper()), "THINKING"),
        (lambda t: lambda step, message: t.append((step, message)), ("thinking", "Thinking...")),
        (lambda t: lambda a, b, c: t.append((a, b, c)), ("thinking", "Thinking...", "c")),
        (lambda t: lambda *all_: t.append(all_), ("thinking", "Thinking...", "c")),
        (
            lambda t: lambda s, conversation_id=None: t.append((s, conversation_id)),
            ("thinking", "c"),
        ),
        (lambda t: lambda s, colour="red": t.append((s, colour)), ("thinking", "red")),
        (lambda t: lambda s, *, message: t.append((s, message)), ("thinking", "Thinking...")),
        (lambda t: lambda s, **rest: t.append((s, rest)), ("thinking", {})),
        (lambda t: lambda: t.append("called"), "called"),
        (lambda t: t.append, "thinking"),
        (lambda t: Method(t).on_progress, ("thinking", "Thinking...")),
        (Method, "thinking"),
        (lambda t: functools.partial(lambda a, b: t.append((a, b)), "mine"), ("mine", "thinking")),
    ],
)
def test_what_a_callback_gets(make, expected, told):
    """Required parameters in order, documented names, `*args` all: looked at once."""
    tell(EVENT, on_progress=make(told))
    assert [expected] == told


@pytest.mark.parametrize("wrong", [lambda a, b, c, d: None, lambda *, colour: None, 5, "print"])
def test_what_cannot_be_a_callback(wrong):
    """More parameters than there are arguments, or something that cannot be called."""
    with pytest.raises(ConfigurationError, match="on_progress"):
        Callbacks.of(on_progress=wrong)


def test_on_event_follows_the_callback_of_the_kind(told):
    """Content is told delta by delta to both."""
    run = ContentRun(
        "c", ["a", "b"], {"type": "content", "conversation_id": "c", "message_id": "m"}
    )
    tell(run, on_content=told.append, on_event=lambda event: told.append(event.raw))
    rest = {"type": "content", "conversation_id": "c", "message_id": "m"}
    assert ["a", {**rest, "delta": "a"}, "b", {**rest, "delta": "b"}] == told


def test_errors_in_callbacks(told, caplog):
    """An exception is logged with its traceback, or told, and the next callback runs."""

    def broken(step):
        told.append(step)
        raise SystemExit("not here")

    failures = tell(EVENT, EVENT, on_progress=broken)
    assert ["thinking", "thinking"] == told
    assert 2 == len(failures)
    record = caplog.records[0]
    assert "a callback failed on a progress event" == record.getMessage()
    assert record.exc_info[0] is SystemExit
    caplog.clear()

    tell(EVENT, on_progress=broken, on_callback_error=lambda e, event: told.append((str(e), event)))
    assert ("not here", EVENT) == told[-1]
    assert [] == caplog.records

    tell(EVENT, on_progress=broken, on_callback_error=lambda e: 1 / 0)
    assert ["on_callback_error failed"] == [r.getMessage() for r in caplog.records]


def test_contexts(told):
    """A callback runs in the context of its post."""
    variable = contextvars.ContextVar("variable", default="outside")
    context = contextvars.copy_context()
    context.run(variable.set, "inside")
    dispatcher = Dispatcher(Callbacks.of(on_progress=lambda: told.append(variable.get())))
    dispatcher.want()
    dispatcher.start()
    dispatcher.post(Post(context, [EVENT]))
    dispatcher.post(Post(contextvars.copy_context(), [EVENT]))
    dispatcher.rest()
    dispatcher.stop(Deadline(5))
    assert ["inside", "outside"] == told


def test_stopping_drops_what_is_late(told):
    """After its deadline `stop` waits for the running callback no more, and it is the last."""
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(step):
        told.append(step)
        started.set()
        assert release.wait(5)
        ended.set()

    dispatcher = Dispatcher(Callbacks.of(on_progress=slow))
    dispatcher.want()
    dispatcher.start()
    dispatcher.post(Post(contextvars.copy_context(), [EVENT, EVENT]))
    dispatcher.post(Post(contextvars.copy_context(), [EVENT]))
    assert started.wait(5)
    assert dispatcher.wait_idle(Deadline(0)) is False
    dispatcher.rest()
    dispatcher.stop(Deadline(0))
    release.set()
    assert ended.wait(5)
    assert dispatcher.wait_idle(Deadline(5))
    assert ["thinking"] == told
