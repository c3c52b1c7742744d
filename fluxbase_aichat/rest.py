"""`FluxbaseAI`, the REST side of the AI chat: chatbots, stored conversations, usage.

It checks what it is given and says what each call asks and reads; how it is made is `_api`'s.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from . import stored
from ._api import Call, chat_of, endpoint_of, perform, read_conversation
from ._deadline import Deadline
from ._edge import edge
from ._lifetime import calling
from ._net import check_ssl_context
from ._wire import read_object
from .client import FluxbaseAIChat
from .config import (
    UNSET,
    Limits,
    Settings,
    Unset,
    check_count,
    check_name,
    check_seconds,
    named_keywords,
)
from .errors import (
    ApiError,
    ChatbotNotFoundError,
    ConfigurationError,
    FluxbaseChatError,
    NotFoundError,
    RemoteProtocolError,
)
from .login import PasswordLogin, RefreshToken
from .results import Quota, read_quota
from .stored import Chatbot, ConversationPage, ConversationSummary, StoredConversation

if TYPE_CHECKING:
    import ssl

    from ._demo import Demo

__all__ = ["FluxbaseAI", "PasswordLogin", "RefreshToken"]

T = TypeVar("T")

_LONGEST_TITLE = 200
# The server gives no more on one page (PROTOCOL 5).
_LONGEST_PAGE = 100
_SHOWN_NAMES = 20


class FluxbaseAI:
    """The REST side of the AI chat of a Fluxbase server.

        api = FluxbaseAI("https://example.com", token="my-jwt")
        for conversation in api.iter_conversations(chatbot="sql-assistant"):
            print(conversation.updated_at, conversation.title)

    It keeps no connection and nothing has to be closed. All methods may be called from any thread.
    Calls that change nothing, and `delete_conversation`, are made again (twice at most) after a
    connection that failed and a status that may pass (429 and 500 to 504).

    Args:
        url: the server, `https://` or `http://`; a chat's URL serves too. What stands before
            `/ai/ws` in its path, or all of another path, stands before `/api/v1` too. `"demo:"` is
            the dev server of `FluxbaseAIChat("demo:")`.
        token: a JWT, or a callable that returns one and is called for every request, such as
            `PasswordLogin`. `None`: anonymous, which only lists chatbots.
        service_key: a service key in place of a token.
        headers: further headers of every request.
        token_in_query: send the token as `?token=`, for proxies that eat headers.
        timeout: seconds for a whole call, all its attempts included; `None` is no limit. Each
            call's own `timeout` takes its place. Connecting takes 10 s at most.
        limits: a `Limits`; `message_bytes` bounds an answer.
        ssl_context: how to trust the server; by default as the system does.
        proxy: the URL of a proxy, or `"env"`.
        allow_insecure: allow credentials over `http://` to another machine.
        exact_numbers: numbers with a fraction in query results become `decimal.Decimal`.

    Every call raises, besides what it says itself:

    - `AuthenticationError`, `PermissionDeniedError`, `RateLimitError`: 401, 403, 429
    - `NotFoundError`, `ApiError`: 404, any other status but 200
    - `FeatureDisabledError`: chat is switched off on the server
    - `ConnectError` and its kinds, `ConnectionLostError`, `ChatTimeoutError`
    - `RemoteProtocolError`: the answer cannot be read
    - `ConfigurationError`: a parameter is wrong; nothing was sent

    """

    @named_keywords
    def __init__(
        self,
        url: str,
        token: str | Callable[[], str] | None = None,
        *,
        service_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        token_in_query: bool = False,
        timeout: float | None = 30.0,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        ssl_context: ssl.SSLContext | None = None,
        proxy: str | None = None,
        allow_insecure: bool = False,
        exact_numbers: bool = False,
    ) -> None:
        check_ssl_context(ssl_context)
        self._timeout = check_seconds("timeout", timeout)
        self._demo: Demo | None = None  # it runs as long as somebody holds it
        if url == "demo:":
            from ._demo import Demo  # noqa: PLC0415 - and the dev server, an extra, with it

            self._demo = Demo.running()
            url, token = self._demo.url, token or self._demo.token
        # What a chat with the same server shares with this.
        self._options: dict[str, Any] = {
            "headers": headers,
            "token_in_query": token_in_query,
            "limits": limits,
            "ssl_context": ssl_context,
            "proxy": proxy,
            "allow_insecure": allow_insecure,
            "exact_numbers": exact_numbers,
        }
        self._settings = Settings(
            endpoint=endpoint_of(url), token=token, service_key=service_key, **self._options
        )

    # -- chatbots ---------------------------------------------------------------------------

    @named_keywords
    def list_chatbots(self, *, timeout: float | Unset | None = UNSET) -> list[Chatbot]:
        """Return the public chatbots; works without credentials."""
        return self._chatbots(self._deadline(timeout))

    @named_keywords
    def get_chatbot(self, chatbot_id: str, *, timeout: float | Unset | None = UNSET) -> Chatbot:
        """Return the chatbot of that id.

        Servers up to 2026.3 answer 404 even for a chatbot that they list; it is then taken from
        their list.

        Raises:
            NotFoundError: there is none, and none is listed.

        """
        call = Call(
            name="get_chatbot",
            method="GET",
            path="/ai/chatbots/{}",
            id=check_name("chatbot_id", chatbot_id, what="a chatbot's id"),
            read=stored.read_chatbot,
            again=True,
        )
        deadline = self._deadline(timeout)
        try:
            return self._perform(call, deadline)
        except NotFoundError as error:
            for chatbot in self._chatbots(deadline):
                if chatbot.id == chatbot_id:
                    return chatbot
            error.hint = "list_chatbots() does not have it either"
            raise

    @named_keywords
    def lookup_chatbot(self, name: str, *, timeout: float | Unset | None = UNSET) -> Chatbot:
        """Return the public chatbot of that name, in whatever namespace it is.

        Of several the one in `default` is returned.

        Raises:
            NotFoundError: there is none; the hint has the names that are alike.
            ApiError: status 409: there are several, in namespaces that the message names.

        """
        call = Call(
            name="lookup_chatbot",
            method="GET",
            path="/ai/chatbots/by-name/{}",
            id=check_name("name", name, what="a chatbot's name"),
            read=stored.read_chatbot,
            again=True,
        )
        deadline = self._deadline(timeout)
        try:
            return self._perform(call, deadline)
        except NotFoundError as error:
            with contextlib.suppress(FluxbaseChatError):
                error.hint = _nearest(name, self._chatbots(deadline))
            raise
        except ApiError as error:
            namespaces = _namespaces(error.body)
            if namespaces:
                error.args = (f"the chatbot {name!r} is in several namespaces: {namespaces}",)
                error.hint = "say which one: namespace="
            raise

    @named_keywords
    def get_usage(self, chatbot_id: str, *, timeout: float | Unset | None = UNSET) -> Quota:
        """Return what is used of the daily limits of a chatbot (servers from 2026.6).

        Raises:
            NotFoundError: there is no such chatbot, or the server is older.

        """
        call = Call(
            name="get_usage",
            method="GET",
            path="/ai/chatbots/{}/usage",
            id=check_name("chatbot_id", chatbot_id, what="a chatbot's id"),
            read=read_quota,
            again=True,
        )
        try:
            return self._perform(call, self._deadline(timeout))
        except NotFoundError as error:
            error.hint = "servers before 2026.6 do not tell the usage"
            raise

    # -- conversations ----------------------------------------------------------------------

    @named_keywords
    def list_conversations(
        self,
        *,
        chatbot: str | None = None,
        namespace: str | None = None,
        limit: int = 50,
        offset: int = 0,
        timeout: float | Unset | None = UNSET,
    ) -> ConversationPage:
        """Return a part of the stored conversations of the caller, the last changed first.

        Args:
            chatbot: only those with the chatbot of this name.
            namespace: only those with chatbots of this namespace.
            limit: how many; the server gives 100 at most.
            offset: how many to leave out before.
            timeout: seconds, in place of the client's.

        """
        check_count("limit", limit)
        check_count("offset", offset, 0)
        for name, value in (("chatbot", chatbot), ("namespace", namespace)):
            if value is not None:
                check_name(name, value, what=f"a {name}'s name")
        call = Call(
            name="list_conversations",
            method="GET",
            path="/ai/conversations",
            query={"chatbot": chatbot, "namespace": namespace, "limit": limit, "offset": offset},
            read=stored.read_page,
            again=True,
        )
        return self._perform(call, self._deadline(timeout))

    @named_keywords
    def iter_conversations(
        self,
        *,
        chatbot: str | None = None,
        namespace: str | None = None,
        page_size: int = _LONGEST_PAGE,
        timeout: float | Unset | None = UNSET,
    ) -> Iterator[ConversationSummary]:
        """Yield the stored conversations of the caller, asking for the next page when it is needed.

        None comes twice, and those that are deleted on the way leave none out. One that is changed
        on the way may be left out: it moves to the front. `timeout` is for each page.
        """
        check_count("page_size", page_size)
        return self._pages(
            functools.partial(
                self.list_conversations,
                chatbot=chatbot,
                namespace=namespace,
                limit=page_size,
                timeout=timeout,
            )
        )

    def _pages(self, page_at: Callable[..., ConversationPage]) -> Iterator[ConversationSummary]:
        seen: set[str] = set()
        offset, total = 0, 0
        while True:
            page = page_at(offset=offset)
            if page.total < total:
                # So many are gone, perhaps before us: what followed them has moved up.
                offset, total = max(0, offset - (total - page.total)), page.total
                continue
            total = page.total
            for summary in page:
                if summary.id not in seen:
                    seen.add(summary.id)
                    yield summary
            offset += len(page)
            if not page.has_more or not page:
                return

    @named_keywords
    def last_conversation(
        self,
        chatbot: str,
        namespace: str | None = None,
        *,
        timeout: float | Unset | None = UNSET,
    ) -> ConversationSummary | None:
        """Return the caller's last changed conversation with a chatbot that has messages in it.

        `None` when there is none: also for a chatbot that does not persist its conversations.
        """
        check_name("chatbot", chatbot, what="a chatbot's name")
        pages = self.iter_conversations(
            chatbot=chatbot, namespace=namespace, page_size=20, timeout=timeout
        )
        # Every start of a chat stores an empty one.
        return next((summary for summary in pages if summary.message_count), None)

    @named_keywords
    def get_conversation(
        self, conversation_id: str, *, timeout: float | Unset | None = UNSET
    ) -> StoredConversation:
        """Return a stored conversation with its messages.

        Raises:
            NotFoundError: there is none of that id, it is another user's, or its chatbot does not
                persist its conversations.

        """
        check_name("conversation_id", conversation_id, what="a conversation's id")
        return self._perform(read_conversation(conversation_id), self._deadline(timeout))

    @named_keywords
    def update_conversation(
        self, conversation_id: str, *, title: str, timeout: float | Unset | None = UNSET
    ) -> StoredConversation:
        """Give a stored conversation another title, of 1 to 200 characters, and return it.

        Raises:
            NotFoundError: as `get_conversation` does.

        """
        check_name("title", title, what="a title")
        if len(title) > _LONGEST_TITLE:
            raise ConfigurationError(
                f"title must have at most {_LONGEST_TITLE} characters, not {len(title)}"
            )
        call = Call(
            name="update_conversation",
            method="PATCH",
            path="/ai/conversations/{}",
            id=check_name("conversation_id", conversation_id, what="a conversation's id"),
            body={"title": title},
            read=stored.read_conversation,
        )
        return self._perform(call, self._deadline(timeout))

    @named_keywords
    def delete_conversation(
        self, conversation_id: str, *, timeout: float | Unset | None = UNSET
    ) -> None:
        """Delete a stored conversation.

        Raises:
            NotFoundError: as `get_conversation` does.

        """
        call = Call(
            name="delete_conversation",
            method="DELETE",
            path="/ai/conversations/{}",
            id=check_name("conversation_id", conversation_id, what="a conversation's id"),
            read=lambda _: None,
            again=True,
        )
        self._perform(call, self._deadline(timeout))

    # -- chats ------------------------------------------------------------------------------

    @edge
    def create_chat(self, **options: Any) -> FluxbaseAIChat:
        """Return a chat with the same server, as the same caller.

        In it a chatbot without a `namespace` is looked up by its name, once, by the call that names
        it; so `conversation()` asks the server too. What `lookup_chatbot` raises, these calls do.

        Args:
            **options: the parameters of `FluxbaseAIChat`; they win.

        Raises:
            ConfigurationError: one of them is wrong.

        """
        settings = self._settings
        if "token" not in options and "service_key" not in options:
            options |= {"token": settings.token, "service_key": settings.service_key}
        chat = _LookingUpChat(
            self, **{"ws_url": chat_of(settings.endpoint), **self._options, **options}
        )
        if self._demo is not None:
            self._demo.serve_for(chat._lease)  # noqa: SLF001 - our own chat
        return chat

    # -- how --------------------------------------------------------------------------------

    def _deadline(self, timeout: float | Unset | None) -> Deadline:
        if isinstance(timeout, Unset):
            return Deadline(self._timeout)
        return Deadline(check_seconds("timeout", timeout))

    def _chatbots(self, deadline: Deadline) -> list[Chatbot]:
        call = Call(
            name="list_chatbots",
            method="GET",
            path="/ai/chatbots",
            read=stored.read_chatbots,
            again=True,
        )
        return self._perform(call, deadline)

    def _perform(self, call: Call[T], deadline: Deadline) -> T:
        with calling() as waker:
            return perform(self._settings, call, deadline, waker).value

    def __repr__(self) -> str:
        return f"<FluxbaseAI {self._settings.endpoint}>"


class _LookingUpChat(FluxbaseAIChat):
    """A chat that asks the REST side in which namespace a chatbot is."""

    def __init__(self, api: FluxbaseAI, **options: Any) -> None:
        super().__init__(**options)
        self._api = api
        self._found: dict[str, str] = {}

    def _namespace(self, chatbot: str) -> str:
        if chatbot not in self._found:
            try:
                self._found[chatbot] = self._api.lookup_chatbot(chatbot).namespace
            except NotFoundError as error:
                raise ChatbotNotFoundError(
                    f"there is no public chatbot {chatbot!r}",
                    code="CHATBOT_NOT_FOUND",
                    sent=False,
                    hint=f"{error.hint or 'is its name right?'} One that is not public needs "
                    "its namespace=",
                ) from None
        return self._found[chatbot]


def _nearest(name: str, chatbots: list[Chatbot]) -> str:
    """Say which chatbot was probably meant, or which there are."""
    import difflib  # noqa: PLC0415 - only a mistake needs it

    names = sorted({chatbot.name for chatbot in chatbots})
    close = difflib.get_close_matches(name, names)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(names[:_SHOWN_NAMES])}." if names else "there is none at all."


def _namespaces(body: str) -> str:
    """Return the namespaces that an ambiguous name is in, as the server's refusal has them."""
    try:
        names = read_object(body.encode()).get("namespaces")
    except RemoteProtocolError:
        return ""
    return ", ".join(map(str, names)) if isinstance(names, list) else ""
