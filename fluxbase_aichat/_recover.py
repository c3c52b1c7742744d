"""Answers that outlived their connection, found again in the stored conversation (PROTOCOL 4.9).

`find` judges what the server has stored and does no I/O; `recover` asks until there is a verdict.

    the conversation            404                                                  "not kept"
    the question                is not there, but was, or its turn went beyond
                                  thinking: what ends in an error is taken out       "failed"
                                is not there for another reason                      ask again
                                is there, and another one stands behind it           "superseded"
                                may be an older one of the same text                 "ambiguous"
    the answer                  is not there                                         ask again
                                may be the answer to an older question               "ambiguous"
                                is there                                             it is it

The question is stored before the server tells of `generating`, so a message that was read late and
one that was never read look the same until then.
"""

from __future__ import annotations

import random
from typing import Final, Literal

import attrs

from ._api import Said, perform, read_conversation
from ._deadline import Deadline
from ._entry import Entry
from ._lifetime import calling
from ._net import Waker, pause
from ._session import Session
from ._value import Value
from .errors import (
    AuthenticationError,
    ChatTimeoutError,
    ConnectionLostError,
    FluxbaseChatError,
    NotFoundError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
    RecoveryError,
    ServerError,
)
from .results import Reply
from .stored import StoredConversation, StoredMessage

__all__ = ["Question", "asked", "find", "recover"]

# The first look comes at once. An answer takes seconds, so more would only cost the server.
_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 3.0
# One look; a server that does not answer it may answer the next.
_LOOK_SECONDS: Final = 10.0
# So many looks in a row must miss a question that was stored.
_MISSES: Final = 2
# What a stored time may be off by: the clock of a database may not be the web server's.
_SLACK: Final = 1.0
# A message sent so long before cannot be taken for this one: the second that `Date` leaves open,
# and the slack on both sides.
_APART: Final = 3.0
# The steps that come behind the storing of the question.
_STORED: Final = frozenset({"generating", "querying", "executing"})
# What the server says itself: nothing is stored of a turn that ends so (PROTOCOL 4.9).
_TOLD: Final = (
    AuthenticationError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
    ServerError,
)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Question(Value):
    """What is known of the message whose answer is wanted."""

    content: str | None
    """`None`: whatever was asked last."""
    sent_at: float | None = None
    """When it was written, by our clock; `None`: by another process, and there is no proof."""
    previous_at: float | None = None
    """When this client last wrote the same text in the same conversation before."""
    least: int | None = None
    most: int | None = None
    """How many user messages stand before it; `None` where others may have written some."""
    stored: bool = False
    """Whether the server has surely stored it."""


def find(question: Question, said: Said[StoredConversation]) -> StoredMessage | bool:
    """Return the answer; or whether at least the question is there.

    Raises `RecoveryError` when no later look can give it.
    """
    messages = [m for m in said.value.messages if m.role in {"user", "assistant"}]
    places = [place for place, message in enumerate(messages) if message.role == "user"]
    verdicts = [
        _is_it(question, messages[place], number, said)
        for number, place in enumerate(places, start=1)
    ]
    *older, last = verdicts or ["no"]
    # Without a time each of that text may be it, and the last one is meant.
    if "yes" in older and (last != "yes" or question.sent_at is not None):
        raise RecoveryError("another message was sent behind the question", reason="superseded")
    if last == "no":
        return False
    if last == "perhaps":
        raise RecoveryError(
            "the stored question may be an older one of the same text", reason="ambiguous"
        )
    unanswered = 0
    for message in messages[: places[-1]]:
        unanswered = unanswered + 1 if message.role == "user" else max(0, unanswered - 1)
    answers = messages[places[-1] + 1 :]
    if unanswered or len(answers) > 1:
        raise RecoveryError(
            "a question before it has no answer: which is whose cannot be told",
            reason="ambiguous",
        )
    return answers[0] if answers else True


def _is_it(
    question: Question, message: StoredMessage, number: int, said: Said[StoredConversation]
) -> Literal["yes", "no", "perhaps"]:
    """Judge whether a user message, the how-manieth it is, is the question."""
    if question.content is not None and message.content != question.content:
        return "no"
    if question.sent_at is None:
        return "yes"
    if question.most is not None and number > question.most:
        return "yes"
    if message.timestamp is not None and said.date is not None:
        # The server's clock stood between `date` and a second more, somewhere between the asking
        # and the answering; so long before, the question was sent.
        stored_at = message.timestamp.timestamp()
        if stored_at >= said.date + 1.0 - (said.asked_at - question.sent_at):
            return "yes"
        if stored_at < said.date - (said.answered_at - question.sent_at) - _SLACK:
            return "no"
        if question.previous_at is None or question.sent_at - question.previous_at > _APART:
            return "yes"  # there is no other of that time
    return "no" if question.least is not None and number <= question.least else "perhaps"


def asked(session: Session, entry: Entry) -> Question:
    """Return what is known of the message of a turn that has failed.

    Raises `RecoveryError` where its answer cannot be found again.
    """
    answer, place = entry.answer, entry.place
    if answer is None or place is None or entry.sent is False:
        raise RecoveryError("the message was never sent", reason="failed", hint="send it again")
    if isinstance(answer.error, _TOLD):
        raise RecoveryError("the server ended the turn with an error", reason="failed")
    if not session.is_latest(entry):
        raise RecoveryError("another message was sent behind it", reason="superseded")
    return Question(
        content=entry.content,
        sent_at=answer.sent_at,
        previous_at=place.previous_at,
        least=place.kept if place.new else None,
        most=place.sent if place.new else None,
        stored=answer.step in _STORED or bool(answer.size and answer.current_text()),
    )


def recover(
    session: Session, conversation_id: str, question: Question, deadline: Deadline
) -> Reply:
    """Ask the REST side until the answer is stored, and return it; `disconnect` ends that.

    Raises `RecoveryError`, `NotConnectedError`, and what keeps the server from being asked, unless
    it may pass.
    """
    with calling(session) as waker:
        return _poll(session, conversation_id, question, deadline, waker)


def _poll(
    session: Session, conversation_id: str, question: Question, deadline: Deadline, waker: Waker
) -> Reply:
    settings, clock = session.settings, session.clock
    delay = _FIRST_DELAY
    stored, misses = question.stored, 0
    state, failure = "the server could not be asked", None
    while True:
        wait = delay * (0.5 + 0.5 * random.random())  # noqa: S311 - not for secrets
        try:
            look = deadline.sooner(_LOOK_SECONDS)
            said = perform(settings, read_conversation(conversation_id), look, waker, clock)
        except NotFoundError as error:
            raise RecoveryError(
                "the server does not keep this conversation",
                reason="not kept",
                hint="does its chatbot persist conversations, and is it this user's?",
            ) from error
        except FluxbaseChatError as error:
            if not (error.retryable or isinstance(error, (ChatTimeoutError, ConnectionLostError))):
                raise
            failure = error
            wait = max(wait, error.retry_after or 0.0)
        else:
            failure = None
            answer = find(question, said)
            if isinstance(answer, StoredMessage):
                return _reply(conversation_id, said.value, answer)
            stored = stored or answer
            misses = 0 if answer else misses + 1
            if stored and misses >= _MISSES:
                raise RecoveryError("the turn has failed: nothing of it is kept", reason="failed")
            state = (
                "the answer is not there yet"
                if answer
                else "the question is not there: the server may never have read it"
            )
        left = deadline.remaining()
        if left is not None and left <= wait:
            raise RecoveryError(f"{state}, and the time is up", reason="timeout") from failure
        pause(wait, clock, waker)
        delay = min(_LONGEST_DELAY, delay * 1.5)


def _reply(conversation_id: str, stored: StoredConversation, answer: StoredMessage) -> Reply:
    return Reply(
        text=answer.content,
        segments=(answer.content,) if answer.content else (),
        usage=answer.usage,
        query_results=answer.query_results,
        conversation_id=conversation_id,
        chatbot=stored.chatbot,
    )
