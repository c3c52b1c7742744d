"""The fixtures of pytest. `pytest_plugins = ["fluxbase_aichat.testing"]` brings them in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.devserver import DevServer

from ._fake import FakeServer, no_waiting

__all__ = ["fluxbase_chat", "fluxbase_devserver", "fluxbase_no_waiting", "fluxbase_server"]


@pytest.fixture
def fluxbase_server() -> Iterator[FakeServer]:
    """Return a `FakeServer` that runs."""
    with FakeServer() as server:
        yield server


@pytest.fixture
def fluxbase_chat(fluxbase_server: FakeServer) -> Iterator[FluxbaseAIChat]:
    """Return a client that is connected to `fluxbase_server`."""
    with FluxbaseAIChat(fluxbase_server.url) as chat:
        yield chat


@pytest.fixture
def fluxbase_devserver() -> Iterator[DevServer]:
    """Return a `DevServer` that runs: the shop, and the chatbots that know it."""
    with DevServer() as server:
        yield server


@pytest.fixture
def fluxbase_no_waiting() -> Iterator[None]:
    """Let no client of the test wait before it reconnects."""
    with no_waiting():
        yield
