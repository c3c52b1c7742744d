"""The client as its users meet it, against the dev server."""

import itertools
import threading

import pytest

from fluxbase_aichat import (
    ChatbotNotFoundError,
    ChatTimeoutError,
    FluxbaseAIChat,
    IdentityConflictError,
    LocalProtocolError,
    NotConnectedError,
    TurnCancelledError,
    events,
)
from fluxbase_aichat.devserver import DevServer


@pytest.fixture
def server():
    """A dev server whose `pause` waits for a gate."""
    gate = threading.Event()
    with DevServer(pause=lambda _seconds: gate.wait(5)) as server:
        server.gate = gate
        yield server
        gate.set()


@pytest.fixture
def chat(server):
    """A connected client of a signed-in user."""
    with FluxbaseAIChat(server.ws_url, token=server.token("ann")) as chat:
        yield chat


def test_states(server):
    """`state` and `is_connected` tell what the client does about its connection."""
    chat = FluxbaseAIChat(server.ws_url)
    assert ("new", False) == (chat.state, chat.is_connected())
    chat.connect()
    assert ("connected", True) == (chat.state, chat.is_connected())
    chat.connect()
    assert 1 == server.connections
    chat.disconnect()
    assert ("disconnected", False) == (chat.state, chat.is_connected())
    chat.connect()
    assert ("connected", True) == (chat.state, chat.is_connected())
    chat.disconnect()
    assert f"<FluxbaseAIChat {server.ws_url} disconnected>" == repr(chat)


def test_the_threads_have_names_and_are_daemons(server):
    """One thread for the socket, one for callbacks; both end with the connection."""
    before = set(threading.enumerate())
    with FluxbaseAIChat(server.ws_url):
        ours = {t for t in set(threading.enumerate()) - before if "fluxbase" in t.name}
        assert {"fluxbase-aichat-io-1", "fluxbase-aichat-callbacks-1"} == {t.name for t in ours}
        assert all(t.daemon for t in ours)
    assert not any(t.is_alive() for t in ours)


def test_with_is_not_nested(chat):
    """A second `with` would disconnect under the first."""
    with pytest.raises(LocalProtocolError, match="with block"), chat:
        pass
    assert chat.is_connected()


def test_calls_connect_by_themselves(server):
    """No call needs `connect`; after `disconnect` only `connect` opens again."""
    chat = FluxbaseAIChat(server.ws_url, token=server.token("ann"))
    conversation_id = chat.start_chat("sql-assistant")
    assert chat.is_connected()
    chat.disconnect()
    with pytest.raises(NotConnectedError, match="connect") as caught:
        chat.send_message(conversation_id, "say hello")
    assert caught.value.sent is False
    chat.connect()
    assert "still known" == chat.send_message(conversation_id, "say still known").result().text
    chat.disconnect()


def test_ask_and_its_reply(chat):
    """One question, one value with all that the answer had."""
    reply = chat.ask(
        "sql-assistant", "say Let me look.\nsql SELECT name FROM users\n---\nsay Five."
    )
    assert "Let me look.Five." == str(reply) == reply.text
    assert ("Let me look.", "Five.") == reply.segments
    assert "sql-assistant" == reply.chatbot
    assert "Let me look.\n\nFive." == reply._repr_markdown_()
    assert ["name"] == list(reply.table.columns)
    assert reply.usage.total_tokens > 0
    assert reply.duration >= reply.time_to_first_content > 0
    assert (
        "again"
        == chat.ask("sql-assistant", "say again", conversation_id=reply.conversation_id).text
    )


def test_start_errors(chat):
    """What the server refuses is raised by the start, and the next works."""
    with pytest.raises(ChatbotNotFoundError, match="CHATBOT_NOT_FOUND") as caught:
        chat.start_chat("nope")
    assert caught.value.sent is True
    with pytest.raises(ChatbotNotFoundError):
        chat.ask("sql-assistant", "say hi", namespace="elsewhere")
    assert chat.start_chat("sql-assistant")


def test_the_handle(chat, server):
    """A conversation starts with its first message, once, and keeps its id."""
    conversation = chat.conversation("sql-assistant")
    assert conversation.id is None
    assert ("sql-assistant", "default") == (conversation.chatbot, conversation.namespace)
    first, second = conversation.send("say one"), conversation.send("say two")
    assert ["one", "two"] == [first.result().text, second.result().text]
    assert conversation.id == conversation.start() == first.conversation_id
    assert 1 == sum(r.frame["type"] == "start_chat" for r in server.received)
    assert "<Conversation with 'sql-assistant', started>" == repr(conversation)
    assert chat.conversation("sql-assistant", conversation_id=conversation.id).id == conversation.id


def test_two_threads_start_a_handle_once(chat, server):
    """Two first calls at once make one conversation."""
    conversation = chat.conversation("sql-assistant")
    ids = []
    threads = [threading.Thread(target=lambda: ids.append(conversation.start())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {conversation.id} == set(ids)
    assert 1 == sum(r.frame["type"] == "start_chat" for r in server.received)


def test_accumulated_content(chat, server):
    """The answer so far, kept after its end and reset when the next message is written."""
    conversation_id = chat.start_chat("sql-assistant")
    assert "" == chat.get_accumulated_content(conversation_id)
    turn = chat.send_message(conversation_id, "say one two\npause 1\nsay three")
    assert ["one", " two"] == list(itertools.islice(turn.text_stream, 2))
    assert "one two" == chat.get_accumulated_content(conversation_id) == turn.text
    server.gate.set()
    turn.wait()
    assert "one twothree" == chat.get_accumulated_content(conversation_id)
    assert chat.send_message(conversation_id, "say new").wait()
    assert "new" == chat.get_accumulated_content(conversation_id)


def test_iterators_have_their_own_positions(chat):
    """Each iterator begins at the first event, also after the end."""
    turn = chat.conversation("sql-assistant").send("say one two\nsql SELECT name FROM users")
    assert "one two" == "".join(turn.text_stream)
    kinds = [event.type for event in turn]
    assert "done" == kinds[-1]
    assert {"progress", "content", "query_result", "done"} == set(kinds)
    assert kinds == [event.type for event in turn]
    assert "one two" == "".join(turn.text_stream)
    assert (True, None, False) == (turn.done, turn.error, turn.cancelled)
    assert turn.usage == turn.result().usage
    assert turn.query_results == turn.result().query_results


def test_result_only_stops_waiting(chat, server):
    """A wait that runs out leaves the turn alone."""
    turn = chat.conversation("sql-assistant").send("say one\npause 1\nsay two")
    next(iter(turn.text_stream))
    with pytest.raises(ChatTimeoutError, match="the turn goes on") as caught:
        turn.result(timeout=0)
    assert ("wait", True, "one") == (
        caught.value.phase,
        caught.value.sent,
        caught.value.partial_text,
    )
    assert turn.wait(timeout=0) is False
    assert "<Turn 'sql-assistant' generating, 3 characters>" == repr(turn)
    server.gate.set()
    assert "onetwo" == turn.result(timeout=5).text
    assert "<Turn 'sql-assistant' whole, 6 characters>" == repr(turn)


def test_leaving_a_with_block_cancels(chat):
    """A `with turn:` ends the turn; leaving a `for` loop does not."""
    conversation = chat.conversation("sql-assistant")
    with conversation.send("say one\npause 1\nsay two") as turn:
        for _ in turn.text_stream:
            break
        assert not turn.done
    assert turn.cancelled
    assert isinstance(turn.error, TurnCancelledError)
    assert "one" == "".join(turn.text_stream) or [] == list(turn.text_stream)
    with pytest.raises(TurnCancelledError) as caught:
        turn.result()
    assert "one" == caught.value.partial_text
    assert "goes on" == conversation.ask("say goes on").text


def test_cancel_by_the_conversations_id(chat):
    """`cancel` takes the running turn, then the oldest queued one, then does nothing."""
    conversation_id = chat.start_chat("sql-assistant")
    running = chat.send_message(conversation_id, "say one\npause 1\nsay two")
    next(iter(running.text_stream))
    queued = chat.send_message(conversation_id, "say queued\npause 1")
    last = chat.send_message(conversation_id, "say last")
    chat.cancel(conversation_id)
    assert (True, False) == (running.cancelled, queued.cancelled)
    chat.cancel(conversation_id)
    assert queued.cancelled
    assert "last" == last.result(timeout=5).text
    chat.cancel(conversation_id)
    assert not last.cancelled


def test_ask_with_a_timeout_ends_the_turn(chat):
    """`ask(timeout=)` bounds the whole call, and ends the turn as a cancel does."""
    conversation = chat.conversation("sql-assistant")
    conversation.start()
    with pytest.raises(ChatTimeoutError) as caught:
        conversation.ask("say one\npause 1\nsay two", timeout=0.3)
    assert ("turn", True, "one") == (
        caught.value.phase,
        caught.value.sent,
        caught.value.partial_text,
    )
    assert "goes on" == conversation.ask("say goes on", timeout=5).text


def test_two_chatbots_each_answer_their_own(chat, server):
    """The chatbot is started again before its message when another answered last."""
    first, second = chat.conversation("sql-assistant"), chat.conversation("keeper")
    for n in range(2):
        assert f"a{n}" == first.ask(f"say a{n}").text
        assert f"a{n}" == first.ask(f"say a{n}").text
        assert f"b{n}" == second.ask(f"say b{n}").text
    starts = [r.frame["chatbot"] for r in server.received if r.frame["type"] == "start_chat"]
    assert ["sql-assistant", "keeper", "sql-assistant", "keeper"] == starts


def test_one_identity_for_a_client(server):
    """A client acts as one user; another one is refused before anything is sent."""
    bob = server.users["bob"].id
    ann = server.users["ann"].id
    admin = "admin"
    with FluxbaseAIChat(server.ws_url, token=server.token(admin)) as chat:
        chat.start_chat("keeper", impersonate_user_id=bob)
        chat.start_chat("keeper", impersonate_user_id=bob)
        sent = len(server.received)
        with pytest.raises(IdentityConflictError):
            chat.start_chat("keeper", impersonate_user_id=ann)
        with pytest.raises(IdentityConflictError):
            chat.start_chat("keeper")
        assert "hi" == chat.ask("keeper", "say hi").text
        assert sent + 2 == len(server.received)
    said = [r.frame.get("impersonate_user_id") for r in server.received]
    assert [bob] == [user for user in said if user]
    with FluxbaseAIChat(server.ws_url, token=server.token(admin), impersonate_user_id=bob) as chat:
        chat.start_chat("keeper")
        with pytest.raises(IdentityConflictError):
            chat.start_chat("keeper", impersonate_user_id=ann)


def test_a_failed_first_start_fixes_no_identity(server):
    """A wrong user's id can be corrected."""
    bob = server.users["bob"].id
    admin = "admin"
    with FluxbaseAIChat(server.ws_url, token=server.token(admin)) as chat:
        with pytest.raises(Exception, match="USER_NOT_FOUND"):
            chat.start_chat("keeper", impersonate_user_id="11111111-1111-4111-8111-111111111111")
        assert chat.start_chat("keeper", impersonate_user_id=bob)


def test_calls_inside_callbacks(server):
    """Any method may be called inside a callback, blocking ones too."""
    answers = []

    def on_done(_usage, conversation_id):
        if len(answers) < 2:
            answers.append(chat.get_accumulated_content(conversation_id))
            answers.append(chat.ask("keeper", "say from the callback").text)
            turn = chat.send_message(conversation_id, "say the end")
            assert turn.wait(5)
            assert chat.wait_idle(5)
            chat.disconnect()

    with FluxbaseAIChat(server.ws_url, token=server.token("ann"), on_done=on_done) as chat:
        chat.conversation("sql-assistant").send("say first").wait(5)
    assert ["first", "from the callback"] == answers


def test_wait_idle(server):
    """It waits for all turns and for their callbacks."""
    seen = []
    with FluxbaseAIChat(
        server.ws_url,
        token=server.token("ann"),
        on_content=lambda delta, _id: seen.append(delta),
    ) as chat:
        assert chat.wait_idle()
        chat.conversation("sql-assistant").send("say one\npause 1")
        chat.conversation("keeper").send("say two")
        assert chat.wait_idle(timeout=0) is False
        server.gate.set()
        assert chat.wait_idle(timeout=5)
        assert ["one", "two"] == seen


def test_callbacks_of_everything(server):
    """`on_event` hears all, after the callback of its kind, with the connection's own."""
    told = []
    with FluxbaseAIChat(
        server.ws_url,
        token=server.token("ann"),
        on_progress=lambda step, message: told.append(step),
        on_query_result=lambda query, summary, row_count, data: told.append((row_count, data)),
        on_content=told.append,
        on_done=lambda usage: told.append(usage.total_tokens > 0),
        on_error=lambda error, code: told.append((error, code)),
        on_event=lambda event: told.append(event.type),
    ) as chat:
        chat.ask("sql-assistant", "sql SELECT name FROM users LIMIT 1\n---\nsay Hi.")
        with pytest.raises(ChatbotNotFoundError):
            chat.start_chat("nope")
    assert [
        "connected",
        "chat_started",
        *["thinking", "progress", "generating", "progress", "querying", "progress"],
        *[(1, [{"name": "Ada"}]), "query_result"],
        *["generating", "progress", "Hi.", "content", True, "done"],
        *[("Chatbot not found or disabled", "CHATBOT_NOT_FOUND"), "error"],
        "disconnected",
    ] == told


def test_a_failed_turn_nobody_looked_at(server, caplog):
    """One warning tells of a failure that no callback, wait or iterator has seen."""
    with FluxbaseAIChat(server.ws_url, token=server.token("ann")) as chat:
        conversation = chat.conversation("sql-assistant")
        conversation.send("say one\nfail")
        assert chat.wait_idle(5)
        turn = conversation.send("say one\nfail")
        assert turn.wait(5)
        assert turn.error is not None
        del turn
    warnings = [r.getMessage() for r in caplog.records if r.name == "fluxbase_aichat.turn"]
    assert 1 == len(warnings)
    assert "nobody looked: ProviderError: " in warnings[0]


def test_events_are_values(chat):
    """An event compares by value and keeps the whole message."""
    turn = chat.conversation("sql-assistant").send("say one")
    started = next(iter(turn))
    assert isinstance(started, events.Progress)
    assert "thinking" == started.step == started.raw["step"]
    assert started == next(iter(turn))
