"""What was measured, as Markdown and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .rows import Group, Target

__all__ = ["as_json", "as_markdown", "versions"]

Runs = dict[str, list[dict[str, float]]]
"""What each run of each row of a group has printed."""


def versions() -> dict[str, str]:
    """Return what the figures depend on, without a name of the machine."""
    found = {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        platform.python_implementation(): platform.python_version(),
    }
    for name in ("websocket-client", "attrs", "orjson", "websockets"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if (node := shutil.which("node")) is not None:
        found["Node.js"] = subprocess.run(
            [node, "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _figures(group: Group, runs: list[dict[str, float]]) -> list[float]:
    if group.growth:
        return [run["seconds"] / run["units"] * 1e9 for run in runs]
    if group.rate:
        return [run["units"] / run["seconds"] / 1000 for run in runs]
    return [run["value"] for run in runs]


def _medians(group: Group, runs: Runs) -> dict[str, float]:
    return {name: statistics.median(_figures(group, found)) for name, found in runs.items()}


def _judged(target: Target, medians: dict[str, float]) -> tuple[float, bool] | None:
    if not set(target.rows) <= set(medians):
        return None
    figure = target.of(medians)
    return figure, (figure >= target.limit if target.at_least else figure <= target.limit)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(group: Group, runs: Runs) -> Iterator[str]:
    medians = _medians(group, runs)
    peers = [peer for peer in group.peers if peer in medians]
    heads = ["", group.unit, "least", "most", *(f"/ {peer}" for peer in peers)]
    if group.growth:
        heads = ["", "ns a unit", "least", "most", "ns a further unit"]
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    before: dict[str, float] = {}
    for name, found in runs.items():
        figures = _figures(group, found)
        cells = [name, *map(_number, (medians[name], min(figures), max(figures)))]
        if group.growth:
            now = {
                key: statistics.median(run[key] for run in found) for key in ("units", "seconds")
            }
            more = now["units"] - before.get("units", 0)
            slope = (now["seconds"] - before.get("seconds", 0)) / more * 1e9
            cells.append(_number(slope) if before else "")
            before = now
        cells += [f"{medians[name] / medians[peer]:.2f}" for peer in peers]
        yield f"| {' | '.join(cells)} |"


def as_markdown(results: list[tuple[Group, Runs]], notes: list[str], command: str) -> str:
    """Return the whole report."""
    lines = ["# Benchmarks", "", f"Measured by `{command}`; each figure is the median of its runs."]
    lines += ["", *(f"- {name}: {version}" for name, version in versions().items())]
    lines += [f"- {note}" for note in notes]
    for group, runs in results:
        if runs:
            lines += ["", f"## {group.title}", "", *_table(group, runs)]
    lines += [
        "",
        "## The targets of DESIGN 6",
        "",
        "| | is | asked for | |",
        "| --- |" + " ---: |" * 3,
    ]
    for group, runs in results:
        for target in group.targets:
            judged = _judged(target, _medians(group, runs))
            asked = f"{'≥' if target.at_least else '≤'} {target.limit:g} {target.unit}"
            figure, word = "", "not measured"
            if judged is not None:
                figure, word = f"{judged[0]:.2f} {target.unit}", "yes" if judged[1] else "**no**"
            place = group.title.partition("(")[0].partition(":")[0].strip()
            lines.append(f"| {place}: {target.what} | {figure} | {asked} | {word} |")
    return "\n".join([*lines, ""])


def as_json(results: list[tuple[Group, Runs]], notes: list[str], command: str) -> dict[str, Any]:
    """Return the same as one value, with every run."""
    found = []
    for group, runs in results:
        medians = _medians(group, runs)
        rows = [
            {
                "name": name,
                "median": medians[name],
                "least": min(_figures(group, made)),
                "most": max(_figures(group, made)),
                "runs": made,
            }
            for name, made in runs.items()
        ]
        targets = []
        for target in group.targets:
            judged = _judged(target, medians)
            targets.append(
                {
                    "what": target.what,
                    "limit": target.limit,
                    "at_least": target.at_least,
                    "figure": judged and judged[0],
                    "reached": judged and judged[1],
                }
            )
        unit = "ns a unit" if group.growth else group.unit
        found.append({"title": group.title, "unit": unit, "rows": rows, "targets": targets})
    return {"command": command, "versions": versions(), "notes": notes, "groups": found}
