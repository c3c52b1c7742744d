"""Asks many questions of a chatbot that takes long, and is interrupted: `... URL`."""

# ruff: noqa: T201 - it talks with its test by lines

import sys
import threading

from fluxbase_aichat._many import ask_each

(url,) = sys.argv[1:]


def tell(number, answer):
    print("told", number, answer, flush=True)


try:
    ask_each({"ws_url": url}, "support", ["say One", *["say Two\npause 60"] * 9], tell, workers=2)
except KeyboardInterrupt:
    print("interrupted threads", [t.name for t in threading.enumerate() if "-ask" in t.name])
    raise
