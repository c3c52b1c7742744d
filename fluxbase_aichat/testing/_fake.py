"""`FakeServer`: a real server on a real socket whose answers a test writes down.

It is the dev server with another model; how a server behaves stands there.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self
from uuid import NAMESPACE_URL, uuid5

from fluxbase_aichat import _reconnect
from fluxbase_aichat.config import check_name, check_seconds, check_text, named_keywords
from fluxbase_aichat.devserver import DevServer, Faults, World
from fluxbase_aichat.devserver._chatbots import Chatbot
from fluxbase_aichat.devserver._script import Call, Cut, Fail, Model, Pause, Say, Step, words
from fluxbase_aichat.devserver._sql import QueryResult as ServedResult
from fluxbase_aichat.errors import ConfigurationError
from fluxbase_aichat.results import QueryResult

from ._values import Rows, failed_result, query_result

__all__ = ["FakeAnswer", "FakeServer", "no_waiting"]

_ROUNDS: Final = 5
"""As many rounds of prose and queries the real server runs for one question."""


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Let no client of this process wait before it reconnects, nor a `FakeServer` in a `pause`.

    A context manager, and so a decorator: `with no_waiting(): ...`, or in unittest
    `self.enterContext(no_waiting())`. It may be nested. For tests only.
    """
    before = _reconnect.waiting()
    _reconnect.switch_waiting(on=False)
    try:
        yield
    finally:
        _reconnect.switch_waiting(on=before)


class FakeAnswer:
    """What a `FakeServer` answers to certain questions. Each method adds a step and returns it.

    The steps come in their order, after the `progress` events of a real server.
    """

    def __init__(self, contains: str | None) -> None:
        self._contains = None if contains is None else contains.casefold()
        self._steps: list[Step] = []
        self._left: int | None = None

    def say(self, text: str) -> Self:
        """Stream `text`, word by word."""
        check_text("text", text)
        return self._add(Say(words(text)))

    def rows(self, rows: Rows, query: str = "") -> Self:
        """Send a query result with these rows, `[]` for one that found nothing.

        Values are Python's, see `reply`. `query` is the SQL; by default one that names the
        columns in the order of the first row.
        """
        return self._add(_call(query_result(rows, query), "ok" if rows else "empty"))

    def failed_query(self, query: str = "SELECT nothing FROM fake") -> Self:
        """Send the result of a query that failed, as the server does: without rows."""
        return self._add(_call(failed_result(query), "failed"))

    def error(self, error: str, code: str = "") -> Self:
        """End the turn with an error; `code` as the server's, such as `"RATE_LIMITED"`."""
        check_text("error", error)
        check_text("code", code)
        return self._add(Fail(error, code))

    def drop(self) -> Self:
        """Cut the connection, as a broken network does."""
        return self._add(Cut())

    def pause(self, seconds: float) -> Self:
        """Wait; under `no_waiting` go on at once."""
        if check_seconds("seconds", seconds, zero=True) is None:
            raise ConfigurationError("seconds must be a number; hold() waits for release()")
        return self._add(Pause(seconds))

    def hold(self) -> Self:
        """Wait until the test calls `server.release()`, or closes the server."""
        return self._add(Pause(math.inf))

    def once(self) -> Self:
        """Answer one question only; the next one gets the next answer that fits."""
        self._left = 1
        return self

    def _add(self, step: Step) -> Self:
        steps = [*self._steps, step]
        if len(_rounds(steps)) > _ROUNDS:
            raise ConfigurationError(
                f"a server runs at most {_ROUNDS} rounds of text and queries for a question"
            )
        self._steps = steps
        return self

    def _fits(self, content: str) -> bool:
        return self._left != 0 and (self._contains is None or self._contains in content.casefold())

    def __repr__(self) -> str:
        about = "any question" if self._contains is None else f"questions with {self._contains!r}"
        return f"<FakeAnswer to {about}, {len(self._steps)} step(s)>"


class _FakeWorld(World):
    """The chatbots that a test has named, and their answers."""

    def __init__(self) -> None:
        super().__init__(trusting=True)
        self._lock = threading.Lock()
        self._chatbots: dict[tuple[str, str], Chatbot] = {}
        self._answers: dict[str, list[FakeAnswer]] = {}

    def add(self, namespace: str, name: str, answer: FakeAnswer) -> None:
        chatbot_id = str(uuid5(NAMESPACE_URL, f"{namespace}/{name}"))
        with self._lock:
            self._chatbots[namespace, name] = Chatbot(
                name, chatbot_id, "A fake", frozenset(), namespace=namespace, anonymous=True
            )
            self._answers.setdefault(chatbot_id, []).append(answer)

    @property
    def chatbots(self) -> Sequence[Chatbot]:
        with self._lock:
            return tuple(self._chatbots.values())

    def chatbot(self, namespace: str, name: str) -> Chatbot | None:
        with self._lock:
            return self._chatbots.get((namespace, name))

    def answer(self, chatbot: Chatbot, content: str, earlier: Sequence[str]) -> Model:  # noqa: ARG002 - each answer stands for itself
        with self._lock:
            answers = self._answers[chatbot.id]
            fitting = [answer for answer in answers if answer._fits(content)]  # noqa: SLF001
            # What was written for this question goes before what was written for all.
            found = min(fitting, key=lambda answer: answer._contains is None, default=None)  # noqa: SLF001
            if found is None:
                missing = f"the test has no answer for this question to {chatbot.name!r}"
                steps: list[Step] = [Fail(missing, "NO_FAKE_ANSWER")]
            else:
                steps = found._steps  # noqa: SLF001
                found._left = None if found._left is None else found._left - 1  # noqa: SLF001
        return _model(_rounds(steps))


class FakeServer:
    """A Fluxbase server on loopback that answers what a test has told it. Thread-safe.

        with FakeServer() as server:
            server.on("sql-assistant", contains="orders").say("Hi").rows([{"id": 1}])

    Of the answers that fit a question, those with `contains` go before those without, and the
    older before the newer. It takes any token and none, and everything else is as on a real
    server, whose protocol it speaks. Raises `MissingExtraError` without the extra `devserver`.
    """

    def __init__(self) -> None:
        self._world = _FakeWorld()
        self._server = DevServer(world=self._world, pause=self._pause)
        self._releases: list[None] = []

    def start(self) -> Self:
        """Listen, on a free port; idempotent."""
        self._server.start()
        return self

    def close(self) -> None:
        """End every connection and stop listening; idempotent."""
        self._server.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @named_keywords
    def on(
        self, chatbot: str, contains: str | None = None, *, namespace: str = "default"
    ) -> FakeAnswer:
        """Return the answer, empty yet, to questions to `chatbot` that have `contains` in them.

        Upper and lower case are the same; `None` is any question. A chatbot that no answer names
        is not found.
        """
        check_name("chatbot", chatbot, what="a chatbot's name")
        check_name("namespace", namespace, what="a chatbot's namespace")
        if contains is not None:
            check_text("contains", contains)
        answer = FakeAnswer(contains)
        self._world.add(namespace, chatbot, answer)
        return answer

    @property
    def url(self) -> str:
        """What to give to `FluxbaseAIChat`; known once the server was started."""
        return self._server.ws_url

    @property
    def received(self) -> list[dict[str, Any]]:
        """The client's messages so far, of all connections, in the order of their coming.

        Each is the object that was on the wire: `{"type": "message", "content": …}`.
        """
        return [found.frame for found in self._server.received]

    @property
    def faults(self) -> Faults:
        """What goes wrong on purpose: `server.faults.status = 503`, and more."""
        return self._server.faults

    def release(self) -> None:
        """Let one answer go on that is in a `hold`, or will come to one."""
        self._releases.append(None)
        self._server._runtime.notify()  # noqa: SLF001 - of this package

    def drop_connections(self) -> None:
        """Cut every connection that is open."""
        self._server.drop_connections()

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 5.0) -> bool:
        """Wait until `predicate()` holds, asked after everything that comes; say if it did."""
        return self._server.wait_for(predicate, timeout)

    def _pause(self, seconds: float) -> None:
        runtime = self._server._runtime  # noqa: SLF001 - of this package
        if seconds == math.inf:
            runtime.wait_for(lambda: runtime.stopping.is_set() or self._released(), None)
        elif _reconnect.waiting():
            runtime.stopping.wait(seconds)

    def _released(self) -> bool:
        if not self._releases:
            return False
        self._releases.pop()
        return True

    def __repr__(self) -> str:
        return f"<FakeServer, {len(self._server.received)} message(s) received>"


def _call(result: QueryResult, status: Any) -> Call:
    served = ServedResult(result.query, status, result.summary, result.row_count, result.data)
    return Call("execute_sql", {"sql": result.query, "description": "fake query"}, served)


def _rounds(steps: Sequence[Step]) -> list[list[Step]]:
    """Cut the steps into rounds of a model: prose, then queries, and prose again after them."""
    rounds: list[list[Step]] = [[]]
    for step in steps:
        if rounds[-1] and isinstance(rounds[-1][-1], Call) and not isinstance(step, Call):
            rounds.append([])
        rounds[-1].append(step)
    if rounds[-1] and isinstance(rounds[-1][-1], Call):
        rounds.append([])
    return rounds


def _model(rounds: list[list[Step]]) -> Model:
    for steps in rounds:  # noqa: UP028 - a list cannot be sent the queries' results
        yield steps
