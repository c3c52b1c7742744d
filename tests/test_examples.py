"""Each script in examples/ runs as its docstring says, against the dev server."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fluxbase_aichat.devserver import DevServer
from fluxbase_aichat.testing import FakeServer

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def run(
    name: str,
    server: DevServer | FakeServer,
    *arguments: str,
    token: str | None = None,
    lines: str = "",
    password: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run an example as a process of its own."""
    settings = {
        "FLUXBASE_URL": server.ws_url if isinstance(server, DevServer) else server.url,
        "FLUXBASE_TOKEN": token or (server.token() if isinstance(server, DevServer) else "any"),
        "FLUXBASE_EMAIL": "ann@example.com",
        "FLUXBASE_PASSWORD": password or "ann-password",
    }
    return subprocess.run(  # noqa: S603 - our own script
        [sys.executable, f"examples/{name}.py", *arguments],
        cwd=ROOT,
        env=os.environ | settings | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        input=lines,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_runs(name: str, fluxbase_devserver: DevServer) -> None:
    """It ends well, prints something, and leaves nothing to wonder about."""
    ran = run(name, fluxbase_devserver)
    assert (0, "") == (ran.returncode, "" if ran.returncode == 0 else ran.stderr)
    assert ran.stdout
    assert "Traceback" not in ran.stderr
    assert "Warning" not in ran.stderr


def test_ask_prints_the_answer_and_its_rows(fluxbase_devserver: DevServer) -> None:
    """The question of the command line is asked."""
    ran = run("ask", fluxbase_devserver, "Which", "category", "brings", "the", "most", "revenue?")
    assert "The top category is **Kitchen**" in ran.stdout
    assert "Kitchen\t24410.8\t759\n" in ran.stdout
    assert ran.stderr.endswith(" tokens\n")


def test_ask_tells_an_error_in_one_line(fluxbase_devserver: DevServer) -> None:
    """A bad token gives the error's name, its message and the exit code 1."""
    ran = run("ask", fluxbase_devserver, token="forged")
    assert 1 == ran.returncode
    assert ran.stderr.startswith("AuthenticationError: ")
    assert 1 == ran.stderr.count("\n")


def test_to_csv_writes_dates_and_exact_numbers(fluxbase_devserver: DevServer) -> None:
    """The file has a head and a line for each month."""
    head, *rows = csv.reader(run("to_csv", fluxbase_devserver).stdout.splitlines())
    assert ["month", "revenue", "orders"] == head
    assert 12 == len(rows)
    assert ["2025-03-01", "5232.50", "35"] == rows[0]


def test_history_goes_on_where_it_was(fluxbase_devserver: DevServer) -> None:
    """The second run lists the conversation of the first, and goes on with it."""
    first = run("history", fluxbase_devserver).stdout
    assert "default/keeper: Persists its conversations\n" in first
    second = run("history", fluxbase_devserver, "And", "by", "revenue?").stdout
    assert "Show me the top 3 users by order count 2\n" in second
    assert "user: And by revenue?\n" in second
    assert "assistant: The top user by revenue is **Dapper Heron**" in second


def test_many_answers_in_order(fluxbase_devserver: DevServer) -> None:
    """Each question stands before its answer, also one whose query failed."""
    lines = run("many", fluxbase_devserver).stdout.splitlines()
    assert lines[0].endswith("There are **30** users.")
    assert "(a query failed)" in lines[2]
    assert lines[3].startswith("Which category brings the most revenue? The top category")


def test_patient_fetches_a_lost_answer(fluxbase_devserver: DevServer) -> None:
    """A connection that is cut in the answer costs time, and no second answer."""
    fluxbase_devserver.faults.set(drop=2, times=1)
    ran = run("patient", fluxbase_devserver)
    assert "There are **30** users." in ran.stdout
    messages = [got for got in fluxbase_devserver.received if got.frame["type"] == "message"]
    assert 1 == len(messages)


def test_sign_in_tells_a_wrong_password(fluxbase_devserver: DevServer) -> None:
    """In one line, without the password."""
    ran = run("sign_in", fluxbase_devserver, password="no-such-password")
    assert 1 == ran.returncode
    assert ran.stderr.startswith("not signed in: ")
    assert "no-such-password" not in ran.stderr
    assert "There are **30** users." in run("sign_in", fluxbase_devserver).stdout


def test_data_frame_has_types(fluxbase_devserver: DevServer) -> None:
    """The month is a date, the revenue a number."""
    lines = run("data_frame", fluxbase_devserver).stdout.splitlines()
    assert ["month", "datetime64[us]"] == lines[0].split()
    assert ["revenue", "float64"] == lines[1].split()


def test_chat_answers_each_line(fluxbase_devserver: DevServer) -> None:
    """A line that is blank is no message; an error does not end the chat."""
    lines = "How many users are there?\n\nsay half\nfail\nHow many orders are there?\n"
    ran = run("chat", fluxbase_devserver, lines=lines)
    assert "There are **30** users.\n" in ran.stdout
    assert "orders over" in ran.stdout


def test_cancel_ends_one_answer_and_gets_the_next(fluxbase_server: FakeServer) -> None:
    """The first is cut while the server still holds its end back, the second is whole."""
    fluxbase_server.on("sql-assistant", contains="top 10").say("It is a long story " * 5).hold()
    fluxbase_server.on("sql-assistant", contains="how many").say("There are 30.")
    printed = run("cancel", fluxbase_server).stdout
    assert "(cancelled: True)" in printed
    assert "There are 30." in printed


def test_save_leaves_the_secret_out(fluxbase_devserver: DevServer, tmp_path: Path) -> None:
    """The file has the answer and its rows, and not the conversation's id."""
    file = tmp_path / "answer.json"
    assert "5 rows by SELECT u.name" in run("save", fluxbase_devserver, str(file)).stdout
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert "conversation_id" not in saved
    assert 5 == saved["query_results"][0]["row_count"]


def test_own_tests_pass(fluxbase_devserver: DevServer) -> None:
    """All three of them."""
    assert "Ran 3 tests" in run("own_tests", fluxbase_devserver).stdout


def test_tracing_tells_no_question(fluxbase_devserver: DevServer) -> None:
    """There is a span of the turn and one of its query; what was asked is in none."""
    printed = run("tracing", fluxbase_devserver).stdout
    assert 2 <= printed.count('"trace_id"')
    assert "How many users" not in printed
