"""The house: imports point one way, and only one module knows each outside thing."""

import ast
import pathlib

import pytest

import fluxbase_aichat
from fluxbase_aichat import errors

PACKAGE = pathlib.Path(fluxbase_aichat.__file__).parent

# Lower modules know nothing of higher ones; those of one line do not know each other.
LAYERS = [
    ["errors", "_harmless", "_logs", "_value"],
    ["_deadline", "_edge", "_kinds", "_plain", "_select", "_reconnect"],
    ["_columns"],
    ["_frames"],
    ["results"],
    ["events", "stored"],
    ["config"],
    ["_wire"],
    ["_protocol"],
    ["_watch", "_net", "display"],
    ["_handshake"],
    ["_proxy"],
    ["_transport"],
    ["_http"],
    ["_api"],
    ["_connection"],
    ["_answer"],
    ["_entry", "_dispatch", "_tracing"],
    ["_conversations", "_telling"],
    ["_session"],
    ["_lifetime", "_sse"],
    ["login", "_recover", "_demo"],
    ["turn"],
    ["client"],
    ["rest", "pool", "_magic"],
    ["_many"],
    ["__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

PURE = [
    "_value",
    "errors",
    "results",
    "events",
    "config",
    "_wire",
    "_protocol",
    "_watch",
    "_columns",
    "_frames",
    "_kinds",
    "_plain",
    "_select",
    "stored",
]
IMPURE = {
    "asyncio", "concurrent", "http", "logging", "multiprocessing", "queue", "selectors",
    "signal", "socket", "ssl", "subprocess", "threading", "time", "urllib.request", "websocket",
}  # fmt: skip

# Which modules may import what has one owner.
OWNERS = {
    "websocket": {"_transport"},
    "http.client": {"_http"},
    "socket": {"_net", "_handshake", "_proxy", "_transport", "_http"},
    "selectors": {"_net", "_handshake", "_transport"},
    # client, rest and login: for a type only
    "ssl": {"_net", "_handshake", "_transport", "_http", "client", "rest", "login"},
    # _sse: for browsers, not for the server
    "json": {"_wire", "_handshake", "_frames", "_sse", "_tracing"},
    "orjson": {"_wire"},
    "opentelemetry": {"_tracing", "client"},  # client: for a type only
    "IPython": {"display", "_magic"},
    "pandas": {"_frames", "results"},  # results: for a type only
    "polars": {"_frames", "results"},
}


def modules():
    """Return the modules of the core by name."""
    return {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__main__"}


def imports(path):
    """Return the names of the package's own modules, and of the others, that a file imports."""
    own, other = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            other.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            other.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            own.update([node.module] if node.module else [alias.name for alias in node.names])
    return own, other


def test_every_module_has_its_place():
    """A new module of the core has to be put into the picture."""
    assert sorted(LEVEL) == sorted(modules())


@pytest.mark.parametrize("name", sorted(LEVEL))
def test_imports_point_down(name):
    """No module knows one of its own level or above."""
    own, _ = imports(modules()[name])
    assert [other for other in own if LEVEL[other] >= LEVEL[name]] == []


@pytest.mark.parametrize("name", PURE)
def test_the_core_does_no_io(name):
    """The core imports no socket, thread, clock, queue or logging, not even for a type."""
    _, other = imports(modules()[name])
    assert set() == {module for module in other if module.split(".")[0] in IMPURE}


@pytest.mark.parametrize("module", sorted(OWNERS))
def test_outside_things_have_one_owner(module):
    """Only the transport knows websocket-client and sockets, only the wire knows JSON."""
    users = {
        name
        for name, path in modules().items()
        if any(other == module or other.startswith(f"{module}.") for other in imports(path)[1])
    }
    assert users <= OWNERS[module]


@pytest.mark.parametrize("name", sorted(set(LEVEL) - {"__init__"}))
def test_modules_say_what_they_are_for(name):
    """Every module has a docstring and an `__all__` of names that exist."""
    tree = ast.parse(modules()[name].read_text())
    assert ast.get_docstring(tree)
    module = __import__(f"fluxbase_aichat.{name}", fromlist=["__all__"])
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


def test_the_package_offers_the_whole_error_tree():
    """Every error can be imported from the package itself."""
    assert set(errors.__all__) <= set(fluxbase_aichat.__all__)
    names = sorted(fluxbase_aichat.__all__, key=lambda name: (not name.isupper(), name))
    assert names == fluxbase_aichat.__all__


def test_the_package_has_no_other_names():
    """What `from fluxbase_aichat import *` gives is what `__init__` says."""
    public = {name for name in vars(fluxbase_aichat) if not name.startswith("_")}
    extra = public - set(fluxbase_aichat.__all__)
    assert extra <= set(modules()) | {"devserver", "cli", "testing"}
