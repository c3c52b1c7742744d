"""What `import fluxbase_aichat` loads, and what it offers without having loaded it.

How long it takes is measured by `benchmarks/`; this keeps what makes it short.
"""

import ast
import importlib.metadata
import json
import pathlib
import pickle
import pydoc
import subprocess
import sys
import types

import pytest

import fluxbase_aichat
from fluxbase_aichat.testing import FakeServer

SOURCE = pathlib.Path(fluxbase_aichat.__file__).read_text(encoding="utf-8")

# Of this package, what a client needs, and no more.
NEEDED = {
    "_answer", "_connection", "_conversations", "_deadline", "_dispatch", "_edge", "_entry",
    "_handshake", "_kinds", "_lifetime", "_logs", "_net", "_plain", "_protocol", "_reconnect",
    "_session", "_telling", "_transport", "_value", "_watch", "_wire",
    "client", "config", "errors", "events", "results", "turn",
}  # fmt: skip

# Of all else, what websocket-client and attrs have not loaded.
OTHERS = {"contextvars", "decimal", "json", "numbers"}


def run(script, *arguments):
    """Run a script in a process of its own, and return what it prints, as JSON."""
    ran = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return json.loads(ran.stdout)


def test_an_import_loads_what_a_client_needs():
    """The pool, the REST side, and what they need, are loaded by those who use them."""
    loaded = run(
        "import sys, websocket, attrs; before = set(sys.modules)\n"
        "import fluxbase_aichat; loaded = set(sys.modules) - before\n"
        "import json; print(json.dumps(sorted(loaded)))"
    )
    ours = {name for name in loaded if name.split(".")[0] == "fluxbase_aichat"}
    assert {"fluxbase_aichat", *(f"fluxbase_aichat.{name}" for name in NEEDED)} == ours
    others = {name.split(".")[0] for name in set(loaded) - ours}
    assert {name for name in others if not name.startswith("_")} <= OTHERS


CHAT = """if True:
    import builtins, json, sys, threading
    from fluxbase_aichat import FluxbaseAIChat

    loaded, plain = [], builtins.__import__

    def watched(name, *args, **kwargs):
        before = len(sys.modules)
        module = plain(name, *args, **kwargs)
        thread = threading.current_thread().name
        if len(sys.modules) > before and thread.startswith("fluxbase-aichat-"):
            loaded.append([thread, name])
        return module

    builtins.__import__ = watched
    with FluxbaseAIChat(sys.argv[1], on_content=lambda *_: None) as chat:
        chat.ask("support", "Hi")
    print(json.dumps(loaded))
"""


def test_the_threads_of_a_chat_load_nothing():
    """What they need is there before they start: at an interpreter's end imports fail."""
    with FakeServer() as server:
        server.on("support").say("Hello.").rows([{"id": 1}])
        assert [] == run(CHAT, server.url)


def test_a_chat_while_its_script_is_imported(tmp_path):
    """Callbacks may use what is loaded later, though the main thread is within an import."""
    (tmp_path / "script.py").write_text(
        "import fluxbase_aichat, sys\n"
        "names = []\n"
        "def use(event):\n"
        "    if event.type == 'query_result':\n"
        "        names.extend([*event.result.rows[0], fluxbase_aichat.ChatPool.__name__])\n"
        "chat = fluxbase_aichat.FluxbaseAIChat(sys.argv[2], on_event=use)\n"
        "chat.ask('support', 'Hi')\n"
        "chat.wait_idle()\n"
        "chat.disconnect()\n",
        encoding="utf-8",
    )
    with FakeServer() as server:
        server.on("support").say("Hello.").rows([{"id": 1}])
        script = "import sys; sys.path.insert(0, sys.argv[1]); import script, json\n"
        names = run(script + "print(json.dumps(script.names))", str(tmp_path), server.url)
    assert ["id", "ChatPool"] == names


def test_every_name_can_be_had():
    """By attribute, by `import *` and in `dir()`; each in a process that has loaded none of it."""
    names = fluxbase_aichat.__all__
    got, starred, listed = run(
        "import json, fluxbase_aichat as f\n"
        "listed = dir(f)\n"
        "got = [name for name in f.__all__ if getattr(f, name, None) is not None]\n"
        "space = {}; exec('from fluxbase_aichat import *', space)\n"
        "print(json.dumps([got, sorted(space), listed]))"
    )
    assert names == got
    assert {*names, "__builtins__"} == set(starred)
    assert set(names) <= set(listed)


@pytest.mark.parametrize("name", ["login", "pool", "rest", "stored"])
def test_a_public_module_is_an_attribute(name):
    """`fluxbase_aichat.pool` needs no import of its own."""
    script = (
        f"import fluxbase_aichat as f; print(repr(f.{name}.__name__).replace(chr(39), chr(34)))"
    )
    assert f"fluxbase_aichat.{name}" == run(script)


def test_a_type_checker_and_a_program_find_the_same():
    """What stands under `TYPE_CHECKING` is what is loaded later, from the same modules."""
    (checked,) = (node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    told = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules = {name: name for name, module in fluxbase_aichat._LATER.items() if name == module}
    assert {**told, **modules} == fluxbase_aichat._LATER
    assert set(told) <= set(fluxbase_aichat.__all__)


def test_the_version_is_that_of_the_package():
    """It is where programs look for it."""
    assert importlib.metadata.version("fluxbase-aichat") == fluxbase_aichat.__version__


def test_no_version_where_it_is_not_installed(monkeypatch):
    """Of a copy of the sources there is none to tell, and `help()` works all the same."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert not hasattr(fluxbase_aichat, "__version__")
    assert "FluxbaseAIChat" in pydoc.render_doc(fluxbase_aichat)


def test_a_name_that_is_not_there():
    """It is an AttributeError, as of any module; and an ImportError by `from ... import`."""
    with pytest.raises(AttributeError, match="'fluxbase_aichat' has no attribute 'ChatPol'"):
        _ = fluxbase_aichat.ChatPol
    with pytest.raises(ImportError, match="cannot import name 'ChatPol'"):
        exec("from fluxbase_aichat import ChatPol", {})  # noqa: S102 - a typo, on purpose


def test_a_class_that_is_loaded_later_can_be_pickled():
    """By the module that has it, also in a process that has not loaded that."""
    page = fluxbase_aichat.ConversationPage(total=2)
    data = pickle.dumps(page)
    assert page == pickle.loads(data)
    assert run(f"import pickle; print(pickle.loads({data!r}).total)") == 2


def test_help_shows_what_is_loaded_later():
    """`help(fluxbase_aichat)` has all public classes and functions."""
    text = pydoc.render_doc(fluxbase_aichat, renderer=pydoc.plaintext)
    public = (getattr(fluxbase_aichat, name) for name in fluxbase_aichat.__all__)
    for value in public:
        if isinstance(value, type | types.FunctionType):
            assert f"class {value.__name__}" in text or f"{value.__name__}(" in text
