"""Each script in examples/ runs as its docstring says, against the dev server."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fluxbase_aichat.devserver import DevServer

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def run(
    name: str, server: DevServer, *arguments: str, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run an example as a process of its own."""
    settings = {"FLUXBASE_URL": server.ws_url, "FLUXBASE_TOKEN": token or server.token()}
    return subprocess.run(  # noqa: S603 - our own script
        [sys.executable, f"examples/{name}.py", *arguments],
        cwd=ROOT,
        env=os.environ | settings | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
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
