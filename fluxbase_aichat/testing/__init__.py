"""For the tests of those who use this library: a server to script, and answers without one.

    from fluxbase_aichat.testing import FakeServer

    with FakeServer() as server, FluxbaseAIChat(server.url) as chat:
        server.on("sql-assistant", contains="orders").say("Here they are.").rows([{"id": 1}])
        assert chat.ask("sql-assistant", "Show me the orders").table.row_count == 1

It serves unittest and pytest alike. With `pytest_plugins = ["fluxbase_aichat.testing"]` in the
`conftest.py` next to the tests, there are the fixtures `fluxbase_server` (a `FakeServer`),
`fluxbase_chat` (a client that is connected to it), `fluxbase_devserver` (a `DevServer`) and
`fluxbase_no_waiting`.
"""

from __future__ import annotations

import sys

from ._fake import FakeAnswer, FakeServer, no_waiting
from ._values import reply

# Whoever names this module as a plugin runs pytest already; nobody else needs it.
if "pytest" in sys.modules:
    from ._fixtures import (  # noqa: F401 - pytest looks for them here
        fluxbase_chat,
        fluxbase_devserver,
        fluxbase_no_waiting,
        fluxbase_server,
    )

__all__ = ["FakeAnswer", "FakeServer", "no_waiting", "reply"]
