"""`%%ask`, the cell magic: a cell that is a question. IPython, which calls it, is imported late."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .client import FluxbaseAIChat
from .errors import ConfigurationError, FluxbaseChatError
from .turn import Conversation

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load_ipython_extension"]

_CHAT: Final = "chat"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add `%%ask` to a notebook; `%load_ext fluxbase_aichat` calls it.

        %%ask CHATBOT [--df NAME] [--new] [--namespace NAME] [--chat NAME]
        the question

    It asks with the client in the variable `chat` (`--chat` names another). Without that variable
    it makes one from `FLUXBASE_URL` and `FLUXBASE_TOKEN`, as `FluxbaseAIChat.from_env` does, and
    puts it there. Cells that ask the same chatbot go on in one conversation; `--new` begins
    another. `--df NAME` puts the answer's table into the variable NAME, as a `pandas.DataFrame`.
    Interrupting the cell cancels the answer.
    """
    shell.register_magic_function(_Ask(shell), magic_kind="cell", magic_name="ask")


class _Ask:
    """The magic, and the conversations that its cells go on with."""

    __name__ = "ask"

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        # A client that the user has replaced is to be closed.
        self._conversations: weakref.WeakKeyDictionary[
            FluxbaseAIChat, dict[tuple[str, str | None], Conversation]
        ] = weakref.WeakKeyDictionary()

    def __call__(self, line: str, cell: str) -> None:
        """Ask what stands in the cell, and show the answer while it grows."""
        error = self._attempt(line, cell)
        if isinstance(error, KeyboardInterrupt):
            # Its traceback would be kept by the shell, and keep the client with it.
            raise KeyboardInterrupt("the answer was cancelled") from None
        if error is not None:
            _raise_in_one_line(error)

    def _attempt(self, line: str, cell: str) -> FluxbaseChatError | KeyboardInterrupt | None:
        options = _parse(line)
        try:
            self._ask(options, cell.strip())
        except (FluxbaseChatError, KeyboardInterrupt) as error:
            return error.with_traceback(None)
        return None

    def _ask(self, options: Any, question: str) -> None:
        if options.df is not None and not options.df.isidentifier():
            raise ConfigurationError(f"--df takes the name of a variable, not {options.df!r}")
        conversations = self._conversations.setdefault(self._chat(options.chat), {})
        key = options.chatbot, options.namespace
        if options.new or key not in conversations:
            conversations[key] = self._chat(options.chat).conversation(
                options.chatbot, options.namespace
            )
        turn = conversations[key].send(question)
        turn.display()
        if options.df is not None:
            self._shell.user_ns[options.df] = turn.result().table.to_pandas()

    def _chat(self, name: str) -> FluxbaseAIChat:
        namespace = self._shell.user_ns
        chat = namespace.get(name)
        if chat is None and name == _CHAT:
            chat = namespace[name] = FluxbaseAIChat.from_env()
        if not isinstance(chat, FluxbaseAIChat):
            kind = "not defined" if chat is None else f"a {type(chat).__name__}"
            raise ConfigurationError(f"%%ask: the variable {name} is {kind}, not a FluxbaseAIChat")
        return chat


def _parse(line: str) -> Any:
    import shlex  # noqa: PLC0415 - only a cell needs it

    from IPython.core.error import UsageError  # noqa: PLC0415 - it runs here
    from IPython.core.magic_arguments import MagicArgumentParser  # noqa: PLC0415

    parser = MagicArgumentParser("%%ask", add_help=False)
    parser.add_argument("chatbot")
    parser.add_argument("--df", metavar="NAME")
    parser.add_argument("--namespace", metavar="NAME")
    parser.add_argument("--chat", metavar="NAME", default=_CHAT)
    parser.add_argument("--new", action="store_true")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"%%ask: {error}") from None
    return parser.parse_args(words)


def _raise_in_one_line(error: FluxbaseChatError) -> NoReturn:
    """Raise what went wrong without the inside of the library, which is no help in a notebook."""
    # IPython asks an exception for its own rendering.
    error._render_traceback_ = lambda: [f"{type(error).__name__}: {error}"]  # type: ignore[attr-defined]
    raise error
