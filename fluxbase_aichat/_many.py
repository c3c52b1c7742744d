"""`ask_many`: many questions side by side, each in a conversation of its own.

Workers ask, one more thread tells what they got: no answer that has come is lost by Ctrl-C, which
reaches the main thread only.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from ._answer import Flag
from ._deadline import start
from ._wire import check_message
from .client import FluxbaseAIChat
from .config import check_count, check_name, named_keywords
from .errors import ConfigurationError, FluxbaseChatError, LocalProtocolError
from .pool import ChatPool, Token, UserKey
from .results import Reply
from .turn import Turn

__all__ = ["Answered", "Source", "ask_each", "ask_many"]

Source = FluxbaseAIChat | ChatPool | Mapping[str, Any]
Answered = Reply | FluxbaseChatError

Lend = Callable[[], AbstractContextManager[FluxbaseAIChat]]

# What the threads may take after Ctrl-C; one may wait for a pool's connection.
_END_SECONDS: Final = 10.0


@named_keywords
def ask_many(
    chat_or_pool_or_settings: Source,
    chatbot: str,
    questions: Iterable[str],
    *,
    workers: int = 4,
    namespace: str | None = None,
    user: UserKey | None = None,
    token: Token = None,
) -> list[Answered]:
    """Ask many questions, each in a conversation of its own, and return the answers in order.

    Where a question failed, its error stands in place of the answer. Ctrl-C cancels what runs.

    Args:
        chat_or_pool_or_settings: a client, which asks one after another; a pool; or the parameters
            of a client (`{"ws_url": ..., "token": ...}`), for `workers` connections of its own.
        chatbot: the chatbot's name.
        questions: the messages; all are checked before the first is sent.
        workers: as many are asked at once; on a pool no more than its `size`.
        namespace: the chatbot's namespace; `None` is `"default"`.
        user: for a pool, where it is required: whose connections it lends, see `ChatPool.chat`.
        token: for a pool, that person's token; `None` is nobody's.

    Raises:
        ConfigurationError: an argument is wrong; nothing was sent.
        LocalProtocolError: a question cannot be written; nothing was sent.

    """
    answers: dict[int, Answered] = {}
    ask_each(
        chat_or_pool_or_settings,
        chatbot,
        questions,
        answers.__setitem__,
        workers=workers,
        namespace=namespace,
        user=user,
        token=token,
    )
    return [answers[number] for number in range(len(answers))]


def ask_each(
    source: Source,
    chatbot: str,
    questions: Iterable[str],
    tell: Callable[[int, Answered], object],
    *,
    workers: int = 4,
    namespace: str | None = None,
    user: UserKey | None = None,
    token: Token = None,
) -> None:
    """Ask many questions, and have each answer told as soon as it is there, with its number.

    `tell(number, answer)` is called on a thread of its own. Once it has raised, nothing more is
    asked; what has been asked is still told, and then this raises the same. After Ctrl-C the turns
    that run are cancelled and not told. For the rest see `ask_many`.
    """
    check_name("chatbot", chatbot, what="a chatbot's name")
    if namespace is not None:
        check_name("namespace", namespace, what="a chatbot's namespace")
    check_count("workers", workers)
    asked = _check_questions(questions)
    if not isinstance(source, ChatPool) and not (user is None and token is None):
        raise ConfigurationError("user and token are for a ChatPool; others have a token already")
    with contextlib.ExitStack() as stack:
        lend: Lend
        if isinstance(source, FluxbaseAIChat):
            workers = 1  # its server answers one at a time
            client = source
            lend = lambda: contextlib.nullcontext(client)  # noqa: E731 - shorter than its type
        elif isinstance(source, ChatPool):
            workers = min(workers, source.stats().size)
            if user is None:
                raise ConfigurationError("user is missing: whose connections shall the pool lend?")
            lend = functools.partial(source.chat, user=user, token=token)
            lend()  # raises for what is wrong with the person; it waits on entering only
        else:
            lend = _own_pool(stack, source, workers)
        _Asking(asked, lend, tell, chatbot, namespace).run(min(workers, len(asked)))


def _check_questions(questions: Iterable[str]) -> list[str]:
    if isinstance(questions, (str, bytes)) or not isinstance(questions, Iterable):
        raise ConfigurationError(
            f"questions must be a list of texts, not {type(questions).__name__}"
        )
    asked = list(questions)
    for number, question in enumerate(asked):
        try:
            check_message(question, None)
        except (ConfigurationError, LocalProtocolError) as error:
            raise type(error)(f"questions[{number}]: {error}") from None
    return asked


def _own_pool(stack: contextlib.ExitStack, settings: Mapping[str, Any], size: int) -> Lend:
    """Return what lends connections of a pool that is closed with the stack."""
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise ConfigurationError(
            "the first argument must be a FluxbaseAIChat, a ChatPool, or a mapping of a client's "
            f"parameters by name, not {type(settings).__name__}"
        )
    options = {"ws_url": None, **settings}
    FluxbaseAIChat(**options)  # raises for what is wrong with them
    person = {
        name: options.pop(name, None) for name in ("token", "service_key", "impersonate_user_id")
    }
    # Its callers wait for nobody else, so they wait for each other's ends only.
    pool = ChatPool(options.pop("ws_url"), size=size, idle=None, acquire_timeout=None, **options)
    stack.enter_context(pool)
    return functools.partial(pool.chat, user="ask_many", **person)


class _Asking:
    """The questions of one call, and the threads that ask them."""

    def __init__(
        self,
        questions: Sequence[str],
        lend: Lend,
        tell: Callable[[int, Answered], object],
        chatbot: str,
        namespace: str | None,
    ) -> None:
        self._questions = questions
        self._lend = lend
        self._tell = tell
        self._chatbot = chatbot
        self._namespace = namespace
        # `None`: a worker has ended.
        self._answers: queue.SimpleQueue[tuple[int, Answered] | None] = queue.SimpleQueue()
        self._ended = Flag()
        self._lock = threading.Lock()  # guards all below
        self._next = 0
        self._running: set[Turn] = set()
        self._interrupted = False
        self._failure: BaseException | None = None

    def run(self, workers: int) -> None:
        """Ask all; raise what a thread has raised."""
        self._start("tell", functools.partial(self._tell_all, workers))
        missing = workers
        try:
            for _ in range(workers):
                self._start("ask", self._work)
                missing -= 1
            self._ended.wait()
        except BaseException:
            for _ in range(missing):
                self._answers.put(None)  # in place of who was not started
            self._interrupt()
            self._ended.wait(_END_SECONDS)
            raise
        if self._failure is not None:
            raise self._failure

    def _start(self, what: str, target: Callable[[], None]) -> None:
        start(threading.Thread(target=target, name=f"fluxbase-aichat-{what}", daemon=True))

    def _interrupt(self) -> None:
        with self._lock:
            self._next = len(self._questions)
            self._interrupted = True
            running = list(self._running)
        for turn in running:
            turn.cancel()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._next = len(self._questions)
            self._failure = self._failure or error

    # -- the workers ------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (number := self._take()) is not None:
                answered = self._ask(self._questions[number])
                if answered is not None:
                    self._answers.put((number, answered))
        except BaseException as bug:  # noqa: BLE001 - raised again in run()
            self._fail(bug)
        finally:
            self._answers.put(None)

    def _take(self) -> int | None:
        with self._lock:
            if self._next >= len(self._questions):
                return None
            self._next += 1
            return self._next - 1

    def _ask(self, question: str) -> Answered | None:
        """Return the answer, `None` when Ctrl-C came before it."""
        try:
            with self._lend() as chat:
                turn = chat.conversation(self._chatbot, self._namespace).send(question)
                with self._lock:
                    self._running.add(turn)
                    interrupted = self._interrupted
                if interrupted:
                    turn.cancel()
                try:
                    return turn.result()
                finally:
                    with self._lock:
                        self._running.discard(turn)
        except FluxbaseChatError as error:
            # Its traceback would keep the worker's frames.
            return None if self._interrupted else error.with_traceback(None)

    # -- the thread that tells --------------------------------------------------------------

    def _tell_all(self, workers: int) -> None:
        while workers:
            answer = self._answers.get()
            if answer is None:
                workers -= 1
                continue
            try:
                self._tell(*answer)
            except BaseException as error:  # noqa: BLE001 - raised again in run()
                self._fail(error)
        self._ended.set()
