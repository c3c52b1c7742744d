"""Uses a client of the parent, or a new one, in worker processes: `pools.py URL METHOD`."""

# ruff: noqa: T201 - it talks with its test by lines

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from fluxbase_aichat import FluxbaseAIChat

url, method = sys.argv[1:]
chat = FluxbaseAIChat(url)  # with "spawn" each worker makes its own here


def ask(question):
    return chat.ask("support", f"say {question}")


def put(queue, question):
    queue.put(ask(question).text)


if __name__ == "__main__":
    if method == "fork":
        ask("before")
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=put, args=(queue, "Process"))
    process.start()
    print(queue.get())
    process.join()
    print(process.exitcode)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        # A Reply goes through a pickle; a client does not.
        print(*[reply.text for reply in pool.map(ask, ["one", "two", "three"])], sep="\n")
        try:
            pool.submit(repr, chat).result()
        except TypeError as error:
            print(error)
    print(ask("after").text)
    chat.disconnect()
