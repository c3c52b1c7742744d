"""Tests of one's own code: a server that says what the test wants (extra `devserver`).

    python examples/own_tests.py

It needs no server and no token. With pytest there are fixtures for the same.
"""

from __future__ import annotations

import sys
import unittest

from fluxbase_aichat import FluxbaseAIChat, FluxbaseChatError
from fluxbase_aichat.testing import FakeServer, no_waiting


def count_users(chat: FluxbaseAIChat) -> int | None:
    """Return how many users there are, `None` when the chatbot cannot say: what is tested."""
    try:
        return int(chat.ask("sql-assistant", "How many users are there?").table[0]["count"])
    except FluxbaseChatError:
        return None


class CountUsersTest(unittest.TestCase):
    """Each test has a server and a client of its own."""

    def setUp(self) -> None:
        """Start them; nothing waits before it reconnects."""
        self.enterContext(no_waiting())
        self.server = self.enterContext(FakeServer())
        self.chat = self.enterContext(FluxbaseAIChat(self.server.url))

    def test_the_count_of_the_table(self) -> None:
        """The number comes from the rows, not from the prose."""
        self.server.on("sql-assistant", contains="users").say("A lot.").rows([{"count": 30}])
        self.assertEqual(30, count_users(self.chat))

    def test_a_server_that_has_enough(self) -> None:
        """An error of the server is no exception here."""
        self.server.on("sql-assistant").error("Slow down", "RATE_LIMITED")
        self.assertIsNone(count_users(self.chat))

    def test_a_connection_that_breaks(self) -> None:
        """Nor is a lost connection; the next call opens another one."""
        self.server.on("sql-assistant").say("Half").drop().once()
        self.server.on("sql-assistant").rows([{"count": 30}])
        self.assertIsNone(count_users(self.chat))
        self.assertEqual(30, count_users(self.chat))


if __name__ == "__main__":
    unittest.main(testRunner=unittest.TextTestRunner(stream=sys.stdout, verbosity=2))
