"""`fluxbase-aichat chat`: a conversation in the terminal, with commands that begin with a slash."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
import click
from rich.text import Text

from fluxbase_aichat import Conversation, FluxbaseAIChat, FluxbaseChatError, QueryResult, Turn
from fluxbase_aichat._harmless import harmless
from fluxbase_aichat.config import nearest
from fluxbase_aichat.errors import ConfigurationError, ConversationNotResumedError

from ._errors import INTERRUPTED, show_error
from ._files import write_whole
from ._going_on import find_conversation, going_on_options, resumed_id
from ._input import plain_input, read_question
from ._output import Form, can_draw, csv_of, form_options, print_reply, terminal
from ._screen import Screen, table
from ._server import Server, chatbot_argument, namespace_option, server_options
from ._talk import Outcome, attempt
from ._typed import remembering

__all__ = ["chat"]

_HELP: Final = r"""/bots                    list the chatbots
/bot NAME [NAMESPACE]    talk to another chatbot; coming back goes on
/new                     begin a new conversation with this one
/history                 show what the server has stored of this conversation
/save FILE               write the rows of the last query that worked, as CSV
/cid [ID]                show this conversation's id, or go on with another one
/help                    show this
/quit                    leave, as Ctrl-D does

A line that ends with \ goes on in the next. Three quotes alone on a line begin
a question of several lines, and end it. Ctrl-C cancels an answer; twice, it
leaves."""
_AGAIN: Final = "Ctrl-C again leaves; /help says what else there is."


class _Leave(Exception):  # noqa: N818 - nothing is wrong
    """The user has had enough."""


@click.command()
@chatbot_argument
@namespace_option
@going_on_options
@form_options
@server_options
def chat(
    *,
    chatbot: str,
    namespace: str | None,
    go_on: bool,
    cid: str | None,
    form: Form,
    server: Server,
) -> None:
    """Talk to CHATBOT, by turns.

    /help shows the commands. With --json or --csv each answer is printed as `ask` does.

    Without a terminal each line of the standard input is a question, and the exit code is 1 when
    one of them failed.
    """
    plain_input()
    cid = resumed_id(server, chatbot, namespace, go_on=go_on, cid=cid)
    console = terminal()
    interactive = console.is_terminal and sys.stdin.isatty()
    notes = None if interactive else terminal(stderr=True)
    screen = Screen(console, live=can_draw(console), notes=notes)
    with server.chat(exact=form != "json") as client:
        talk = _Chat(server, client, screen, form=form, interactive=interactive)
        code = talk.run(chatbot, namespace, cid)
    if code:
        raise click.exceptions.Exit(code)


def _nothing() -> None:
    """Keep nothing of what is typed."""


@attrs.define
class _Chat:
    """The chat, and the conversations that it has gone through."""

    _server: Server
    _client: FluxbaseAIChat
    _screen: Screen
    _form: Form = attrs.field(kw_only=True)
    _interactive: bool = attrs.field(kw_only=True)
    _keep: Callable[[], None] = attrs.field(default=_nothing, init=False)
    # By chatbot and namespace: coming back to a chatbot is going on with it.
    _known: dict[tuple[str, str], Conversation] = attrs.field(factory=dict, init=False)
    _current: Conversation = attrs.field(init=False)
    _table: QueryResult | None = attrs.field(default=None, init=False)

    def run(self, chatbot: str, namespace: str | None, cid: str | None) -> int:
        """Take questions and commands until the user leaves; return the exit code."""
        self._talk_to(chatbot, namespace, cid)
        if not self._interactive:
            return self._loop()
        self._note(f"You are talking to {harmless(chatbot)}. /help shows the commands.")
        with remembering() as self._keep:
            return self._loop()

    def _loop(self) -> int:
        failed = False
        pressed = False  # whether the last that came was a Ctrl-C
        while True:
            try:
                text = self._read()
                if text.startswith("/") and "\n" not in text:
                    self._command(text)
                    outcome: Outcome = "answered"
                elif text.strip():
                    outcome = self._ask(text.strip())
                else:
                    outcome = "answered"  # there was nothing to it
            except (EOFError, _Leave) as end:
                if self._interactive and isinstance(end, EOFError):
                    click.echo()
                return 1 if failed and not self._interactive else 0
            except KeyboardInterrupt:
                click.echo()
                if pressed or not self._interactive:
                    return INTERRUPTED
                pressed = True
                self._note(_AGAIN)
                continue
            except FluxbaseChatError as error:  # a command's; an answer's is told
                self._error(error)
                outcome = "failed"
            failed = failed or outcome == "failed"
            pressed = outcome == "cancelled"
            if pressed and not self._interactive:
                return INTERRUPTED

    def _read(self) -> str:
        if self._interactive:
            click.echo()
        try:
            return read_question(f"{harmless(self._current.chatbot)} {self._screen.prompt}")
        finally:
            self._keep()

    def _ask(self, question: str) -> Outcome:
        return attempt(self._screen, self._current, question, show=self._show, tell=self._error)

    def _show(self, turn: Turn) -> None:
        try:
            if self._form == "text":
                self._screen.answer(turn)
            else:
                print_reply(self._screen.reply(turn), self._form)
        finally:  # also of an answer that was cancelled: its table has been shown
            tables = [result for result in turn.query_results if result.status == "ok"]
            self._table = tables[-1] if tables else self._table

    def _error(self, error: FluxbaseChatError) -> None:
        if isinstance(error, ConversationNotResumedError):
            error.hint = "/new begins a new one"
        if self._interactive:
            self._screen.error(error)
        else:
            show_error(error)

    def _note(self, text: str) -> None:
        self._screen.print(Text(text, style="dim"))

    def _talk_to(
        self, chatbot: str, namespace: str | None, cid: str | None = None, *, new: bool = False
    ) -> None:
        """Change the conversation, once the server has started the other one."""
        name = (chatbot, namespace or "default")
        known = None if cid or new else self._known.get(name)
        conversation = known or self._client.conversation(chatbot, namespace, cid)
        with self._server.naming(chatbot):
            conversation.start()
        self._known[name] = self._current = conversation

    # -- the commands -----------------------------------------------------------------------

    def _command(self, text: str) -> None:
        name, *arguments = text.split()
        match name, arguments:
            case (("/quit" | "/exit"), []):
                raise _Leave
            case "/help", []:
                self._note(_HELP)
            case "/bots", []:
                bots = self._server.api().list_chatbots()
                rows = [{"name": bot.name, "description": bot.description} for bot in bots]
                self._screen.print(table(("name", "description"), rows))
            case "/bot", [bot]:
                self._talk_to(bot, None)
            case "/bot", [bot, namespace]:
                self._talk_to(bot, namespace)
            case "/new", []:
                self._talk_to(self._current.chatbot, self._current.namespace, new=True)
                self._note("This is a new conversation.")
            case "/history", []:
                self._screen.stored(self._current.history())
            case "/save", [_, *_]:
                self._save(text.split(maxsplit=1)[1].strip())
            case "/cid", []:
                self._note(self._current.id or "")
            case "/cid", [begun]:
                self._resume(begun)
            case _:
                hint = "/help shows them; a blank before the slash makes it a question"
                known = re.findall(r"^/\w+", _HELP, re.MULTILINE)
                if name not in known and (meant := nearest(name, known)):
                    hint = f"did you mean {meant}? {hint}"
                raise ConfigurationError(
                    f"{harmless(text.splitlines()[0][:60])} is no command, or has other arguments",
                    hint=hint,
                )

    def _resume(self, begun: str) -> None:
        stored = find_conversation(self._server.api(), begun)
        self._talk_to(stored.chatbot, stored.namespace, stored.id)
        self._screen.stored(stored.messages)

    def _save(self, name: str) -> None:
        """Write the last table to a new file."""
        if self._table is None:
            raise ConfigurationError("there is no table to save yet")
        try:
            file = Path(name).expanduser()
            # What is there already may be anything; a typing error should not cost it.
            if file.exists():
                raise ConfigurationError(f"{name} is there already", hint="name another file")
            write_whole(file, csv_of(self._table))
        except OSError as error:
            raise ConfigurationError(f"cannot write {name}: {error.strerror}") from None
        except (ValueError, RuntimeError) as error:  # no user of that name, no such character
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(f"cannot write {name}: {error}") from None
        rows = len(self._table)
        what = "1 row is" if rows == 1 else f"{rows:,} rows are"
        self._note(f"{what} in {harmless(name)}.")
