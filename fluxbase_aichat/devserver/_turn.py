"""One turn: the model's rounds become frames, tools run, the answer is stored. No socket here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ._chatbots import Chatbot
from ._conversations import Conversation, Message
from ._gojson import NotJSONError, Raw, dumps, quote
from ._runtime import Runtime
from ._script import Call, Cut, Fail, Pause, Step
from ._sql import QueryResult

__all__ = ["Turn"]

_ROUNDS: Final = 5
_FORBIDDEN: Final = (
    "Unable to process this request - the AI kept trying to use a tool that isn't allowed for "
    "this type of query. Please rephrase your question."
)


class _BrokenError(Exception):
    """The turn ends with this error frame in place of `done`."""

    def __init__(self, frame: dict[str, Any]) -> None:
        super().__init__()
        self.frame = frame


class Turn:
    """Answers one message."""

    def __init__(
        self,
        runtime: Runtime,
        chatbot: Chatbot,
        conversation: Conversation,
        *,
        send: Callable[[str], None],
        cut: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._chatbot = chatbot
        self._conversation = conversation
        self._send = send
        self._cut = cut
        self._head = f'"conversation_id":{quote(conversation.id)}'
        self._results: list[QueryResult] = []
        self._read = self._said = 0
        self._forbidden_before = False

    def run(self, content: str) -> None:
        """Answer `content`, to the end even if nobody listens any more."""
        limit = self._chatbot.turn_limit
        if limit is not None and self._conversation.turns >= limit:
            self._frame("error", error="Conversation turn limit reached", code="TURN_LIMIT")
            return
        self._progress("thinking", "Thinking...")
        conversations = self._runtime.conversations
        earlier = conversations.questions(self._conversation)
        self._read = 200 + sum(len(text) for text in earlier) // 4
        question = Message("user", content)
        conversations.add(self._conversation, question)
        try:
            text = self._rounds(content, earlier)
        except _BrokenError as broken:
            conversations.remove(self._conversation, question)
            self._send(dumps(broken.frame))
            return
        usage = self._usage()
        if text is None:  # all rounds were used up
            conversations.remove(self._conversation, question)
        else:
            results = [_stored(result) for result in self._results]
            conversations.add(
                self._conversation,
                Message("assistant", text),
                Raw(dumps(results)) if results else None,
                usage,
            )
        self._frame("done", usage=usage)

    def _rounds(self, content: str, earlier: list[str]) -> str | None:
        """Play the model's rounds; return the last one's prose, or `None` if they are too many."""
        model = self._runtime.world.answer(self._chatbot, content, earlier)
        steps = next(model)
        for _ in range(_ROUNDS):
            self._read += 100 + len(content) // 4
            self._progress("generating", "Generating response...")
            text, calls = self._stream(steps)
            if not calls:
                return text
            results = [result for call in calls if (result := self._call(call, content))]
            steps = model.send(results)
        return None

    def _stream(self, steps: list[Step]) -> tuple[str, list[Call]]:
        """Play one round's steps; the tools that it calls run when its prose is out."""
        said: list[str] = []
        calls: list[Call] = []
        for step in steps:
            match step:
                case Call():
                    calls.append(step)
                case Pause(seconds):
                    self._runtime.pause(seconds)
                case Fail(error, code):
                    frame = {"type": "error", "conversation_id": self._conversation.id}
                    given = {"error": error, "code": code}
                    raise _BrokenError(frame | {k: text for k, text in given.items() if text})
                case Cut():
                    self._cut()
                case _:
                    for delta in step.deltas:
                        # By hand: this line decides how fast a flood is.
                        self._send(f'{{"type":"content",{self._head},"delta":{quote(delta)}}}')
                        self._runtime.breathe()
                    said += step.deltas
        self._said += len(said)
        return "".join(said), calls

    def _call(self, call: Call, content: str) -> QueryResult | None:
        if self._is_forbidden(call.tool, content):
            return None
        if call.tool in self._chatbot.tools:
            return self._own_tool(call)
        if call.tool != "execute_sql":
            return None  # an unknown tool is told to the model only
        self._progress("querying", f"Executing: {call.arguments.get('description', '')}")
        result = self._query(call)
        sent = self._frame(
            "query_result",
            query=result.query,
            summary=result.summary,
            row_count=result.row_count,
            data=result.data,
        )
        if sent and result.status in ("ok", "empty"):
            self._results.append(result)
        return result

    def _is_forbidden(self, tool: str, content: str) -> bool:
        """Whether a rule forbids the tool; the model that tries it twice in a row is stopped."""
        if self._chatbot.forbids is None:
            return False
        word, forbidden = self._chatbot.forbids
        if tool != forbidden or word not in content.lower():
            self._forbidden_before = False
            return False
        if self._forbidden_before:
            raise _BrokenError({"type": "error", "error": _FORBIDDEN})
        self._forbidden_before = True
        return True

    def _query(self, call: Call) -> QueryResult:
        if call.result is not None:
            return call.result
        sql = str(call.arguments.get("sql", ""))
        return self._runtime.database.query(sql, self._chatbot.tables)

    def _own_tool(self, call: Call) -> QueryResult | None:
        """Run a tool of the chatbot's; one that fails gives no result at all (PROTOCOL 4.12)."""
        table = call.arguments.get("table")
        on = f" on {table}" if isinstance(table, str) and table else ""
        self._progress("executing", f"Executing {call.tool}{on}...")
        if call.tool == "think":  # fails on the recorded server
            return None
        if call.tool == "query_table":
            return self._query_table(str(table), call.arguments.get("limit", 100))
        result = self._query(call)
        if result.status not in ("ok", "empty"):
            return result
        summary = f"Returned {result.row_count} row(s) in 1ms"
        if self._frame(
            "tool_result",
            message=call.tool,
            query=result.query,
            summary=summary,
            row_count=result.row_count,
            data=result.data,
        ):
            self._results.append(result)
        return result

    def _query_table(self, table: str, limit: Any) -> QueryResult | None:
        if not table.isidentifier() or not isinstance(limit, int):
            return None
        sql = f"SELECT * FROM {table} LIMIT {limit}"  # noqa: S608 - an identifier and a number
        result = self._runtime.database.query(sql, self._chatbot.tables)
        if result.status not in ("ok", "empty"):
            return result
        text = dumps(list(result.data), indent="  ")
        self._frame(
            "tool_result", message="query_table", data=[{"result": text, "tool": "query_table"}]
        )
        self._results.append(
            QueryResult(
                f"MCP query_table on {table}",
                result.status,
                f"Query returned {result.row_count} row(s)",
                result.row_count,
                result.data,
            )
        )
        return result

    def _usage(self) -> Raw:
        """Tokens, by a rule of thumb for the prompt; an answer's deltas are its tokens."""
        return Raw(
            dumps(
                {
                    "prompt_tokens": self._read,
                    "completion_tokens": self._said,
                    "total_tokens": self._read + self._said,
                }
            )
        )

    def _progress(self, step: str, message: str) -> None:
        self._frame("progress", step=step, message=message)

    def _frame(self, kind: str, **fields: Any) -> bool:
        """Send a frame without its empty fields; `False` if Go could not have encoded it."""
        frame = {"type": kind, "conversation_id": self._conversation.id}
        frame |= {name: value for name, value in fields.items() if value}
        try:
            text = dumps(frame)
        except NotJSONError:
            return False
        self._send(text)
        return True


def _stored(result: QueryResult) -> dict[str, Any]:
    return {
        "query": result.query,
        "summary": result.summary,
        "row_count": result.row_count,
        "data": result.data,
    }
