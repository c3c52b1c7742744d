"""`ChatPool`, connections for web workers.

A pool lends clients and takes them back; what happens on the wire is the clients' own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import threading
import time
import types
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import attrs

from ._answer import Flag
from ._deadline import Clock, Deadline, start
from ._edge import brief, edge
from ._lifetime import Loan, tell_of_forks
from ._value import Value
from .client import FluxbaseAIChat
from .config import Settings, check_count, check_name, check_seconds, named_keywords, suggest
from .errors import (
    ConfigurationError,
    ConnectError,
    FluxbaseChatError,
    NotConnectedError,
    PoolTimeoutError,
)
from .turn import PageContext, Turn

__all__ = ["ChatPool", "PoolStats", "Token", "UserKey"]

UserKey = str | int | uuid.UUID
"""The application's own key of a person."""
Token = str | Callable[[], str] | None

_PERSONAL: Final = ("token", "service_key", "impersonate_user_id")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class PoolStats(Value):
    """What a pool has at one moment."""

    size: int
    """As many connections as there may be."""
    busy: int
    """Connections that are lent."""
    idle: int
    """Connections that are kept for their persons."""
    waiting: int
    """Callers that wait for a connection."""
    opened: int
    """Clients made so far."""
    reused: int
    """How often an idle connection was lent again."""
    timeouts: int
    """How many callers have waited in vain."""


@attrs.frozen(eq=False, kw_only=True)
class _Person:
    """Who asks, and with which credentials."""

    user: UserKey
    settings: Settings = attrs.field(repr=False)
    credentials: tuple[object, ...] = attrs.field(repr=False)


@attrs.define(eq=False, kw_only=True)
class _Place:
    """One of the pool's connections: lent to a caller, or idle. Each lending has its own."""

    person: _Person
    client: FluxbaseAIChat | None = None
    """`None` until the caller it is lent to has made it."""
    evicted: FluxbaseAIChat | None = None
    """Whose place it was; to be closed before the new one connects."""
    expires: float = math.inf
    """When an idle one is closed; `-inf`: it is not lent again."""


class _Waiter:
    """A caller that waits for a place."""

    def __init__(self, person: _Person) -> None:
        self.person = person
        self.served = Flag()
        self.place: _Place | None = None


class ChatPool:
    """Connections of many persons, for the worker threads of a web application.

    A connection belongs to one person, under the application's own key of that person, and is
    lent to one caller at a time; an idle one is lent again to the same person with the same
    credentials, and to nobody else. When all are lent, callers wait, and are served in order.
    Connections open when they are first used. All methods may be called from any thread; after a
    fork the child's pool is empty.

        pool = ChatPool("wss://example.com")

        with pool.chat(user=request.user.pk, token=jwt) as chat:
            reply = chat.ask("sql-assistant", "How many users are there?")

    Args:
        url: the server's, as of `FluxbaseAIChat`.
        size: the most connections at once. (A lease that cancels a turn may have that turn's
            connection besides, until it goes back.)
        idle: seconds after which an unused connection is closed; `None` is never, 0 at once.
        acquire_timeout: seconds that a caller may wait for a connection; `None` is no limit.
        options: those of `FluxbaseAIChat`, but for the three that are a person's: `token`,
            `service_key` and `impersonate_user_id`. Callbacks are called for all persons, on one
            thread a connection.

    Raises:
        ConfigurationError: a parameter is wrong.

    """

    @edge
    def __init__(
        self,
        url: str,
        *,
        size: int = 8,
        idle: float | None = 300.0,
        acquire_timeout: float | None = 5.0,
        **options: Any,
    ) -> None:
        check_count("size", size)
        known = {*inspect.signature(FluxbaseAIChat).parameters} - {"ws_url", *_PERSONAL}
        for name in options:
            if name in _PERSONAL:
                raise ConfigurationError(f"{name} is a person's: pass it to chat() or send()")
            if name not in known:
                names = known | {"size", "idle", "acquire_timeout"}
                raise ConfigurationError(
                    f"ChatPool() has no parameter {name}: {suggest(name, names)}"
                )
        self._size = size
        self._idle_seconds = check_seconds("idle", idle, zero=True)
        self._acquire_seconds = check_seconds("acquire_timeout", acquire_timeout, zero=True)
        self._make = functools.partial(FluxbaseAIChat, url, **options)
        # What the options are worth is checked there; a person's token comes later.
        # It is kept, because with "demo:" it keeps the dev server running.
        self._probe = self._make(token="-" if options.get("token_in_query") else None)
        self._settings = self._probe._session.settings  # noqa: SLF001
        self._clock: Clock = time.monotonic
        self._closed = False
        # Rung when the janitor has to look again; a list, because it outlives the pool.
        self._alarm = [Flag()]
        self._begin()
        tell_of_forks(self)
        weakref.finalize(self, _ring, self._alarm).atexit = False

    def _begin(self) -> None:
        """Be empty: at first, and in the child of a fork."""
        # Guards all below. It is never taken twice: it is asked whether it is (`_put`).
        self._lock = threading.RLock()
        self._idle: list[_Place] = []  # the one unused for longest first
        self._busy: set[_Place] = set()
        self._closing = 0  # connections that the janitor closes: they count until they are
        self._waiting: deque[_Waiter] = deque()
        self._janitor: threading.Thread | None = None
        self._opened = self._reused = self._timeouts = 0

    def after_fork(self) -> None:
        """Begin anew in a child process: what is lent or idle is the parent's."""
        self._begin()

    # -- lending ----------------------------------------------------------------------------

    @named_keywords
    def chat(
        self,
        *,
        user: UserKey,
        token: Token,
        service_key: str | None = None,
        impersonate_user_id: str | None = None,
    ) -> AbstractContextManager[FluxbaseAIChat]:
        """Lend a client: `with pool.chat(user=..., token=...) as chat:`.

        It waits on entering, for at most `acquire_timeout`. At the end the client goes back, or as
        soon as the turns that still run have ended; it forgets all conversations, and `chat` can
        begin nothing more. Conversations go on under their ids in a later lease.

        Args:
            user: the application's own key of the person; nobody else gets this connection.
            token: as of `FluxbaseAIChat`; `None` is nobody's. A new one under the same `user`
                replaces the idle connection. Callables are the same if they are one object.
            service_key: in place of a token.
            impersonate_user_id: the user to act as (administrators and service keys only).

        Raises:
            ConfigurationError: an argument is wrong; raised at once.
            PoolTimeoutError: all connections stayed busy.
            NotConnectedError: the pool was closed.

        """
        settings = attrs.evolve(
            self._settings,
            token=token,
            service_key=service_key,
            impersonate_user_id=impersonate_user_id,
        )
        credentials = (_identity(token), service_key, impersonate_user_id)
        return self._lend(
            _Person(user=_check_user(user), settings=settings, credentials=credentials)
        )

    @contextlib.contextmanager
    def _lend(self, person: _Person) -> Iterator[FluxbaseAIChat]:
        try:
            place = self._acquire(person)
        except FluxbaseChatError as error:
            brief(error)
            raise
        chat = _LentChat(place)
        try:
            yield chat
        finally:
            chat.give_back(functools.partial(_come_back, weakref.ref(self), weakref.ref(place)))

    @named_keywords
    def send(
        self,
        chatbot: str,
        content: str,
        *,
        user: UserKey,
        token: Token,
        conversation_id: str | None = None,
        page_context: PageContext | None = None,
        namespace: str | None = None,
        service_key: str | None = None,
        impersonate_user_id: str | None = None,
    ) -> Turn:
        """Send a message over a connection of its own, which goes back when the turn has ended.

        For responses that are streamed while the request handler has returned: see
        `Turn.iter_sse`. It waits for a connection for at most `acquire_timeout`, and no longer.

        Args:
            chatbot: the chatbot's name.
            content: the message.
            user: see `chat`, as for `token`, `service_key` and `impersonate_user_id`.
            token: see `chat`.
            conversation_id: the conversation to go on with; `None` begins one. It is a secret:
                one that comes from a browser must be checked to belong to `user`.
            page_context: what the page shows (from server 2026.6).
            namespace: the chatbot's namespace; `None` is `"default"`.
            service_key: see `chat`.
            impersonate_user_id: see `chat`.

        Raises:
            ConfigurationError: an argument is wrong.
            LocalProtocolError: the content cannot be written.
            PoolTimeoutError: all connections stayed busy.
            NotConnectedError: the pool was closed.

        """
        with self.chat(
            user=user,
            token=token,
            service_key=service_key,
            impersonate_user_id=impersonate_user_id,
        ) as chat:
            conversation = chat.conversation(chatbot, namespace, conversation_id)
            return conversation.send(content, page_context=page_context)

    # -- the places -------------------------------------------------------------------------

    def _acquire(self, person: _Person) -> _Place:
        """Wait for a place, and return it with its client."""
        waiter = _Waiter(person)
        try:
            with self._lock:
                self._check_open()
                self._waiting.append(waiter)
                self._serve()
            waiter.served.wait(self._acquire_seconds)
            place = self._served(waiter)
            self._furnish(place)
        except BaseException:
            self._withdraw(waiter)
            raise
        return place

    def _check_open(self) -> None:
        if self._closed:
            raise NotConnectedError("the pool was closed", sent=False)

    def _served(self, waiter: _Waiter) -> _Place:
        with self._lock:
            self._check_open()
            if waiter.place is not None:
                return waiter.place
            self._timeouts += 1
            raise PoolTimeoutError(
                f"no connection came free within {self._acquire_seconds:g} s: "
                f"{len(self._busy) + self._closing} of {self._size} busy, "
                f"{len(self._waiting)} waiting",
                hint="a larger size=, or cancelling answers that nobody reads, helps",
            )

    def _furnish(self, place: _Place) -> None:
        """Make the client of a new place; nobody else has it yet."""
        if place.evicted is not None:
            place.evicted.disconnect()
            place.evicted = None
        if place.client is None:
            settings = place.person.settings
            place.client = self._make(**{name: getattr(settings, name) for name in _PERSONAL})
            with self._lock:
                if place not in self._busy:
                    raise NotConnectedError("the pool was closed", sent=False)
                self._opened += 1

    def _withdraw(self, waiter: _Waiter) -> None:
        """Take back a caller's wish, and its place if it has one."""
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            place = waiter.place
        if place is not None:
            self._put(place, good=False)

    def _serve(self) -> None:
        """Give places to who waits, the first first; the lock must be held."""
        while self._waiting:
            place = self._allot(self._waiting[0].person)
            if place is None:
                return
            waiter = self._waiting.popleft()
            waiter.place = place
            waiter.served.set()

    def _allot(self, person: _Person) -> _Place | None:
        """Return a place for a person, `None` if all are lent; the lock must be held."""
        evicted: _Place | None = None
        found: _Place | None = None
        for place in self._idle[::-1]:
            if place.person.user != person.user:
                continue
            if place.person.credentials != person.credentials or not _usable(place):
                # Broken, or under a token that is not the person's any more.
                place.expires = -math.inf
                self._alarm[0].set()
                evicted = place
            else:
                found = found or place
        if found is not None:
            self._idle.remove(found)
            self._reused += 1
            return self._lent(_Place(person=person, client=found.client))
        count = len(self._idle) + len(self._busy) + self._closing
        if evicted is None and count >= self._size:
            if not self._idle:
                return None
            evicted = min(self._idle, key=lambda place: (_usable(place), place.expires))
        if evicted is not None:
            self._idle.remove(evicted)
            return self._lent(_Place(person=person, evicted=evicted.client))
        return self._lent(_Place(person=person))

    def _lent(self, place: _Place) -> _Place:
        self._busy.add(place)
        return place

    def _put(self, place: _Place, *, good: bool) -> None:
        """Take back a place: for the same person again if it is good, else to be closed."""
        if self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
            # The garbage collector, which may run anywhere, has just ended somebody's lease.
            put = functools.partial(self._put, place, good=good)
            start(threading.Thread(target=put, name="fluxbase-aichat-pool", daemon=True))
            return
        with self._lock:
            if place not in self._busy:
                return  # the pool was closed, or forked
            self._busy.remove(place)
            client = place.client or place.evicted
            if client is not None and client.state != "new":  # else there is nothing to close
                now = self._clock()
                seconds = math.inf if self._idle_seconds is None else self._idle_seconds
                expires = now + seconds if good else -math.inf
                self._idle.append(_Place(person=place.person, client=client, expires=expires))
                if expires <= now:  # the janitor expects the next one later
                    self._alarm[0].set()
            self._serve()
            janitor = None
            if self._idle and self._janitor is None:
                janitor = self._janitor = threading.Thread(
                    target=_tend,
                    args=(weakref.ref(self), self._alarm),
                    name="fluxbase-aichat-pool",
                    daemon=True,
                )
        if janitor is not None:
            try:
                start(janitor)
            except ConnectError:  # the interpreter is shutting down
                self._janitor = None

    def _tidy(self) -> float | None:
        """Close what has expired; return the seconds until the next, `None` if none is idle."""
        with self._lock:
            now = self._clock()
            expired = [place for place in self._idle if place.expires <= now]
            for place in expired:
                self._idle.remove(place)
            self._closing = len(expired)
        _disconnect([place.client for place in expired], self._settings.timeouts.close)
        with self._lock:
            self._closing = 0
            self._serve()
            if not self._idle:
                self._janitor = None
                return None
            self._alarm[0] = Flag()
            return max(0.0, min(place.expires for place in self._idle) - self._clock())

    # -- the whole --------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return what the pool has now."""
        with self._lock:
            return PoolStats(
                size=self._size,
                busy=len(self._busy),
                idle=len(self._idle),
                waiting=len(self._waiting),
                opened=self._opened,
                reused=self._reused,
                timeouts=self._timeouts,
            )

    def close(self) -> None:
        """Close all connections, and end every wait on them and for them; idempotent.

        Running turns end with `NotConnectedError`, as in `FluxbaseAIChat.disconnect`. Afterwards
        `chat` and `send` raise it.
        """
        with self._lock:
            self._closed = True
            places = [*self._idle, *self._busy]
            self._idle.clear()
            self._busy.clear()
            waiting, self._waiting = self._waiting, deque()
            for waiter in waiting:
                waiter.served.set()
            self._alarm[0].set()
        clients = [client for place in places for client in (place.client, place.evicted)]
        _disconnect(clients, self._settings.timeouts.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a ChatPool has connections and cannot be pickled; make one in each process"
        )

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<ChatPool {self._settings.endpoint}: {stats.busy} busy and {stats.idle} idle of "
            f"{stats.size}, {stats.waiting} waiting{', closed' if self._closed else ''}>"
        )


class _LentChat(FluxbaseAIChat):
    """A pool's client in one caller's hands."""

    def __init__(self, place: _Place) -> None:  # it has a connection already
        assert place.client is not None  # noqa: S101 - furnished before
        self._lender = place.client
        self._lender._session.lent()  # noqa: SLF001 - its own class
        self._lease = self._loan = Loan(self._lender._lease)  # noqa: SLF001 - its own class
        # A second `with` inside the pool's would disconnect it.
        self._entered = True

    def give_back(self, then: Callable[[], object]) -> None:
        """Begin nothing more; `then` is called when nothing is unfinished."""
        session = self._lender._session  # noqa: SLF001 - its own class
        self._loan.take_back()
        session.when_idle(then)


def _come_back(pool: weakref.ref[ChatPool], place: weakref.ref[_Place]) -> None:
    """Put a place back whose caller and turns have ended. It holds neither alive until then."""
    the_pool, the_place = pool(), place()
    if the_pool is not None and the_place is not None and the_place.client is not None:
        good = the_place.client._session.forget()  # noqa: SLF001 - the pool's own client
        the_pool._put(the_place, good=good)  # noqa: SLF001 - of this module's own class


def _tend(pool: weakref.ref[ChatPool], alarm: list[Flag]) -> None:
    """Close idle connections in time, until there is none; the pool's only thread."""
    while (the_pool := pool()) is not None:
        seconds = the_pool._tidy()  # noqa: SLF001 - of this module's own class
        if seconds is None:
            return
        flag = alarm[0]
        del the_pool
        flag.wait(None if math.isinf(seconds) else seconds)


def _ring(alarm: list[Flag]) -> None:
    """Wake the janitor. Called by the garbage collector: no locks."""
    alarm[0].set()


def _disconnect(clients: Iterable[FluxbaseAIChat | None], seconds: float | None) -> None:
    """Disconnect them, all by one deadline."""
    deadline = Deadline(seconds)
    for client in clients:
        if client is not None:
            client.disconnect(timeout=deadline.remaining())


def _usable(place: _Place) -> bool:
    return (
        place.expires != -math.inf
        and place.client is not None
        and place.client.is_connected()  # takes no lock
    )


def _identity(token: Token) -> object:
    """Return what tells tokens apart; of a callable which one it is, without asking it."""
    if isinstance(token, types.MethodType):
        return id(token.__self__), id(token.__func__)
    return id(token) if callable(token) else token


def _check_user(user: object) -> UserKey:
    if isinstance(user, bool) or not isinstance(user, (str, int, uuid.UUID)):
        raise ConfigurationError(
            "user must be the application's own key of the person (a str, int or UUID), not "
            f"{type(user).__name__}; anonymous visitors need a key each, such as their session's"
        )
    if isinstance(user, str):
        check_name("user", user, what="the application's own key of the person")
    return user
