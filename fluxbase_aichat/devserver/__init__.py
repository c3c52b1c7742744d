"""A Fluxbase-exact chat server on SQLite, for the demo, the documentation and tests.

It speaks the protocol with its odd sides, and holds a small shop that can be asked questions. It
is no server for production: its passwords are public, and it serves loopback only.
"""

from __future__ import annotations

from ._auth import User
from ._faults import Faults
from ._runtime import Received, Request
from ._server import DevServer
from ._store import Store
from ._world import World

__all__ = ["DevServer", "Faults", "Received", "Request", "Store", "User", "World"]
