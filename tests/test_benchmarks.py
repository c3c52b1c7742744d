"""The benchmarks run: every row of a tiny run has a figure. None is judged here."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they read /proc")

ROOT = pathlib.Path(__file__).parent.parent

GROUPS = [
    "Deltas, many frames",
    "Deltas, one frame",
    "Events of deltas",
    "Rows of one result",
    "Latency",
    "Import",
    "idle clients",
    "Memory of an answer",
    "streaming at once",
    "Beside a thread",
    "An answer's cost",
    "A turn's cost",
    "A client's cost",
]


def run(*command: str) -> str:
    """Run Python where the benchmarks are."""
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


def tiny(*options: str) -> str:
    """Measure next to nothing, once, without installing anything."""
    sizes = ["--runs=1", "--deltas=50", "--rows=20", "--scale=0.0001", "--no-node"]
    return run("-m", "benchmarks", *sizes, *options)


@pytest.mark.parametrize("title", GROUPS)
def test_every_row_is_measured(title) -> None:
    """Each row of the group has what it has measured, and each target what it is."""
    (group,) = json.loads(tiny("--json", "--only", title))["groups"]
    assert [1] * len(group["rows"]) == [len(row["runs"]) for row in group["rows"]]
    assert group["rows"]
    needs_node = [target for target in group["targets"] if "Node.js" in target["what"]]
    judged = [target for target in group["targets"] if target["figure"] is not None]
    assert len(group["targets"]) - len(needs_node) == len(judged)


def test_these_are_all_groups() -> None:
    """A new group has to be put into the list above."""
    titles = run(
        "-c", "import benchmarks.rows as r; print(*(g.title for g in r.groups(1, 1, 1)), sep='\\n')"
    )
    found = titles.splitlines()
    assert len(GROUPS) == len(found)
    assert [1] * len(GROUPS) == [sum(name in title for title in found) for name in GROUPS]


def test_the_table() -> None:
    """Without `--json` it is Markdown, with a table a group and one of the targets."""
    text = tiny("--only", "Import")
    assert "| fluxbase_aichat |" in text
    assert "## The targets of DESIGN 6" in text
    assert "--no-node" in text
