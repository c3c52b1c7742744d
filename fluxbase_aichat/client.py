"""`FluxbaseAIChat`, the client: it checks what it is given and hands it on to its session."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from ._deadline import Deadline
from ._dispatch import Callbacks
from ._edge import edge
from ._entry import Record
from ._lifetime import Lease
from ._net import check_ssl_context
from ._session import Session, State
from ._wire import check_message
from .config import (
    RECOVER_SECONDS,
    UNSET,
    Limits,
    Settings,
    Timeouts,
    Unset,
    check_name,
    check_seconds,
    named_keywords,
)
from .errors import ConfigurationError, LocalProtocolError
from .results import Reply
from .turn import (
    Conversation,
    IfBusy,
    PageContext,
    Turn,
    ask,
    send,
    start,
)

if TYPE_CHECKING:
    import ssl

    from opentelemetry.trace import Tracer

__all__ = ["FluxbaseAIChat"]


class FluxbaseAIChat:
    """A connection to the AI chat of a Fluxbase server.

    It connects when it is first needed, runs the socket on a daemon thread and fires callbacks
    on another. All methods may be called from any thread, inside callbacks too.

        with FluxbaseAIChat("wss://example.com", token="my-jwt") as chat:
            print(chat.ask("sql-assistant", "How many users are there?"))

    Args:
        ws_url: `ws://`, `wss://`, `http://` or `https://`; an empty path becomes `/ai/ws`.
            `"demo:"` is a dev server in this process (extra `devserver`), which needs no token.
        token: a JWT, or a callable that returns one and is called for every connection, such as
            a `PasswordLogin`; sent as a header. `None` connects anonymously.
        on_content: called with `(delta, conversation_id)`.
        on_progress: called with `(step, message, conversation_id)`.
        on_query_result: called with `(query, summary, row_count, data, conversation_id)`.
        on_done: called with `(usage, conversation_id)`; `usage` is a `Usage` or `None`.
        on_error: called with `(error, code, conversation_id)`, the text of the server's error, or
            of a failure that the client found (code `CONNECTION_LOST`, `TIMEOUT`, `AUTH_FAILED`).
        on_event: called with every event, after the callback of its kind.
        on_callback_error: called with `(exception, event)` when a callback raised; by default
            that is logged.
        service_key: a service key in place of a token.
        headers: further headers of the handshake.
        token_in_query: send the token as `?token=`, for proxies that eat headers.
        impersonate_user_id: act as that user (administrators only).
        reconnect_attempts: how often a lost connection is tried again.
        reconnect_delay: seconds before the first of them.
        timeouts: a `Timeouts`, or seconds for connect, start and idle.
        limits: a `Limits`.
        ssl_context: how to trust the server; by default as the system does.
        proxy: the URL of a proxy (`http://`, or `socks5://` with the `socks` extra), or `"env"`
            for what the environment says; a server on this machine is reached directly.
        allow_insecure: allow credentials over `ws://` to another machine.
        exact_numbers: numbers with a fraction in query results become `decimal.Decimal`.
        recover_replies: `result()` and `ask()` recover a lost answer, see `Turn.recover`.
        tracer: a tracer of OpenTelemetry (extra `otel`): each turn becomes a span with the GenAI
            names, which is the current one in its callbacks; each query is a span inside it.
            Without a tracer there are none.
        trace_content: have questions, answers, SQL and summaries in the spans.

    A callback gets its required positional parameters in order; one with a default only if it has
    the documented name; `*args` gets all.

    Raises:
        ConfigurationError: a parameter is wrong; nothing was sent.

    """

    @named_keywords
    def __init__(
        self,
        ws_url: str,
        token: str | Callable[[], str] | None = None,
        *,
        on_content: Callable[..., object] | None = None,
        on_progress: Callable[..., object] | None = None,
        on_query_result: Callable[..., object] | None = None,
        on_done: Callable[..., object] | None = None,
        on_error: Callable[..., object] | None = None,
        on_event: Callable[..., object] | None = None,
        on_callback_error: Callable[..., object] | None = None,
        service_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        token_in_query: bool = False,
        impersonate_user_id: str | None = None,
        reconnect_attempts: int = 3,
        reconnect_delay: float = 1.0,
        timeouts: Timeouts | float = Timeouts(),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008 - frozen
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        allow_insecure: bool = False,
        exact_numbers: bool = False,
        recover_replies: bool = False,
        tracer: Tracer | None = None,
        trace_content: bool = False,
    ) -> None:
        check_ssl_context(ssl_context)
        if tracer is not None:
            from ._tracing import check_tracer  # noqa: PLC0415 - an extra's

            check_tracer(tracer)
        demo = None
        if ws_url == "demo:":
            from ._demo import Demo  # noqa: PLC0415 - and the dev server, an extra, with it

            demo = Demo.running()
            ws_url, token = demo.url, token or demo.token
        settings = Settings(
            endpoint=ws_url,
            token=token,
            service_key=service_key,
            headers=headers,
            token_in_query=token_in_query,
            impersonate_user_id=impersonate_user_id,
            reconnect_attempts=reconnect_attempts,
            reconnect_delay=reconnect_delay,
            timeouts=timeouts,
            limits=limits,
            ssl_context=ssl_context,
            proxy=proxy,
            allow_insecure=allow_insecure,
            exact_numbers=exact_numbers,
            recover_replies=recover_replies,
            tracer=tracer,
            trace_content=trace_content,
        )
        callbacks = Callbacks.of(
            on_content=on_content,
            on_progress=on_progress,
            on_query_result=on_query_result,
            on_done=on_done,
            on_error=on_error,
            on_event=on_event,
            on_callback_error=on_callback_error,
        )
        self._lease = Lease(Session(settings, callbacks.weakly(), time.monotonic), callbacks)
        if demo is not None:
            demo.serve_for(self._lease)
        self._entered = False

    @classmethod
    @edge
    def from_env(cls, **options: Any) -> Self:
        """Make a client from `FLUXBASE_URL` and, if it is set, `FLUXBASE_TOKEN`.

        `options` are those of the constructor and win. Raises `ConfigurationError`.
        """
        url = options.pop("ws_url", None) or os.environ.get("FLUXBASE_URL")
        if not url:
            raise ConfigurationError("FLUXBASE_URL is not set; it is the server's URL")
        if "token" not in options and "service_key" not in options:
            options["token"] = os.environ.get("FLUXBASE_TOKEN")
        return cls(url, **options)

    @property
    def _session(self) -> Session:
        return self._lease.session

    # -- the connection ---------------------------------------------------------------------

    @named_keywords
    def connect(self, *, timeout: float | Unset | None = UNSET) -> None:
        """Open the connection; nothing happens when it is open. Other calls do it too.

        Args:
            timeout: seconds, in place of `Timeouts.connect`.

        Raises:
            ConnectError: and its kinds `ConnectTimeoutError`, `TLSError`, `HandshakeError`.
            AuthenticationError: the server does not accept the token.
            NotConnectedError: `disconnect` was called meanwhile.

        """
        self._session.connect(
            self._session.settings.timeouts.connect
            if isinstance(timeout, Unset)
            else check_seconds("timeout", timeout)
        )

    @named_keywords
    def disconnect(self, *, timeout: float | Unset | None = UNSET) -> None:
        """Close the connection and end both threads; from any thread, in any state.

        Every wait ends at once with `NotConnectedError`. Callbacks of what had arrived still run,
        for at most `timeout` seconds (by default `Timeouts.close`), unless it is called inside
        one. `connect` opens the connection again; known conversations are kept.
        """
        self._session.disconnect(
            self._session.settings.timeouts.close
            if isinstance(timeout, Unset)
            else check_seconds("timeout", timeout, zero=True)
        )

    def is_connected(self) -> bool:
        """Whether the connection is open."""
        return self._session.state == "connected"

    @property
    def state(self) -> State:
        """`"new"`, `"connecting"`, `"connected"`, `"reconnecting"`, `"lost"`, `"disconnected"`.

        In `"lost"` the next call opens a connection; in `"disconnected"` only `connect` does.
        """
        return self._session.state

    @edge
    def __enter__(self) -> Self:
        if self._entered:
            raise LocalProtocolError("this client is in a with block already")
        self._entered = True
        try:
            self.connect()
        except BaseException:
            self._entered = False
            self.disconnect()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = False
        self.disconnect()

    @property
    def token(self) -> str | Callable[[], str] | None:
        """Set it to use another token from the next connection on; it cannot be read."""
        raise AttributeError("token can be set, and not read")

    @token.setter
    @edge
    def token(self, token: str | Callable[[], str] | None) -> None:
        self._lease.use_token(token)

    # -- conversations ----------------------------------------------------------------------

    @named_keywords
    def start_chat(
        self,
        chatbot: str,
        namespace: str | None = None,
        conversation_id: str | None = None,
        impersonate_user_id: str | None = None,
        *,
        timeout: float | Unset | None = UNSET,
    ) -> str:
        """Start a conversation, or resume one, and return its id when the server has sent it.

        Args:
            chatbot: the chatbot's name.
            namespace: the chatbot's namespace; `None` is `"default"`.
            conversation_id: the conversation to resume.
            impersonate_user_id: the user to act as (administrators only).
            timeout: seconds for the whole call; by default the client's `Timeouts` count.

        Raises:
            ChatbotNotFoundError: there is no such chatbot.
            AuthenticationError: the chatbot needs a signed-in user.
            ConversationNotResumedError: the server opened another conversation; it is usable
                under its `received` id.
            IdentityConflictError: this client acts as another user already.
            ChatTimeoutError: phase `"start"`.
            ConnectError: there is no connection.

        """
        record = self._new_record(chatbot, namespace)
        if conversation_id is not None:
            check_name("conversation_id", conversation_id, what="a conversation's id")
        if impersonate_user_id is not None:
            check_name("impersonate_user_id", impersonate_user_id, what="a user's id")
        return start(self._lease, record, conversation_id, timeout, (impersonate_user_id,))

    @named_keywords
    def send_message(
        self,
        conversation_id: str,
        content: str,
        *,
        page_context: PageContext | None = None,
        if_busy: IfBusy = "queue",
    ) -> Turn:
        """Queue a message and return its turn at once; all that happens later the turn tells.

        Args:
            conversation_id: what `start_chat` returned.
            content: the message.
            page_context: what the page shows (from server 2026.6).
            if_busy: when the conversation has an unfinished turn: `"queue"` behind it,
                `"cancel"` the running one, or `"raise"` a `LocalProtocolError`.

        Raises:
            ConfigurationError: the content is not text.
            LocalProtocolError: this client has not started that conversation, or the content
                cannot be written.
            NotConnectedError: after `disconnect`.

        """
        record = self._session.record(conversation_id)
        if record is None:
            raise LocalProtocolError(
                "conversation_id: this client has not started that conversation; "
                "start_chat(chatbot, conversation_id=...) resumes one"
            )
        return send(self._lease, record, content, page_context, if_busy)

    def cancel(self, conversation_id: str) -> None:
        """Cancel the conversation's running turn, else its oldest queued one, else do nothing."""
        record = self._session.record(conversation_id)
        if record is not None:
            self._session.cancel(record)

    def get_accumulated_content(self, conversation_id: str) -> str:
        """Return the conversation's newest answer so far; `""` for an unknown id."""
        record = self._session.record(conversation_id)
        return "" if record is None else record.accumulated()

    @named_keywords
    def ask(
        self,
        chatbot: str,
        content: str,
        *,
        namespace: str | None = None,
        conversation_id: str | None = None,
        page_context: PageContext | None = None,
        timeout: float | Unset | None = UNSET,
    ) -> Reply:
        """Ask one question and wait for the whole answer, in a new conversation or a named one.

        Args:
            chatbot: the chatbot's name.
            content: the question.
            namespace: the chatbot's namespace; `None` is `"default"`.
            conversation_id: a conversation to go on with.
            page_context: what the page shows (from server 2026.6).
            timeout: seconds for the whole call; it takes the place of the client's `idle` and
                `turn`, and ends the turn as a cancel does.

        Raises:
            ChatTimeoutError: phase `"start"`, `"idle"` or `"turn"`; `partial_text` is what came.
            ConnectionLostError: the connection ended under the answer.
            ServerError: and its kinds: what the server answered.
            FluxbaseChatError: all errors of the library are its kinds.

        """
        record = self._find(chatbot, namespace, conversation_id)
        return ask(self._lease, record, content, page_context, timeout)

    @named_keywords
    def conversation(
        self,
        chatbot: str,
        namespace: str | None = None,
        conversation_id: str | None = None,
        *,
        on_lost: Literal["raise", "new"] = "raise",
    ) -> Conversation:
        """Return a handle on a conversation; nothing is sent yet.

        Args:
            chatbot: the chatbot's name.
            namespace: the chatbot's namespace; `None` is `"default"`.
            conversation_id: the conversation to go on with; `None` begins one.
            on_lost: when the server has lost it: `"raise"` `ConversationNotResumedError`, or go
                on in a `"new"` one.

        """
        if on_lost not in {"raise", "new"}:
            raise ConfigurationError('on_lost must be "raise" or "new"')
        record = self._find(chatbot, namespace, conversation_id)
        record.on_lost = on_lost
        return Conversation(self._lease, record)

    @named_keywords
    def recover(
        self,
        conversation_id: str,
        *,
        question: str | None = None,
        timeout: float | None = RECOVER_SECONDS,
    ) -> Reply:
        """Return the stored answer to the last question of a conversation, whoever has asked it.

        For an answer that was lost with the process that asked. `Turn.recover` knows more: without
        a turn it cannot be told whether an older question of the same text is meant. It needs no
        connection, and works after `disconnect` too.

        Args:
            conversation_id: the conversation.
            question: what was asked; another last question is not taken for it.
            timeout: seconds; `None` is no limit.

        Raises:
            RecoveryError: as `Turn.recover` says.
            NotConnectedError: `disconnect` was called meanwhile.
            FluxbaseChatError: the REST side refuses, as `FluxbaseAI.get_conversation` says.

        """
        check_name("conversation_id", conversation_id, what="a conversation's id")
        if question is not None:
            check_message(question, None)
        deadline = Deadline(check_seconds("timeout", timeout), self._session.clock)
        from ._recover import Question, recover  # noqa: PLC0415 - few answers are lost

        return recover(self._session, conversation_id, Question(content=question), deadline)

    @named_keywords
    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until all turns have ended and their callbacks have run; say whether that is so.

        Inside a callback it waits for the turns only.
        """
        session = self._session
        deadline = Deadline(check_seconds("timeout", timeout, zero=True), session.clock)
        with session.blocking():
            while entries := session.unfinished():
                for entry in entries:
                    waiter = entry.answer.ended if entry.answer is not None else entry.outcome
                    assert waiter is not None  # noqa: S101 - an entry has one of them
                    if not waiter.wait(deadline.remaining()):
                        return False
            return session.wait_for_callbacks(deadline)

    def _find(self, chatbot: str, namespace: str | None, conversation_id: str | None) -> Record:
        """Return the known conversation, or a record of one that is yet to be started."""
        record = self._new_record(chatbot, namespace)
        if conversation_id is not None:
            record.id = check_name("conversation_id", conversation_id, what="a conversation's id")
            known = self._session.record(record.id)
            if (
                known is not None
                and known.chatbot == chatbot
                and (known.namespace == record.namespace)
            ):
                return known
        return record

    def _new_record(self, chatbot: str, namespace: str | None) -> Record:
        check_name("chatbot", chatbot, what="a chatbot's name")
        if namespace is not None:
            check_name("namespace", namespace, what="a chatbot's namespace")
        return Record(chatbot=chatbot, namespace=namespace or self._namespace(chatbot))

    def _namespace(self, chatbot: str) -> str:  # noqa: ARG002 - see FluxbaseAI.create_chat
        """Return the namespace of a chatbot that was named without one."""
        return "default"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a FluxbaseAIChat has a connection and threads, and cannot be pickled; "
            "pickle its parameters and make a client in the other process"
        )

    def __repr__(self) -> str:
        return f"<FluxbaseAIChat {self._session.settings.endpoint} {self.state}>"
