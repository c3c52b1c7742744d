"""The documentation is true: its code runs from top to bottom, and it leaves nothing out."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pages
import pytest
from pages import ROOT

import fluxbase_aichat
from fluxbase_aichat import ChatPool, FluxbaseAI, FluxbaseAIChat, _dispatch, events
from fluxbase_aichat._protocol import ChatProtocol
from fluxbase_aichat._wire import Malformed
from fluxbase_aichat.devserver import DevServer

DOCS = ROOT / "docs"
TEXTS = {
    path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(DOCS.rglob("*.md"))
}
WITH_CODE = [name for name, text in TEXTS.items() if pages.blocks("python", text)]
# What a page may import that the tests do not need.
FRAMEWORKS = ("flask", "django", "celery")


def read(
    name: str, server: DevServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Run a page's blocks, one after the other, as a reader who types them; return the names."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FLUXBASE_URL", server.ws_url)
    monkeypatch.setenv("FLUXBASE_TOKEN", server.token())
    monkeypatch.setenv("FLUXBASE_EMAIL", "ann@example.com")
    monkeypatch.setenv("FLUXBASE_PASSWORD", "ann-password")
    # A page may configure logging, for its reader and not for the tests behind it.
    monkeypatch.setattr("logging.basicConfig", lambda: None)
    log = logging.getLogger("fluxbase_aichat")
    level = log.level
    try:
        with FluxbaseAIChat(server.ws_url, token=server.token) as chat:
            names: dict[str, Any] = {"chat": chat, "__name__": name}
            for block in pages.blocks("python", TEXTS[name]):
                pages.run(block, DOCS / f"{name}.md", server, names)
    finally:
        log.setLevel(level)
    return names


def need_frameworks(name: str) -> None:
    """Skip a page about a framework that is not installed."""
    for framework in FRAMEWORKS:
        if re.search(rf"^(?:from|import) {framework}\b", TEXTS[name], re.MULTILINE):
            pytest.importorskip(framework)


@pytest.mark.parametrize("name", WITH_CODE)
def test_every_page_runs(
    name: str,
    fluxbase_devserver: DevServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its blocks run in their order, with an open `chat` at the beginning."""
    need_frameworks(name)
    read(name, fluxbase_devserver, tmp_path, monkeypatch)


def test_the_tutorial_prints_what_it_promises(
    fluxbase_devserver: DevServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The answer as a whole and as a stream, a follow-up, rows, progress, and no error."""
    read("tutorial", fluxbase_devserver, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert 3 <= printed.count("The top user is **Calm Heron** with 34 orders.")
    assert "The top user by revenue is **Dapper Heron**" in printed
    assert "Calm Heron 34\n" in printed
    assert "[thinking] " in printed
    assert "There are **30** users." in printed
    assert "was it sent?" not in printed


def test_the_flask_page_answers(
    fluxbase_devserver: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its application gives a whole answer, a stream that ends, and goes on where it was."""
    need_frameworks("howto/flask")
    names = read("howto/flask", fluxbase_devserver, tmp_path, monkeypatch)
    with names["pool"]:
        client = names["app"].test_client()
        question = {"question": "How many users are there?"}
        assert "30" in client.post("/ask", json=question).json["text"]
        stream = client.get("/stream", query_string=question)
        assert stream.mimetype == "text/event-stream"
        assert b"\nevent: done\n" in stream.data
        assert "30" in client.post("/more", json=question).json["text"]
        table = client.post("/more", json={"question": "As a table, please"}).json["text"]
        assert "| 30 |" in table


def test_the_django_page_stores_what_was_streamed(
    fluxbase_devserver: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrapped stream is whole, and so is what was kept of it."""
    need_frameworks("howto/django")
    names = read("howto/django", fluxbase_devserver, tmp_path, monkeypatch)
    names["pool"].close()
    assert b"\nevent: done\n" in names["body"]
    assert ["There are **30** users."] == [kept["segments"][-1] for kept in names["stored"]]


def test_the_celery_page_reports(
    fluxbase_devserver: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task gives plain JSON."""
    need_frameworks("howto/celery")
    names = read("howto/celery", fluxbase_devserver, tmp_path, monkeypatch)
    assert "30" in names["report"]("How many users are there?")["text"]


# -- nothing is left out ------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference() -> None:
    """What can be imported from the package has its entry."""
    reference = "\n".join(text for name, text in TEXTS.items() if name.startswith("api/"))
    directive = r"^\.\. (?:auto(?:class|function|exception)|py:data):: (\w+)"
    entries = set(re.findall(directive, reference, re.MULTILINE))
    wanted = set(fluxbase_aichat.__all__) - {"errors", "events", "load_ipython_extension"}
    assert set() == wanted - entries
    assert set() == set(events.__all__) - entries


def test_the_page_for_javascript_has_every_option_and_method() -> None:
    """Each parameter, callback and method stands there, under the name that it has here."""
    page = TEXTS["from_javascript"]
    told = set(re.findall(r"`(?:chat\.|api\.)?(\w+)", page))
    parameters = {*inspect.signature(FluxbaseAIChat).parameters}
    methods = {
        name
        for kind in (FluxbaseAIChat, FluxbaseAI)
        for name, value in vars(kind).items()
        if callable(value) and not name.startswith("_")
    }
    assert set(_dispatch._ARGUMENTS) <= parameters
    assert set() == (parameters | methods) - told


def test_the_defaults_in_the_page_for_javascript_are_those_of_the_code() -> None:
    """A number in its table of options is the parameter's."""
    signature = inspect.signature(FluxbaseAIChat).parameters
    rows = re.findall(r"^\| `\w+` \| `(\w+)` \| `([\d.]+)`", TEXTS["from_javascript"], re.MULTILINE)
    assert {"reconnect_attempts", "reconnect_delay"} <= {name for name, _ in rows}
    for name, number in rows:
        assert float(number) == float(signature[name].default)


def test_the_defaults_of_the_pool_are_those_of_the_code() -> None:
    """The seconds that the page on Flask names."""
    told = re.findall(r"`(\w+)`\s+seconds\s+\((\d+)\s+by\s+default\)", TEXTS["howto/flask"])
    defaults = inspect.signature(ChatPool).parameters
    assert {name: defaults[name].default for name in ("idle", "acquire_timeout")} == {
        name: float(seconds) for name, seconds in told
    }


def test_links_lead_to_pages_and_their_headings() -> None:
    """Every relative link has its file; an example that is named is there."""
    for name, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert (DOCS / name).parent.joinpath(target).exists(), (name, target)
        for example in re.findall(r"`(examples/[\w/.]+)`", text):
            assert (ROOT / example).exists(), (name, example)


def test_the_diagram_is_that_of_the_code() -> None:
    """`docs/protocol.svg` is what its script draws now."""
    drawn = script("make_protocol_svg").svg()
    assert drawn == (DOCS / "protocol.svg").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """Import a script of docs/, which is no package that is installed."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks there for its module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_the_table_of_the_protocol_page_is_that_of_the_code() -> None:
    """Each kind of message stands there, with whether it ends its request."""
    rows = re.findall(r"^\| (.+?) \| .+? \| (yes|no) \|$", TEXTS["protocol"], re.MULTILINE)
    told = {(word, ends) for kinds, ends in rows for word in re.findall(r"`(\w+)`", kinds)}
    rules = ChatProtocol.RULES
    wanted = {(kind().type, rule.ends) for kind, rule in rules.items() if not rule.breaks}
    assert {(word, "yes" if ends else "no") for word, ends in wanted} == told
    assert ("anything else", "yes" if ChatProtocol.OTHERS.ends else "no") in rows
    assert ("what cannot be read", "yes" if rules[Malformed].ends else "no") in rows


def test_the_commands_of_the_pages_exist() -> None:
    """Each `fluxbase-aichat x` in a shell's block is a command, and each of its options too."""
    from fluxbase_aichat.cli._app import app  # noqa: PLC0415 - an extra's

    found = 0
    for text in TEXTS.values():
        for command, rest in re.findall(
            r"fluxbase-aichat (\w+)(.*)", "".join(pages.blocks("sh", text))
        ):
            known = {option for item in app.commands[command].params for option in item.opts}
            assert set(re.findall(r"(?<= )--?[a-z-]+", rest)) <= known
            found += 1
    assert found


def test_every_example_is_on_its_page() -> None:
    """The page of the examples lists them all."""
    listed = set(re.findall(r"^\| `examples/([\w/.]+)`", TEXTS["examples"], re.MULTILINE))
    folder = ROOT / "examples"
    there = {path.name for path in folder.iterdir() if path.suffix in {".py", ".ipynb"}}
    assert set() == there - listed


def test_no_page_names_a_deadline_that_is_not_there() -> None:
    """`Timeouts.x` and `Limits.x` are fields."""
    kinds = {"Timeouts": fluxbase_aichat.Timeouts, "Limits": fluxbase_aichat.Limits}
    for name, text in TEXTS.items():
        for kind, field in re.findall(r"\b(Timeouts|Limits)\.(\w+)", text):
            assert field in attrs.fields_dict(kinds[kind]), (name, kind, field)


def test_the_pages_can_be_built(tmp_path: Path) -> None:
    """`python -m docs`, where Sphinx is installed, with every warning an error."""
    for name in ("sphinx", "furo", "myst_parser"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install --group docs")
    command = [sys.executable, "-m", "docs", str(tmp_path)]
    built = subprocess.run(  # noqa: S603 - our own pages
        command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=55, check=False
    )
    assert (0, "") == (built.returncode, built.stderr)
    assert (tmp_path / "index.html").exists()
