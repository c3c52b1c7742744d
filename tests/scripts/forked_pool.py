"""Forks while a pool has a lent, an idle and a locked connection: `forked_pool.py URL`."""

# ruff: noqa: T201 - it talks with its test by lines

import os
import sys
import threading
import traceback

from fluxbase_aichat import ChatPool

(url,) = sys.argv[1:]


def say(*words):
    print(*words, flush=True)


def count():
    stats = pool.stats()
    say("busy", stats.busy, "idle", stats.idle, "waiting", stats.waiting)


def ask(user, question):
    with pool.chat(user=user, token=user) as chat:
        return chat.ask("support", question).text


def child(lease):
    count()
    say(ask("b", "of the child"))
    say(lease.ask("support", "of the child's lease").text)


def fork(function, *arguments):
    """Run a function in a child, and wait for its end; it has 10 s."""
    pid = os.fork()
    if pid == 0:
        try:
            threading.Timer(10, os._exit, [9]).start()
            function(*arguments)
        except BaseException:  # noqa: BLE001 - it must not go on as its parent
            traceback.print_exc()
            os._exit(1)
        return True
    say("status", os.waitpid(pid, 0)[1])
    return False


with ChatPool(url, size=2) as pool:
    with pool.chat(user="a", token="a") as chat:
        chat.ask("support", "before")
        ask("b", "before")
        pool._lock.acquire()
        waits = threading.Thread(target=pool.stats, daemon=True)
        waits.start()
        in_child = fork(child, chat)
        if not in_child:
            pool._lock.release()
            waits.join()
            count()
            say(chat.ask("support", "of the parent").text)
    if in_child:
        count()  # what was lent in the parent does not come back to the child's pool
        say("locked", ask("a", "locked"))
        pool.close()
        os._exit(0)
    say(ask("b", "of the parent"))
    count()
