"""Shows a chat on a terminal, or as plain text where there is none. It asks and decides nothing."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from markdown_it import MarkdownIt
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from fluxbase_aichat import FluxbaseChatError, QueryResult, Reply, Turn, events
from fluxbase_aichat._harmless import harmless
from fluxbase_aichat.stored import StoredMessage

from ._errors import advice_of, message_of
from ._paragraphs import Paragraphs

__all__ = ["Screen", "table"]

_ROWS: Final = 20
"""As many rows of a result are shown."""
_CELL: Final = 200
"""As many characters of a value; the width of the terminal cuts further."""
_NARROWEST: Final = 5
"""A column is not cut below this; the last ones are left out before."""
_BETWEEN: Final = 3
"""Blanks between two columns."""
_TOOLS: Final = frozenset({"querying", "executing"})
_FRAME: Final = 1 / 15
"""Seconds between two pictures; words come faster than an eye needs to see them."""
_AROUND: Final = 4
"""Lines round the growing end of an answer, with the one of the cursor."""

_MIDNIGHT: Final = "T00:00:00Z"
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
# Where a line of SQL is broken for the eye: before a clause, but not inside quotes.
_CLAUSE: Final = re.compile(
    r"""('[^']*'|"[^"]*")|\s+(?=(?:FROM|WHERE|GROUP BY|HAVING|ORDER BY|UNION)\b)"""
)


class Screen:
    """Shows questions, and answers while they grow.

    With `live` the last lines of the terminal are drawn again as words come; whatever is complete
    stands above them for good. Without it only complete paragraphs are printed.

    What is no part of an answer goes to `notes`, if there is another console for it: the tokens,
    and, where the answer itself is not drawn, that one is waited for.
    """

    def __init__(self, console: Console, *, live: bool, notes: Console | None = None) -> None:
        self._console = console
        self._live = live
        self._notes = console if notes is None else notes
        # A file with an answer alone begins with the answer.
        self._begun = live or notes is None
        # Guards what is drawn, and the drawing, while an answer grows.
        self._lock = threading.Lock()
        self._pending = Paragraphs()
        self._steps = False  # whether the last line printed is one of the server's steps
        self._spinner = Spinner("dots", style="cyan")

    def print(self, *renderables: RenderableType, wrap: bool = True) -> None:
        """Print, each after a blank line."""
        self._steps = False
        for renderable in renderables:
            if self._begun:
                self._console.print()
            self._begun = True
            self._console.print(renderable, soft_wrap=not wrap)

    def question(self, text: str) -> None:
        """Show what is asked."""
        self.print(Text(f"{self.prompt}{text}", style="bold cyan"))

    @property
    def prompt(self) -> str:
        """What a question begins with."""
        return "\u276f " if self._console.encoding.startswith("utf") else "> "

    def error(self, error: FluxbaseChatError) -> None:
        """Show what went wrong, and what to do about it."""
        self.print(Text(f"Error: {message_of(error)}", style="red"))
        if advice := advice_of(error):
            self._console.print(Text(f"Hint: {advice}", style="yellow"))

    def stored(self, messages: Sequence[StoredMessage]) -> None:
        """Show what was said before."""
        for message in messages:
            if message.role == "user":
                self.question(harmless(message.content))
                continue
            for result in message.query_results:
                self._result(result)
            self._words(message.content)

    def answer(self, turn: Turn) -> None:
        """Show an answer from its first event to its last; raise what made it fail."""
        self._pending = Paragraphs()
        self._spinner.update(text=Text("Waiting for the answer...", style="cyan"))
        with self._drawing():
            for event in turn:
                with self._lock:
                    self._show(event)
        if not turn.cancelled:
            self._steps = False
            if self._live or self._notes is self._console:
                self._notes.print()
            self._notes.print(_footer(turn.result()))

    def reply(self, turn: Turn) -> Reply:
        """Wait for a whole answer, and show nothing of it but that it is waited for."""
        self._spinner.update(text=Text("Waiting for the answer...", style="cyan"))
        with self._turning():
            for event in turn:
                if isinstance(event, events.Progress):
                    with self._lock:
                        self._spin(_line(event.message or event.step))
        return turn.result()

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Draw the growing end of the answer; whatever ends it, what has come stays."""
        draw = self._refreshing(self._console, self._growing) if self._live else self._turning()
        with draw:
            try:
                yield
            finally:
                with self._lock:
                    self._flush()

    def _turning(self) -> contextlib.AbstractContextManager[None]:
        """Show that an answer is waited for, beside what is printed, where that can be drawn."""
        notes = self._notes
        if notes is self._console or not notes.is_terminal or notes.is_dumb_terminal:
            return contextlib.nullcontext()
        return self._refreshing(notes, lambda: self._spinner)

    @contextlib.contextmanager
    def _refreshing(
        self, console: Console, renderable: Callable[[], RenderableType]
    ) -> Iterator[None]:
        """Draw something again and again at the end of a terminal; in the end it is gone."""
        live = Live(
            console=console,
            get_renderable=renderable,
            auto_refresh=False,  # rich's own thread and another's print garble each other
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
            vertical_overflow="crop",
        )
        over = threading.Event()

        def draw() -> None:
            with contextlib.suppress(OSError):  # a terminal that is gone, which another print tells
                while not over.wait(_FRAME):
                    with self._lock:
                        live.refresh()

        artist = threading.Thread(target=draw, name="fluxbase-aichat-screen", daemon=True)
        with live:
            artist.start()
            try:
                yield
            finally:
                over.set()
                artist.join()

    def _growing(self) -> RenderableType:
        if not self._pending:
            return Group("", self._spinner)
        width, height = self._console.size
        # Drawing takes longer the longer it is, and only the end grows.
        end = self._pending.end(width, max(1, height - _AROUND))
        return Group("", _markdown(end), "", self._spinner)

    def _show(self, event: events.Event) -> None:
        match event:
            case events.Content(delta=delta):
                self._pending.add(delta)
                self._words(self._pending.take())
            case events.Progress(step=step, message=message):
                self._progress(step, _line(message or step))
            case events.QueryResultEvent(result=result):
                self._result(result)
            case events.ToolResult(output=output):
                if output.query_result is not None:
                    self._result(output.query_result)
                elif output.text:
                    self._flush()
                    self.print(Text(harmless(output.text), style="dim"))

    def _progress(self, step: str, message: str) -> None:
        """Say what the server does. In a terminal only a tool's step stays to be read."""
        self._spin(message)
        if self._notes is not self._console and not self._live:
            return  # what is printed is the answer alone
        if not self._console.is_terminal or step in _TOOLS:
            self._flush()
            if not self._steps:
                self._console.print()
            self._console.print(Text(f"[{_line(step)}] {message}", style="cyan dim"))
            self._steps = True

    def _spin(self, message: str) -> None:
        self._spinner.update(text=Text(message, style="cyan"))

    def _result(self, result: QueryResult) -> None:
        self._flush()
        if result.query:
            self.print(_sql(harmless(result.query)))
        if result.data:
            self.print(table(result.columns, result[:_ROWS]))
            if len(result) > _ROWS:
                self._console.print(Text(f"… and {len(result) - _ROWS:,} more rows", style="dim"))
        else:
            style = "dim" if result.status == "empty" else "red"
            self.print(Text(_line(result.summary) or "No rows.", style=style))

    def _flush(self) -> None:
        """Print what is pending for good."""
        self._words(self._pending.take_all())

    def _words(self, text: str) -> None:
        """Print some Markdown, if there is any."""
        if not text.strip():
            return
        if self._console.is_terminal:
            self.print(_Words(text))
            return
        with self._console.capture() as captured:
            self._console.print(_markdown(text))
        # In a file rich's padding would be blanks at the ends of lines.
        lines = [line.rstrip() for line in captured.get().strip("\n").split("\n")]
        self.print(Text("\n".join(lines)), wrap=False)


# HTML and pictures are text: rich would leave out the one, so "<name>", and misplace the other.
_PARSER: Final = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["strikethrough", "table"])
    .disable(["image", "html_block", "html_inline"])
)


def _markdown(text: str) -> Markdown:
    # Justified "default" it has no blanks at the end of a line; links show where they lead.
    drawn = Markdown("", justify="default", hyperlinks=False)
    drawn.parsed = _PARSER.parse(harmless(text))
    return drawn


class _Words:
    """Markdown without the empty lines that rich puts round a list."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, as rich asks for it."""
        lines = console.render_lines(_markdown(self._text), options, pad=False)
        shown = [bool("".join(part.text for part in line).strip()) for line in lines]
        if True not in shown:
            return
        for line in lines[shown.index(True) : len(shown) - shown[::-1].index(True)]:
            yield from line
            yield Segment.line()


def _sql(query: str) -> Text:
    # Its colours are those of the terminal's own palette, which go with any background.
    query = _CLAUSE.sub(lambda found: found[1] or "\n", query)
    sql = Syntax("", "sql", theme="ansi_dark").highlight(query)
    sql.rstrip()
    return sql


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return rows as a table, cut to the terminal's width."""
    return _Rows(columns, rows)


class _Rows:
    """A table of the first columns that there is room for."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self._columns = columns
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, as rich asks for it."""
        drawn = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        left = options.max_width
        cells: list[list[Text]] = []
        for name in self._columns:
            values = [row.get(name) for row in self._rows]
            column = _cells(values)
            head = _cell(name)
            # Of columns that do not fit rich would draw the frame alone.
            widest = max(cell_len(cell.plain) for cell in (head, *column))
            left -= min(_NARROWEST, max(3, widest)) + (_BETWEEN if cells else 0)
            if cells and left < 0:
                break
            numbers = all(value is None or _is_number(value) for value in values)
            drawn.add_column(head, justify="right" if numbers else "left", min_width=3)
            cells.append(column)
        for row in zip(*cells, strict=True):
            drawn.add_row(*row)
        for line in console.render_lines(drawn, options, pad=False):
            yield from _unpadded(line)
            yield Segment.line()
        if more := len(self._columns) - len(cells):
            yield Text(f"\u2026 and {more:,} more column{'s' if more > 1 else ''}", style="dim")


def _unpadded(line: list[Segment]) -> Iterator[Segment]:
    """Leave out the blanks at the end of a line, which are of no use in a file."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    yield from line[:-1]
    for text, style, control in line[-1:]:
        yield Segment(text.rstrip(), style, control)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _cells(values: Sequence[Any]) -> list[Text]:
    """Return a column's values as text, and times as people write them."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, str) and _TIME.fullmatch(value) for value in known):
        dates = all(value.endswith(_MIDNIGHT) for value in known)
        length = 10 if dates else 19
        values = [value and value[:length].replace("T", " ") for value in values]
    return [
        Text("null", style="dim") if value is None else _cell(str(value)[:_CELL])
        for value in values
    ]


def _cell(text: str) -> Text:
    # That it must not be wrapped stands in the cell: of columns that must not be wrapped rich
    # takes as much from the short as from the long.
    return Text(_line(text), no_wrap=True, overflow="ellipsis")


def _line(text: str) -> str:
    return " ".join(harmless(text).split())


def _footer(reply: Reply) -> Text:
    parts = []
    if reply.usage is not None:
        usage = reply.usage
        parts.append(
            f"{usage.total_tokens:,} tokens "
            f"({usage.prompt_tokens:,} read, {usage.completion_tokens:,} written)"
        )
    if reply.duration is not None:
        seconds = reply.duration
        parts.append(f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms")
    return Text(" · ".join(parts), style="dim")
