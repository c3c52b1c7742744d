"""Forks in some state: `forked.py URL STATE`. The child says what it found, then the parent."""

# ruff: noqa: T201 - it talks with its test by lines

import os
import sys
import threading
import traceback
import warnings
from pathlib import Path

from fluxbase_aichat import FluxbaseAI, FluxbaseAIChat, PasswordLogin
from fluxbase_aichat.errors import FluxbaseChatError

url, state = sys.argv[1:]
# From 3.12 on Python warns of what is tried out here: a fork with threads.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def sockets():
    """Return the sockets and pollers that this process holds open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            what = str(entry.readlink())
        except FileNotFoundError:
            continue
        if what.startswith("socket:") or "eventpoll" in what:
            found.add(what)
    return found


def say(*words):
    print(*words, flush=True)


def failing(function, *arguments):
    """Return the name of the error that a call raises at once."""
    try:
        return function(*arguments)
    except FluxbaseChatError as error:
        return f"{type(error).__name__} sent={error.sent}"


def fork(child):
    """Run a function in a child, and wait for its end; it has 10 s."""
    pid = os.fork()
    if pid == 0:
        try:
            threading.Timer(10, os._exit, [9]).start()
            child()
            code = 0
        except BaseException:  # noqa: BLE001 - it must not go on as its parent
            traceback.print_exc()
            code = 1
        os._exit(code)
    say("status", os.waitpid(pid, 0)[1])


def idle():
    cid = chat.start_chat("support")
    conversation = chat.conversation("support", conversation_id=cid)
    conversation.ask("before")

    def child():
        say("sockets", len(sockets()))
        say(chat.state, chat.get_accumulated_content(cid))
        say(conversation.ask("of the child").text)
        say(len(sockets()) > 0, chat.state)
        chat.disconnect()
        say("sockets", len(sockets()))

    fork(child)
    say(conversation.ask("of the parent").text)


def turn():
    conversation = chat.conversation("support")
    running = conversation.send("slow")
    queued = conversation.send("queued")
    stream = running.text_stream
    say(next(stream))

    def child():
        say("sockets", len(sockets()))
        say(failing(running.result), failing(queued.result), running.text)
        say(failing(next, stream), running.wait(), chat.wait_idle(), running.cancelled)
        running.cancel()
        say(conversation.ask("of the child").text)

    fork(child)
    say(running.result().text, "|", queued.result().text)


def disconnected():
    chat.start_chat("support")
    chat.disconnect()

    def child():
        say(failing(chat.ask, "support", "Hi"), chat.state)
        chat.connect()
        say(chat.ask("support", "of the child").text)

    fork(child)
    say(chat.state)


def opening():
    """The server does not answer the opening request until there is a child."""
    connecting = threading.Thread(target=chat.connect)
    connecting.start()
    sys.stdin.readline()

    def child():
        say("sockets", len(sockets()))
        say(chat.ask("support", "of the child").text)

    fork(child)
    connecting.join()
    say(chat.ask("support", "of the parent").text)


def calls():
    """A sign-in, a REST call and a search for an answer are under way in other threads."""
    login = PasswordLogin(url, "a@b", "p4ssword")
    api = FluxbaseAI(url)
    done = []
    threads = [
        threading.Thread(target=lambda: done.append(login())),
        threading.Thread(target=lambda: done.append(api.list_chatbots()[0].name)),
        threading.Thread(target=lambda: done.append(chat.recover("c-1").text)),
    ]
    for thread in threads:
        thread.start()
    sys.stdin.readline()  # the requests were read

    def child():
        say("sockets", len(sockets()))
        say(login(), api.list_chatbots()[0].name, chat.recover("c-1").text)

    fork(child)
    for thread in threads:
        thread.join()
    say(*sorted(done))


def atexit():
    """A child that ends as scripts do says nothing of its parent's turn."""
    running = chat.conversation("support").send("slow")
    say(next(running.text_stream))
    pid = os.fork()
    if pid == 0:
        sys.exit()
    say("status", os.waitpid(pid, 0)[1])
    say(running.result().text)


def in_a_callback():
    """What had come and was not told yet is told by the parent only."""
    told = []

    def on_content(delta):
        told.append(delta)
        if len(told) == 1:
            pid = os.fork()
            if pid == 0:
                told.append("of the child")
                return  # this thread is all there is of the child, and it goes on
            pids.append(pid)

    pids = []
    chat = FluxbaseAIChat(url, on_content=on_content, on_done=lambda usage: say(*told))
    chat.conversation("support").send("words").wait()
    say("status", os.waitpid(pids[0], 0)[1])


def locked():
    """Every lock of the client is held by other threads while the process is forked."""
    conversation = chat.conversation("support")
    running = conversation.send("slow")
    say(next(running.text_stream))
    held, over = threading.Semaphore(0), threading.Event()
    session = chat._session
    answered = conversation.send("queued")
    locks = [
        session._lock,
        session._current._lock,
        session._current._waker._lock,
        session._telling.dispatcher._posted,
        session._opening._lock,
        running._answer._lock,
    ]

    def hold(lock):
        with lock:
            held.release()
            over.wait()

    threads = [threading.Thread(target=hold, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for _ in threads:
        held.acquire()

    def child():
        say(failing(running.result), failing(answered.result))
        say(running.text, chat.wait_idle(), running.wait(), chat.state)
        say(conversation.ask("of the child").text)
        chat.disconnect()

    fork(child)
    over.set()
    for thread in threads:
        thread.join()
    say(running.result().text)


def half_ended():
    """The turn has left the queue, and those who wait for it have not heard."""
    conversation = chat.conversation("support")
    running = conversation.send("slow")
    say(next(running.text_stream))
    ending, over = threading.Event(), threading.Event()
    finish = running._answer.finish

    def slow_finish(done):
        ending.set()
        over.wait()
        return finish(done)

    running._answer.finish = slow_finish
    say("finishing")
    ending.wait()

    def child():
        say(failing(running.result), running.wait())

    fork(child)
    over.set()
    say(running.result().text)


def untold():
    """The turn has ended, and its callbacks have not run."""
    told, over = threading.Event(), threading.Event()

    def on_content(delta):
        told.set()
        over.wait()

    chat = FluxbaseAIChat(url, on_content=on_content)
    turn = chat.conversation("support").send("words")
    text = turn.result().text
    told.wait()

    def child():
        say(turn.result().text == text, turn.wait(), chat.wait_idle())

    fork(child)
    over.set()
    say(turn.wait())


def many():
    """Fork many times while other threads ask."""
    over = threading.Event()
    asked = []

    def ask():
        conversation = chat.conversation("support")
        while not over.is_set():
            assert conversation.ask("threads").text == "You said: threads"
            asked.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()

    def child():
        assert chat.ask("support", "of the child").text == "You said: of the child"
        chat.disconnect()

    for _ in range(25):
        fork(child)
    over.set()
    for thread in threads:
        thread.join()
    say("asked", len(asked) >= 4)


chat = FluxbaseAIChat(url, on_content=len, timeouts=8)
globals()[state]()
chat.disconnect()
