"""Runs cells in a real kernel, in a process of its own, and tells what each of them put out.

    python tests/scripts/notebook.py < cells.json > outputs.json

A cell is `{"source": CODE}`; with `"interrupt": TEXT` the kernel is interrupted when the cell has
put out that text. Told is, for each cell, `"status"` (`ok` or `error`) and `"outputs"`: the
messages that name it as their parent, whenever they came. `PYTHONPATH` decides which ipykernel it
is.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

PATIENCE = 40.0
SHOWN = {"stream", "display_data", "update_display_data", "execute_result", "error"}


class Notebook:
    """A kernel and what its cells have put out so far."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client
        self.cells: dict[str, dict[str, Any]] = {}

    def run(self, source: str, interrupt: str | None) -> None:
        """Run one cell to its end."""
        cell_id = self.client.execute(source)
        self.cells[cell_id] = cell = {"status": "", "outputs": []}
        while not (cell["status"] and cell.get("idle")):
            self.take(cell_id)
            if interrupt is not None and interrupt in json.dumps(cell["outputs"]):
                interrupt = None
                self.manager.interrupt_kernel()
            if cell.get("idle") and not cell["status"]:
                reply = self.client.get_shell_msg(timeout=PATIENCE)
                while reply["parent_header"].get("msg_id") != cell_id:
                    reply = self.client.get_shell_msg(timeout=PATIENCE)
                cell["status"] = reply["content"]["status"]

    def take(self, cell_id: str) -> None:
        """Take one message and put it to its cell."""
        try:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
        except queue.Empty:
            raise SystemExit(f"cell {cell_id} hangs: {self.cells[cell_id]}") from None
        kind, content = message["msg_type"], message["content"]
        cell = self.cells.get(message["parent_header"].get("msg_id", ""))
        if kind in SHOWN:
            # What names no cell is told as well: no test expects such a one.
            (cell or self.cells.setdefault("", {"status": "", "outputs": []}))["outputs"].append(
                {"type": kind, **content}
            )
        elif kind == "status" and cell is not None and content["execution_state"] == "idle":
            cell["idle"] = True


def main() -> None:
    """Run the cells of the standard input."""
    manager = KernelManager()
    manager.start_kernel(stderr=sys.stderr)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        notebook = Notebook(manager, client)
        for cell in json.load(sys.stdin):
            notebook.run(cell["source"], cell.get("interrupt"))
        json.dump(list(notebook.cells.values()), sys.stdout)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)


if __name__ == "__main__":
    main()
