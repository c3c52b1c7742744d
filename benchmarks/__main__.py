"""Measure everything in one run: `python -m benchmarks`.

The server is a process of its own, and so is each run of each client. The runs are interleaved:
first every row once, then every row again, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import report, rows

ROOT = Path(__file__).parent.parent


def _node_is_ready() -> str | None:
    """Install what the Node.js peer needs into its own folder; return why it cannot run."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        return "there is no Node.js here: its rows are left out"
    if not (rows.PEERS / "node_modules" / "ws").is_dir():
        install = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"]
        done = subprocess.run(install, cwd=rows.PEERS, capture_output=True, check=False)
        if done.returncode:
            return "npm could not install ws: the rows of Node.js are left out"
    return None


def _left_out(*, node: bool) -> tuple[set[str], list[str]]:
    """Return the rows that cannot be measured here, and why."""
    rows_out, notes = set(), []
    why = _node_is_ready() if node else "the rows of Node.js are left out, as asked for"
    if why is not None:
        rows_out.add(rows.NODE)
        notes.append(why)
    if importlib.util.find_spec("websockets") is None:
        rows_out.add(rows.SYNC)
        notes.append("websockets is not installed: its row is left out (pip install --group bench)")
    if importlib.util.find_spec("orjson") is None:
        rows_out |= {"orjson alone", "raw socket and orjson"}
        notes.append("orjson is not installed: every row is without it (pip install '.[speed]')")
    return rows_out, notes


@contextlib.contextmanager
def _server() -> Iterator[int]:
    """Run the server; give its port."""
    command = [sys.executable, "-m", "benchmarks.server"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            if process.stdout is None:
                raise RuntimeError("the server has no output")
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _measure(groups: list[rows.Group], runs: int, left_out: set[str]) -> list[report.Runs]:
    found: list[report.Runs] = [
        {name: [] for name in group.rows if name not in left_out} for group in groups
    ]
    with _server() as port:
        for number in range(1, runs + 1):
            for group, results in zip(groups, found, strict=True):
                for name in results:
                    print(f"\r\033[K{number}/{runs} {group.title}: {name}", end="", file=sys.stderr)
                    done = subprocess.run(
                        group.rows[name](port),
                        cwd=ROOT,
                        stdout=subprocess.PIPE,
                        text=True,
                        check=True,
                    )
                    results[name].append(json.loads(done.stdout))
    print("\r\033[K", end="", file=sys.stderr)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, with every single run")
    parser.add_argument("--runs", type=int, default=5, help="of each row (default: 5)")
    parser.add_argument("--deltas", type=int, default=200_000, help="of one turn")
    parser.add_argument("--rows", type=int, default=200_000, help="of one query result")
    parser.add_argument("--scale", type=float, default=1.0, help="of all other sizes")
    parser.add_argument("--only", default="", help="groups with this in their title")
    parser.add_argument("--no-node", action="store_true", help="install and run no Node.js peer")
    options = parser.parse_args(arguments)
    left_out, notes = _left_out(node=not options.no_node)
    groups = [
        group
        for group in rows.groups(options.deltas, options.rows, options.scale)
        if options.only in group.title
    ]
    if hasattr(os, "getloadavg"):
        notes.append(f"load average before the first run: {os.getloadavg()[0]:.1f}")
    results = list(zip(groups, _measure(groups, options.runs, left_out), strict=True))
    command = " ".join(
        ["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)]
    )
    if options.json:
        text = json.dumps(report.as_json(results, notes, command), indent=1, ensure_ascii=False)
        print(text)
    else:
        print(report.as_markdown(results, notes, command))


if __name__ == "__main__":
    main()
