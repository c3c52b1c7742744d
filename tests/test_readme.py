"""The README is true: its code runs as printed, and its commands are those that CI runs."""

from __future__ import annotations

import re
from typing import Any

import attrs
import pages
import pytest
from pages import ROOT

import fluxbase_aichat
from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.devserver import DevServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMISES = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
BLOCKS = pages.blocks("python", README)
COMMANDS = pages.blocks("sh", README)


def run(block: str, server: DevServer) -> dict[str, Any]:
    """Run a block as a reader with a server, a token and an open `chat`; return its names."""
    with FluxbaseAIChat(server.ws_url, token=server.token) as chat:
        names: dict[str, Any] = {"chat": chat}
        pages.run(block, ROOT / "README.md", server, names)
    return names


def block_with(text: str) -> str:
    """Return the one block that has `text` in it."""
    (block,) = [block for block in BLOCKS if text in block]
    return block


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(1, len(BLOCKS) + 1)])
def test_every_block_of_python_runs(block: str, fluxbase_devserver: DevServer) -> None:
    """Each block runs by itself, or goes on with an open `chat` as the README says."""
    run(block, fluxbase_devserver)


def test_the_first_example_answers(
    fluxbase_devserver: DevServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question, a follow-up as a stream, and a table: what design section 1 shows."""
    run(block_with("text_stream:"), fluxbase_devserver)
    printed = capsys.readouterr().out
    assert "The top user is **Calm Heron** with 34 orders." in printed
    assert "The top user by revenue is **Dapper Heron**" in printed


def test_the_callback_example_calls_back(
    fluxbase_devserver: DevServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JavaScript SDK's example, translated, prints what that one prints."""
    run(block_with("on_progress=lambda"), fluxbase_devserver)
    printed = capsys.readouterr().out
    assert "[thinking] Thinking...\n" in printed
    assert "Query returned 10 row(s)." in printed
    assert "The top user is **Calm Heron**" in printed
    assert printed.endswith("tokens: 444\n")


def test_the_rows_are_as_the_readme_says(
    fluxbase_devserver: DevServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The query, its columns and its rows are printed."""
    run(block_with("rows_as("), fluxbase_devserver)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("SELECT date_trunc('month', placed_at) AS month,")
    assert "('month', 'revenue', 'orders')" == lines[1]
    assert "2025-03-01T00:00:00Z 5232.5" == lines[2]


def test_the_web_application_answers(fluxbase_devserver: DevServer) -> None:
    """Its functions give a whole answer, and a stream that ends as it should."""
    names = run(block_with("ChatPool("), fluxbase_devserver)
    names["Response"] = lambda body, headers: b"".join(body)
    token = fluxbase_devserver.token()
    with names["pool"]:
        assert "30" in names["answer"](1, token, "How many users are there?")
        events = names["stream"](1, token, "How many users are there?")
    assert b"\nevent: done\n" in events


def test_the_readme_has_one_command_each_for_the_demo_and_the_tests() -> None:
    """Both stand alone in a block, and do everything in one line."""
    demo, tests = COMMANDS
    setup = r"python3 -m venv \.venv && \.venv/bin/pip install -q -e '\.\[(\w+)\]' && "
    assert re.fullmatch(setup + r"\.venv/bin/fluxbase-aichat demo\n", demo)
    assert re.fullmatch(setup + r"\.venv/bin/pytest\n", tests)


def test_ci_runs_the_commands_of_the_readme() -> None:
    """CI has no commands of its own for them: it takes them out of the README."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r'grep -m1 "(.+)" README\.md', script)
    assert pattern is not None
    wanted = re.findall(r"=\$\(readme_command '(.+)'\)", script)
    assert 2 == len(wanted)
    for end, command in zip(wanted, COMMANDS, strict=True):
        found = re.compile(
            pattern[1].replace("$1", re.escape(end)).replace("\\$", "$"), re.MULTILINE
        )
        assert [command.strip()] == [match[0] for match in found.finditer(README)]


def test_links_lead_to_files_of_the_repository() -> None:
    """Every relative link has its file."""
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert "docs/demo.svg" in targets
    assert [] == [target for target in targets if not (ROOT / target).exists()]


def test_the_picture_loads_nothing_from_elsewhere() -> None:
    """The only addresses in it are the names of formats."""
    svg = (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8")
    addresses = re.findall(r'(?:href|src|url)\s*[=(]\s*["\']?([^"\')]+)', svg)
    assert [] == [address for address in addresses if not address.startswith("#")]


def test_names_in_the_readme_exist() -> None:
    """What the README calls by the name of a class can be imported."""
    names = set(re.findall(r"`([A-Z]\w+(?:Error|outs|mits))\b", README)) - {
        "ConnectionError",
        "TimeoutError",
        "PermissionError",
        "ValueError",
    }
    assert {"FluxbaseChatError", "ConnectionLostError"} <= names
    assert [] == [name for name in names if not hasattr(fluxbase_aichat, name)]


def test_the_numbers_of_the_promises_are_those_of_the_code() -> None:
    """Each default in the table of deadlines is the client's."""
    rows = re.findall(r"^\| `(\w+)` \| (?:(\d+) s|none) \|", PROMISES, re.MULTILINE)
    told = {name: float(seconds) if seconds else None for name, seconds in rows}
    assert attrs.asdict(fluxbase_aichat.Timeouts()) == told
    limits = attrs.asdict(fluxbase_aichat.Limits())
    found = re.findall(r"(\d+) MiB \(`Limits\.(\w+)`\)", PROMISES)
    assert limits == {name: int(mib) << 20 for mib, name in found}
