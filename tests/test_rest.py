"""`FluxbaseAI`: every call against the dev server, and every recorded answer as a value."""

from __future__ import annotations

import datetime as dt
import json
import pickle
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs
import pytest
from recordings import lines
from servers import WAIT, Peer, RawServer
from test_http import api, head, read_call, saying

from fluxbase_aichat import (
    Chatbot,
    ConversationPage,
    ConversationSummary,
    FluxbaseAI,
    FluxbaseAIChat,
    QueryResult,
    StoredConversation,
    StoredMessage,
    Usage,
)
from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.errors import (
    ApiError,
    AuthenticationError,
    ChatbotNotFoundError,
    ConfigurationError,
    FluxbaseChatError,
    NotFoundError,
)
from fluxbase_aichat.results import Quota, QuotaCounter

RECORDED = [line for line in lines("rest") if "as" in line]
KEEPER = "a8f9a1a8-7099-4d49-8b49-f2a107d9ebd4"


@pytest.fixture
def server() -> Iterator[DevServer]:
    """Start a dev server."""
    with DevServer() as server:
        yield server


@pytest.fixture
def ann(server: DevServer) -> FluxbaseAI:
    """Return the REST side for a user who has signed in."""
    return FluxbaseAI(server.url, token=server.token())


def converse(server: DevServer, *questions: str, chatbot: str = "keeper", user: str = "ann") -> str:
    """Ask in a new conversation; return its id."""
    with FluxbaseAIChat(server.ws_url, server.token(user)) as chat:
        conversation_id = chat.start_chat(chatbot)
        for question in questions:
            chat.send_message(conversation_id, question).result()
    return conversation_id


# -- the recordings -------------------------------------------------------------------------


def call_of(there: FluxbaseAI, line: dict[str, Any]) -> Any:
    """Make the call that was recorded; those that no method makes give `None`."""
    url = urlsplit(line["path"])
    query = dict(parse_qsl(url.query))
    match line["method"], *url.path.removeprefix("/api/v1/ai/").split("/"):
        case "GET", "chatbots":
            return there.list_chatbots
        case "GET", "chatbots", "by-name", name:
            return lambda: there.lookup_chatbot(unquote(name))
        case "GET", "chatbots", chatbot_id, "usage":
            return lambda: there.get_usage(chatbot_id)
        case "GET", "chatbots", chatbot_id:
            return lambda: there.get_chatbot(chatbot_id)
        case "GET", "conversations":
            numbers = {name: int(query.pop(name)) for name in ("limit", "offset") if name in query}
            return lambda: there.list_conversations(**query, **numbers)
        case "GET", "conversations", conversation_id:
            return lambda: there.get_conversation(conversation_id)
        case "PATCH", "conversations", conversation_id:
            return lambda: there.update_conversation(conversation_id, **line["request"])
        case "DELETE", "conversations", conversation_id:
            return lambda: there.delete_conversation(conversation_id)
    return None


BAD_TITLES = ({}, {"title": ""}, {"title": "x" * 201})
MADE = [
    line
    for line in RECORDED
    if call_of(FluxbaseAI("https://x"), line)
    and line["request"] not in BAD_TITLES
    and "limit=0" not in line["path"]
]


@pytest.mark.parametrize("line", MADE, ids=lambda line: f"{line['method']} {line['path'][8:40]}")
def test_recorded_answers(line) -> None:
    """Each call asks what was recorded, and the answer is a value or an error that says it."""
    answer = head(f"{line['status']} Recorded", line["body"].encode())

    def script(peer: Peer) -> None:
        body = read_call(peer)
        if peer.number == 1:
            target = peer.request.split(" ")[1]
            assert f"{line['method']} {target}".startswith(f"{line['method']} {line['path'][:60]}")
            assert (json.loads(body) if body else None) == line["request"]
            peer.send_raw(answer)
        else:  # a chatbot that was not found by its id or its name is looked for in the list
            peer.send_raw(head("200 OK", b'{"chatbots":null}'))

    with RawServer(script) as server:
        there = api(server, token=None if line["as"] == "anonymous" else "t0k3n")
        said = json.loads(line["body"])
        if line["status"] == 200:
            value = call_of(there, line)()
            assert same(value, said)
        else:
            kind = {401: AuthenticationError, 404: NotFoundError, 500: NotFoundError}
            with pytest.raises(kind[line["status"]]) as caught:
                call_of(there, line)()
            assert f"{line['status']} {said['error']}" in str(caught.value)


def same(value: Any, said: Any) -> bool:
    """Check that a value has all that the server said, in the right fields."""
    if value is None:
        assert said["deleted"] is True
    elif isinstance(value, list):
        assert [same(one, it) for one, it in zip(value, said["chatbots"] or [], strict=True)]
    elif isinstance(value, ConversationPage):
        pairs = zip(value, said["conversations"], strict=True)
        assert all(same(one, it) for one, it in pairs)
        assert (value.total, value.has_more) == (said["total"], said["has_more"])
        assert len(value) == len(said["conversations"])
    else:
        said = said.get("chatbot", said) if isinstance(value, Chatbot) else said
        assert value.raw == said
        for name, it in said.items():
            field = getattr(value, name)
            if name in {"created_at", "updated_at", "timestamp"}:
                assert field == dt.datetime.fromisoformat(it)
                assert field.utcoffset() == dt.timedelta(0)
            elif name == "messages":
                assert all(same(one, each) for one, each in zip(field, it, strict=True))
            elif name == "query_results":
                assert list(field) == [QueryResult(**each) for each in it]
            elif name == "usage":
                assert field == Usage(**it)
            else:
                assert field == it
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            value.raw = {}
        assert pickle.loads(pickle.dumps(value)) == value
    return True


# -- chatbots -------------------------------------------------------------------------------


def test_chatbots(server: DevServer) -> None:
    """The list works without credentials, and has no chatbot that is not public."""
    chatbots = FluxbaseAI(server.url).list_chatbots()
    names = [chatbot.name for chatbot in chatbots]
    assert ["intent", "keeper", "oneturn", "sql-assistant", "support", "tools"] == names
    assert "Persists its conversations" == chatbots[1].description
    assert chatbots[1].enabled
    assert chatbots[1].is_public
    assert "Chatbot" in repr(chatbots[1])


def test_no_chatbots() -> None:
    """`null` is an empty list, and so is nothing."""
    for body in (b'{"chatbots":null,"count":0}', b"{}", b'{"chatbots":[]}'):
        with RawServer(saying(head("200 OK", body))) as server:
            assert [] == api(server).list_chatbots()


def test_a_chatbot_by_its_id(server: DevServer, ann: FluxbaseAI) -> None:
    """A server that finds no listed chatbot by its id has it in its list."""
    assert "keeper" == ann.get_chatbot(KEEPER).name
    assert ["GET", "GET"] == [request.method for request in server.requests]
    with pytest.raises(NotFoundError, match=r"404 Chatbot not found .*list_chatbots"):
        ann.get_chatbot(str(uuid.uuid4()))


def test_a_chatbot_by_its_id_of_a_newer_server() -> None:
    """One that answers is believed."""
    with RawServer(saying(head("200 OK", b'{"id":"x","name":"keeper"}'))) as server:
        assert Chatbot(id="x", name="keeper") == api(server).get_chatbot("x")
        assert 1 == server.connections


def test_a_chatbot_by_its_name(ann: FluxbaseAI) -> None:
    """A name is looked up; for an unknown one the nearest are named."""
    assert KEEPER == ann.lookup_chatbot("keeper").id
    with pytest.raises(NotFoundError, match="did you mean keeper"):
        ann.lookup_chatbot("kepeer")
    with pytest.raises(NotFoundError, match="there are intent, keeper, oneturn"):
        ann.lookup_chatbot("zzz")
    with pytest.raises(NotFoundError, match="there are intent"):
        ann.lookup_chatbot("hidden")


def test_a_name_in_several_namespaces() -> None:
    """An ambiguous name is told with its namespaces."""
    body = b'{"ambiguous":true,"namespaces":["hr","sales"],"error":"Ambiguous"}'
    with RawServer(saying(head("409 Conflict", body))) as server:
        with pytest.raises(ApiError, match="'bot' is in several namespaces: hr, sales") as caught:
            api(server).lookup_chatbot("bot")
        assert caught.value.status == 409
        assert "namespace=" in caught.value.hint


@pytest.mark.parametrize("body", [b"", b"[]", b'{"namespaces":null}', b'{"namespaces":"x"}'])
def test_a_conflict_without_namespaces(body) -> None:
    """A 409 that names none is told as it is."""
    with (
        RawServer(saying(head("409 Conflict", body))) as server,
        pytest.raises(ApiError, match="lookup_chatbot failed: 409"),
    ):
        api(server).lookup_chatbot("bot")


def test_usage(ann: FluxbaseAI) -> None:
    """Newer servers tell the daily limits; of others it is said that they do not."""
    body = b"""{"requests":{"used":3,"limit":10},"tokens":{"used":500,"limit":10000},
        "resets_at":"2026-11-24T00:00:00Z","new":1}"""
    with RawServer(saying(head("200 OK", body))) as server:
        assert Quota(QuotaCounter(3, 10), QuotaCounter(500, 10_000), "2026-11-24T00:00:00Z") == api(
            server
        ).get_usage("x")
    with pytest.raises(NotFoundError, match=r"before 2026\.6"):
        ann.get_usage(KEEPER)


# -- conversations --------------------------------------------------------------------------


def test_a_conversation_s_life(server: DevServer, ann: FluxbaseAI) -> None:
    """It is listed, read, renamed and deleted."""
    conversation_id = converse(server, "say Hello there", "sql SELECT id, name FROM users LIMIT 2")
    (summary,) = ann.list_conversations()
    assert ("keeper", "default", 4) == (
        summary.chatbot,
        summary.namespace,
        summary.message_count,
    )
    assert "say Hello there" == summary.title == summary.preview
    stored = ann.get_conversation(summary.id)
    assert (conversation_id, "keeper") == (stored.id, stored.chatbot)
    assert ["user", "assistant"] * 2 == [message.role for message in stored.messages]
    assert "Hello there" == stored.messages[1].content
    (result,) = stored.messages[3].query_results
    assert isinstance(result[0]["id"], uuid.UUID)
    assert stored.messages[1].usage.total_tokens > 0
    assert stored.messages[0].timestamp <= stored.messages[1].timestamp
    renamed = ann.update_conversation(conversation_id, title="Ünnamed " + "x" * 192)
    assert renamed.title.startswith("Ünnamed")
    assert renamed.messages == stored.messages
    ann.delete_conversation(conversation_id)
    for call in (ann.get_conversation, ann.delete_conversation):
        with pytest.raises(NotFoundError, match="404 Conversation not found"):
            call(conversation_id)


def test_no_id_is_shown(server: DevServer, ann: FluxbaseAI) -> None:
    """Whoever knows an id can go on with the conversation, so no repr has it."""
    conversation_id = converse(server, "say Hi")
    page, stored = ann.list_conversations(), ann.get_conversation(conversation_id)
    assert conversation_id not in f"{page!r} {stored!r} {stored.messages!r}"


@pytest.mark.parametrize("title", ["", "   ", "x" * 201, None, 5, "\ud800"])
def test_bad_titles(title, ann: FluxbaseAI, server: DevServer) -> None:
    """A title has 1 to 200 characters; any other is not sent."""
    with pytest.raises(ConfigurationError, match="title"):
        ann.update_conversation(KEEPER, title=title)
    assert [] == server.requests


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0},
        {"limit": "5"},
        {"limit": True},
        {"offset": -1},
        {"offset": None},
        {"chatbot": ""},
        {"namespace": 5},
    ],
)
def test_bad_lists(options, ann: FluxbaseAI, server: DevServer) -> None:
    """What is no number of conversations, or no name, is not sent."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        ann.list_conversations(**options)
    assert [] == server.requests


def test_bad_iterations(ann: FluxbaseAI) -> None:
    """A bad parameter is told when the iterator is made, not when it is used."""
    with pytest.raises(ConfigurationError, match="page_size"):
        ann.iter_conversations(page_size=0)
    with pytest.raises(ConfigurationError, match="did you mean page_size"):
        ann.iter_conversations(pageSize=5)


def test_paging(server: DevServer, ann: FluxbaseAI) -> None:
    """All pages come one after the other, each when it is needed."""
    made = [converse(server) for _ in range(5)]
    before = len(server.requests)
    found = ann.iter_conversations(page_size=2)
    assert made[-1] == next(found).id
    assert before + 1 == len(server.requests)
    assert made[-2::-1] == [summary.id for summary in found]
    assert before + 3 == len(server.requests)
    assert ConversationPage(total=5) == ann.list_conversations(offset=10)


def test_paging_while_conversations_are_deleted(server: DevServer, ann: FluxbaseAI) -> None:
    """A loop that deletes what it is given deletes all."""
    for _ in range(7):
        converse(server)
    for summary in ann.iter_conversations(page_size=2):
        ann.delete_conversation(summary.id)
    assert 0 == ann.list_conversations().total


def test_paging_while_conversations_are_made(server: DevServer, ann: FluxbaseAI) -> None:
    """What moves to another page does not come twice."""
    made = [converse(server) for _ in range(4)]
    found = []
    for summary in ann.iter_conversations(page_size=2):
        found.append(summary.id)
        converse(server)
    assert made[::-1] == found


def test_paging_of_a_server_that_gives_nothing() -> None:
    """A server that says that there is more and gives nothing does not keep the loop going."""
    with RawServer(saying(head("200 OK", b'{"total":5,"has_more":true}'))) as server:
        assert [] == list(api(server).iter_conversations())
        assert 1 == server.connections


def test_filters(server: DevServer, ann: FluxbaseAI) -> None:
    """Only conversations with that chatbot and namespace are listed, and only the caller's."""
    converse(server)
    converse(server, user="bob")
    assert 1 == len(ann.list_conversations(chatbot="keeper", namespace="default"))
    assert 0 == len(ann.list_conversations(chatbot="nope"))
    assert 0 == len(ann.list_conversations(namespace="nope"))
    everybody = FluxbaseAI(server.url, service_key=server.service_key)
    assert 2 == everybody.list_conversations().total


def test_the_last_conversation(server: DevServer, ann: FluxbaseAI) -> None:
    """It is the last that has messages: every start of a chat stores an empty one."""
    assert ann.last_conversation("keeper") is None
    converse(server, "say One")
    second = converse(server, "say Two")
    converse(server)
    assert second == ann.last_conversation("keeper").id
    assert ann.last_conversation("keeper", "elsewhere") is None
    assert ann.last_conversation("support") is None


def test_an_expired_token(server: DevServer) -> None:
    """The error says when it expired."""
    there = FluxbaseAI(server.url, token=server.token(expires_in=-60))
    with pytest.raises(AuthenticationError, match=r"the token expired at \d{4}-\d\d-\d\d .* UTC"):
        there.list_conversations()


def test_without_credentials(server: DevServer) -> None:
    """The error says what is missing."""
    with pytest.raises(AuthenticationError, match="pass token="):
        FluxbaseAI(server.url).list_conversations()


def test_exact_numbers() -> None:
    """Numbers with a fraction in stored results keep all digits, if that is wanted."""
    body = b"""{"messages":[{"query_results":[{"data":[{"n":0.10000000000000000001,
        "j":{"$decimal":"1"}}]}]}]}"""
    with RawServer(saying(head("200 OK", body))) as server:
        (message,) = api(server, exact_numbers=True).get_conversation("x").messages
        assert Decimal("0.10000000000000000001") == message.query_results[0].data[0]["n"]
        assert {"$decimal": "1"} == message.query_results[0].data[0]["j"]
        (message,) = api(server).get_conversation("x").messages
        assert 0.1 == message.query_results[0].data[0]["n"]


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        ("2026-02-28T12:34:56Z", dt.datetime(2026, 2, 28, 12, 34, 56, tzinfo=dt.UTC)),
        ("2026-02-28T12:34:56.1Z", dt.datetime(2026, 2, 28, 12, 34, 56, 100_000, tzinfo=dt.UTC)),
        (
            "2026-02-28T12:34:56.123456789Z",
            dt.datetime(2026, 2, 28, 12, 34, 56, 123_456, tzinfo=dt.UTC),
        ),
        ("2026-02-28T12:34:56+02:00", dt.datetime(2026, 2, 28, 10, 34, 56, tzinfo=dt.UTC)),
        ("2026-02-28T12:34:56", dt.datetime(2026, 2, 28, 12, 34, 56, tzinfo=dt.UTC)),
        ("soon", None),
        ("0001-01-01T00:00:00+23:00", None),
    ],
)
def test_times(stamp, expected) -> None:
    """Times are aware and in UTC, to the microsecond; what is none is left to `raw`."""
    body = json.dumps({"messages": [{"timestamp": stamp}]}).encode()
    with RawServer(saying(head("200 OK", body))) as server:
        (message,) = api(server).get_conversation("x").messages
        assert expected == message.timestamp
        assert stamp == message.raw["timestamp"]


def test_values_by_hand() -> None:
    """The values have defaults, for users' own tests."""
    message = StoredMessage(role="user", content="Hi")
    stored = StoredConversation(id="x", messages=(message,))
    assert stored == StoredConversation(id="x", messages=(message,), raw={"new": 1})
    assert "x" not in repr(ConversationSummary(id="x", title="Hi")).replace("ConversationX", "")


# -- chats ----------------------------------------------------------------------------------


def test_create_chat(server: DevServer, ann: FluxbaseAI) -> None:
    """A chat with the same server and caller; a chatbot without a namespace is looked up, once."""
    with ann.create_chat() as chat:
        assert "Hi" == chat.ask("keeper", "say Hi").text
        assert "Hi" == chat.conversation("keeper").ask("say Hi").text
        chat.start_chat("keeper")
        chat.start_chat("hidden", "default")
    looked_up = [r.target for r in server.requests if "by-name" in r.target]
    assert ["/api/v1/ai/chatbots/by-name/keeper"] == looked_up
    assert 3 == ann.list_conversations().total


def test_create_chat_in_another_namespace() -> None:
    """The namespace that was found is the one that is started."""

    def script(peer: Peer) -> None:
        peer.read_request()
        if "/ai/ws" in peer.request.splitlines()[0]:
            peer.accept()
            assert "hr" == peer.start("c-1")["namespace"]
            peer.answer("Hi")
            peer.until_closed()
        else:
            peer.send_raw(head("200 OK", b'{"chatbot":{"name":"bot","namespace":"hr"}}'))

    with RawServer(script) as server, api(server).create_chat() as chat:
        assert "Hi" == chat.ask("bot", "Hello").text


@pytest.mark.parametrize("path", ["/flux", "/flux/ai/ws", "/flux/api/v1/ai"])
def test_create_chat_behind_a_path(path) -> None:
    """The chat is beside the API, whatever URL was given."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.serve()

    with RawServer(script) as server:
        there = FluxbaseAI(f"http://127.0.0.1:{server.port}{path}?key=1")
        with there.create_chat() as chat:
            assert chat.is_connected()
        assert "/flux/ai/ws?key=1" == server.peer().request.split(" ")[1]
        assert f"<FluxbaseAI http://127.0.0.1:{server.port}/flux/api/v1>" == repr(there)


def test_create_chat_with_an_unknown_name(server: DevServer, ann: FluxbaseAI) -> None:
    """It is refused before anything is started, and the nearest names are told."""
    chat = ann.create_chat()
    for call in (chat.start_chat, chat.conversation, lambda name: chat.ask(name, "Hi")):
        with pytest.raises(ChatbotNotFoundError, match="did you mean keeper") as caught:
            call("kepeer")
        assert (caught.value.sent, caught.value.code) == (False, "CHATBOT_NOT_FOUND")
    assert 0 == server.connections
    assert "new" == chat.state


def test_create_chat_with_an_ambiguous_name() -> None:
    """The namespaces are named."""
    body = b'{"ambiguous":true,"namespaces":["hr","sales"],"error":"Ambiguous"}'
    with (
        RawServer(saying(head("409 Conflict", body))) as server,
        pytest.raises(ApiError, match="hr, sales"),
    ):
        api(server).create_chat().start_chat("bot")


def test_create_chat_with_a_look_up_that_fails() -> None:
    """What keeps the name from being looked up is told as it is."""
    with (
        RawServer(saying(head("403 No", b'{"error":"Not you"}'))) as server,
        pytest.raises(FluxbaseChatError, match="lookup_chatbot failed: 403 Not you"),
    ):
        api(server).create_chat().start_chat("bot")


def test_create_chat_with_options(server: DevServer, ann: FluxbaseAI) -> None:
    """The options are a chat's own, and win."""
    heard: list[str] = []
    with ann.create_chat(token=server.token("bob"), on_content=heard.append) as chat:
        assert chat.send_message(chat.start_chat("keeper"), "say Hi").wait(WAIT)
    assert ["Hi"] == heard
    assert 0 == ann.list_conversations().total
    with pytest.raises(ConfigurationError, match="did you mean on_content"):
        ann.create_chat(onContent=heard.append)
    key = ann.create_chat(service_key=server.service_key)
    with key:
        assert key.start_chat("keeper")


# -- history --------------------------------------------------------------------------------


def test_history(server: DevServer) -> None:
    """A conversation's handle gives its stored messages, without a connection too."""
    with FluxbaseAIChat(server.ws_url, server.token()) as chat:
        conversation = chat.conversation("keeper")
        assert () == conversation.history()
        conversation.ask("say Hi")
        assert ["say Hi", "Hi"] == [message.content for message in conversation.history()]
        forgetful = chat.conversation("sql-assistant")
        forgetful.start()
        with pytest.raises(NotFoundError):
            forgetful.history()
        resumed = chat.conversation("keeper", conversation_id=conversation.id)
    assert 2 == len(conversation.history()) == len(resumed.history())
