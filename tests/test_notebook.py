"""Notebooks, in real kernels: what lands in which cell, interrupting, and running a cell again.

The kernel is the installed ipykernel. `IPYKERNELS` names directories with others, each made by
`pip install --no-deps --target DIR ipykernel==6.29.5`; the same tests run with them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluxbase_aichat import FluxbaseAIChat, ProviderError, QueryResult, Reply, ToolOutput
from fluxbase_aichat.devserver import DevServer

ROOT = Path(__file__).parent.parent
KERNELS = ["installed", *filter(None, os.environ.get("IPYKERNELS", "").split(os.pathsep))]

SETUP = """
import threading
from IPython.display import display
from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.devserver import DevServer
%load_ext fluxbase_aichat
gate = threading.Event()
server = DevServer(pause=lambda seconds: gate.wait(20))
server.start()
def client_threads():
    return [t for t in threading.enumerate() if t.name.startswith("fluxbase-aichat")]
"""
CONNECT = """
chat = FluxbaseAIChat(
    server.ws_url, token=server.token,
    on_content=lambda delta: print(delta, end=""),
    on_query_result=lambda query, summary: display(summary),
)
chat.connect()
"""
QUIET = "chat = FluxbaseAIChat(server.ws_url, token=server.token)"
CELLS = {
    "setup": SETUP,
    "connect": CONNECT,
    "callbacks": """
cid = chat.start_chat("sql-assistant")
turn = chat.send_message(cid, "pause 1\\nsay one\\nsql SELECT 1 AS x\\n---\\nsay two")
""",
    "other": "print('other'); gate.set(); turn.wait(20); print('end'); gate.clear()",
    "old threads": "old = client_threads(); len(old)",
    "connect again": CONNECT,
    "new threads": "for t in old: t.join(5)\n[t in old for t in client_threads()]",
    "quiet": QUIET,
    "ask": "%%ask sql-assistant --df frame\nShow me the top 3 users by order count",
    "go on": "%%ask sql-assistant\nAnd by revenue?",
    "frame": "list(frame.columns), len(frame)",
    "failed": "%%ask sql-assistant --new\nHow many orders were refunded?",
    "no table": "%%ask sql-assistant --df frame\nsay hello",
    "broken": "%%ask sql-assistant\nsay partly\nfail",
    "unknown": "%%ask nobody\nhello",
    "usage": "%%ask\nhello",
    "unbalanced": "%%ask 'sql-assistant\nhello",
    "bad name": "%%ask sql-assistant --df 1st\nhello",
    "no client": "%%ask sql-assistant --chat gate\nhello",
    "undefined": "%%ask sql-assistant --chat other\nhello",
    "interrupted": "%%ask sql-assistant\nsay begin\npause 1",
    "next": "%%ask sql-assistant\nsay again",
    "interrupted wait": "chat.conversation('sql-assistant').send('say begin\\npause 1').display()",
    "loud": QUIET[:-1] + ", on_content=print)",
    "interrupted ask": "chat.ask('sql-assistant', 'say begin\\npause 1')",
    "threads then": "gate.set(); old = client_threads()",
    "connect then": QUIET + "\nchat.connect()",
    "threads after": "for t in old: t.join(5)\n[t in old for t in client_threads()]",
    "failed ask": "chat.ask('nobody', 'hello')",
    "threads of it": "old = client_threads()",
    "connect at last": QUIET + "\nchat.connect()",
    "threads at last": "for t in old: t.join(5)\n[t in old for t in client_threads()]",
    "patience": """
from fluxbase_aichat.display import Live
from fluxbase_aichat.events import Content
live = Live()
live.show([Content(delta="x" * 300_000)])
live.show([Content(delta="y")])
too_soon = live.patience
live.end(None)
1 < too_soon < 4, live.patience
""",
    "environment": """
import os
os.environ["FLUXBASE_URL"], os.environ["FLUXBASE_TOKEN"] = server.ws_url, server.token()
del chat
""",
    "from the environment": "%%ask support\nsay by itself",
    "repr": "reply = chat.ask('support', 'say a <b>c</b>'); reply",
    "close": "chat.disconnect(); server.close()",
}
INTERRUPTED = {"interrupted": "begin", "interrupted wait": "begin", "interrupted ask": "begin"}


def run(cells: list[dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
    """Run cells in a kernel; return what each of them put out."""
    ran = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, ROOT / "tests" / "scripts" / "notebook.py"],
        input=json.dumps(cells),
        capture_output=True,
        encoding="utf-8",
        timeout=55,
        check=False,
        env=os.environ | {"PYTHONUTF8": "1"} | environment,
    )
    assert 0 == ran.returncode, ran.stderr
    outputs: list[dict[str, Any]] = json.loads(ran.stdout)
    assert len(cells) == len(outputs), f"an output of no cell: {outputs[-1]}"
    return outputs


Cells = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=KERNELS)
def cells(request: pytest.FixtureRequest) -> Cells:
    """Run all cells in one kernel."""
    other = [] if request.param == "installed" else [request.param]
    found = run(
        [{"source": source, "interrupt": INTERRUPTED.get(n)} for n, source in CELLS.items()],
        PYTHONPATH=os.pathsep.join([*other, str(ROOT)]),
    )
    return dict(zip(CELLS, found, strict=True))


def shown(cell: dict[str, Any]) -> list[dict[str, str]]:
    """Return the displays of a cell, each as it was in the end."""
    displays: dict[str, dict[str, str]] = {}
    for number, output in enumerate(cell["outputs"]):
        if output["type"] in ("display_data", "update_display_data", "execute_result"):
            key = output.get("transient", {}).get("display_id", f"a plain one, {number}")
            assert output["type"] != "update_display_data" or key in displays
            displays[key] = output["data"]
    return list(displays.values())


def printed(cell: dict[str, Any]) -> str:
    """Return what a cell has printed."""
    return "".join(output["text"] for output in cell["outputs"] if output["type"] == "stream")


def error(cell: dict[str, Any]) -> tuple[str, str]:
    """Return the name and text of the error of a cell."""
    assert cell["status"] == "error"
    (found,) = [output for output in cell["outputs"] if output["type"] == "error"]
    return found["ename"], found["evalue"]


def test_callbacks_put_out_in_the_cell_that_asked(cells: Cells) -> None:
    """What they print and what they display, though another cell runs meanwhile."""
    assert "onetwo" == printed(cells["callbacks"])
    (summary,) = shown(cells["callbacks"])
    assert summary["text/plain"].startswith("'Query returned 1 row(s).")
    assert ["other", "end"] == printed(cells["other"]).split()
    assert [] == shown(cells["other"])
    assert "" == printed(cells["connect"])


def test_the_connecting_cell_again_leaves_one_pair_of_threads(cells: Cells) -> None:
    """The client that it replaces is closed, also when answers of it are still in variables."""
    assert [{"text/plain": "2"}] == shown(cells["old threads"])
    assert [{"text/plain": "[False, False]"}] == shown(cells["new threads"])


def test_a_cell_that_asks(cells: Cells) -> None:
    """Its text is Markdown, its table shows the SQL, and a data frame can be had of it."""
    text, table, answer = shown(cells["ask"])
    assert "Let me count the orders of each user." == text["text/markdown"]
    assert "<pre>SELECT u.name, count(*) AS orders," in table["text/html"]
    assert "<td>Calm Heron</td><td>34</td>" in table["text/html"]
    assert answer["text/markdown"].startswith("The top user is **Calm Heron** with 34 orders.")
    assert [{"text/plain": "(['name', 'orders', 'revenue'], 3)"}] == shown(cells["frame"])


def test_the_next_cell_goes_on(cells: Cells) -> None:
    """A follow-up is understood, for it is asked in the same conversation."""
    answer = shown(cells["go on"])[-1]
    assert answer["text/markdown"].startswith("The top user by revenue is **Dapper Heron**")


def test_a_query_that_failed(cells: Cells) -> None:
    """The SQL is shown, and that it failed."""
    table = shown(cells["failed"])[1]
    assert "<em>The query failed.</em>" in table["text/html"]
    assert "count(refunded_at)" in table["text/html"]


@pytest.mark.parametrize(
    ("cell", "name", "text"),
    [
        ("no table", "NoTableError", "no query result"),
        ("broken", "ProviderError", "STREAM_ERROR"),
        ("unknown", "ChatbotNotFoundError", "not found"),
        ("bad name", "ConfigurationError", "'1st'"),
        ("no client", "ConfigurationError", "gate is a Event"),
        ("undefined", "ConfigurationError", "other is not defined"),
    ],
)
def test_an_error_is_one_line(cells: Cells, cell: str, name: str, text: str) -> None:
    """The library's inside is no help in a notebook."""
    found = error(cells[cell])
    assert name == found[0]
    assert text in found[1]
    (output,) = [output for output in cells[cell]["outputs"] if output["type"] == "error"]
    assert 1 == len(output["traceback"])


def test_an_answer_that_broke_off(cells: Cells) -> None:
    """What came of it stays, and a line says that it is not all."""
    (answer,) = shown(cells["broken"])
    assert "partly\n\n*The answer broke off: ProviderError.*" == answer["text/markdown"]


@pytest.mark.parametrize("cell", ["usage", "unbalanced"])
def test_a_wrong_first_line(cells: Cells, cell: str) -> None:
    """It is a usage error, as for every magic."""
    assert "error" == cells[cell]["status"]
    assert "UsageError" in printed(cells[cell])


def test_interrupting_cancels_and_the_next_cell_works(cells: Cells) -> None:
    """The answer ends where it was, and the conversation goes on."""
    assert ("KeyboardInterrupt", "the answer was cancelled") == error(cells["interrupted"])
    assert "begin\n\n*Cancelled.*" == shown(cells["interrupted"])[-1]["text/markdown"]
    assert "again" == shown(cells["next"])[-1]["text/markdown"]


def test_the_last_error_keeps_no_client(cells: Cells) -> None:
    """The shell keeps its traceback, and yet the connecting cell leaves one pair of threads."""
    assert "KeyboardInterrupt" == error(cells["interrupted wait"])[0]
    assert "begin\n\n*Cancelled.*" == shown(cells["interrupted wait"])[-1]["text/markdown"]
    assert "KeyboardInterrupt" == error(cells["interrupted ask"])[0]
    assert "ChatbotNotFoundError" == error(cells["failed ask"])[0]
    for after in ("threads after", "threads at last"):
        assert [{"text/plain": "[False, False]"}] == shown(cells[after])


def test_a_long_answer_is_painted_less_often(cells: Cells) -> None:
    """Each picture is the whole text, and Jupyter bounds what a cell may send in a second."""
    text, result = shown(cells["patience"])
    assert "x" * 300_000 + "y" == text["text/markdown"]
    assert {"text/plain": "(True, None)"} == result
    assert 3 == len(cells["patience"]["outputs"])


def test_without_a_client_the_environment_counts(cells: Cells) -> None:
    """The magic makes a client, and leaves it to the cells that follow."""
    assert "by itself" == shown(cells["from the environment"])[-1]["text/markdown"]
    (reply,) = shown(cells["repr"])
    assert "a &lt;b>c&lt;/b>" == reply["text/markdown"]


def test_no_other_cell_fails(cells: Cells) -> None:
    """The cells that are there for the others do what they should."""
    for name in ("setup", "connect again", "quiet", "connect then", "environment", "close"):
        assert ("ok", []) == (cells[name]["status"], cells[name]["outputs"])


def test_the_example(fluxbase_devserver: DevServer) -> None:
    """Each cell of `examples/notebook.ipynb` runs, and puts out what its text promises."""
    notebook = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(not c.get("outputs") for c in notebook["cells"]), "it is kept without outputs"
    found = run(
        [{"source": source} for source in sources],
        FLUXBASE_URL=fluxbase_devserver.ws_url,
        FLUXBASE_TOKEN=fluxbase_devserver.token(),
        PYTHONPATH=str(ROOT),
    )
    assert ["ok"] * len(sources) == [cell["status"] for cell in found]
    by_source = dict(zip(sources, found, strict=True))
    (asked,) = [cell for source, cell in by_source.items() if "--df" in source]
    assert "<table>" in shown(asked)[1]["text/html"]
    assert "Calm Heron" in printed(by_source[sources[-1]])


# --- Without a notebook ---------------------------------------------------------------------


def test_in_a_terminal_the_answer_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Its steps, SQL and words, in lines and without what a terminal would obey."""
    script = "say one\x1b[31m two\nsql SELECT 1 AS x\n---\nsay three"
    with FluxbaseAIChat("demo:") as chat:
        chat.conversation("sql-assistant").send(script).display()
    lines = capsys.readouterr().out.splitlines()
    assert [
        "[Thinking...]",
        "[Generating response...]",
        "one two",
        "[Executing: scripted query]",
        "SELECT 1 AS x",
        "<QueryResult ok: 1 row(s) of (x)>",
        "[Generating response...]",
        "three",
    ] == lines


def test_in_a_terminal_a_failure_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """A line says so too, below what had come."""
    with FluxbaseAIChat("demo:") as chat, pytest.raises(ProviderError):
        chat.conversation("sql-assistant").send("say one\nfail").display()
    assert capsys.readouterr().out.endswith("one\nThe answer broke off: ProviderError.\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b <= c", "a < b <= c"),
        ("<script>", "&lt;script>"),
        ("</p><!-- x --><?x?>", "&lt;/p>&lt;!-- x -->&lt;?x?>"),
        ("![x](https://example.com)", "!\\[x](https://example.com)"),
        ("**bold!** [link](https://example.com)", "**bold!** [link](https://example.com)"),
        ("\ud800", "\ufffd"),
    ],
)
def test_markdown_is_made_harmless(text: str, expected: str) -> None:
    """No HTML, and no picture that the browser would fetch; other Markdown is as it was."""
    assert expected == Reply(text=text)._repr_markdown_()


def test_a_tools_output_in_a_notebook() -> None:
    """Text is shown as text, and the rows of SQL as a table."""
    text = ToolOutput("<t>", [{"tool": "<t>", "result": "a <b>"}])
    assert "<p><em>&lt;t&gt;</em></p>\n<pre>a &lt;b&gt;</pre>" == text._repr_html_()
    result = QueryResult("SELECT 1", "Query failed to execute")
    assert result._repr_html_() == ToolOutput("execute_sql", [], result)._repr_html_()
