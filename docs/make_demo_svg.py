"""Draws docs/demo.svg, the README's picture, from a real run of two of the demo's questions.

python docs/make_demo_svg.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from fluxbase_aichat import FluxbaseAIChat
from fluxbase_aichat.cli._screen import Screen
from fluxbase_aichat.cli.demo import CHATBOT, INTRODUCTION, QUESTIONS
from fluxbase_aichat.devserver import DevServer

PICTURE = Path(__file__).with_name("demo.svg")
WIDTH = 88
FONTS = "'Fira Code', 'SFMono-Regular', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def main() -> None:
    """Run the demo in a terminal of its own and write what it shows."""
    console = Console(
        file=io.StringIO(),
        record=True,
        width=WIDTH,
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    screen = Screen(console, live=False)
    console.print(Text.assemble(("$ ", "green"), ("fluxbase-aichat demo", "bold")))
    screen.print(INTRODUCTION)
    with (
        DevServer(chunk_delay=0.03) as server,
        FluxbaseAIChat(server.ws_url, token=server.token, exact_numbers=True) as chat,
    ):
        conversation = chat.conversation(CHATBOT)
        for question in (QUESTIONS[0], QUESTIONS[-1]):
            screen.question(question)
            screen.answer(conversation.send(question))
    svg = console.export_svg(title="fluxbase-aichat", theme=MONOKAI, unique_id="demo")
    # The picture loads nothing from elsewhere: the fonts are the reader's.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    PICTURE.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
