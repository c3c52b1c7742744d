"""The conversations that a client has started, and whom it acts as. Needs the session's lock."""

from __future__ import annotations

from collections import OrderedDict

from ._answer import Answer
from ._entry import Entry, Record
from .errors import ConversationNotResumedError, IdentityConflictError

__all__ = ["Conversations"]

# Conversations whose last text is kept (promise 9); the conversations themselves stay known.
_MAX_TEXTS = 1000


class Conversations:
    """What must be known to go on over another connection."""

    def __init__(self, impersonate_user_id: str | None) -> None:
        self._by_id: dict[str, Record] = {}
        self._texts: OrderedDict[int, Record] = OrderedDict()
        self._default = impersonate_user_id
        # A tuple, because None stands for "nobody is impersonated", which is an identity too.
        self._identity: tuple[str | None] | None = None
        if impersonate_user_id is not None:
            self._identity = (impersonate_user_id,)

    def get(self, conversation_id: str) -> Record | None:
        """Return a conversation that was started."""
        return self._by_id.get(conversation_id)

    # -- whom the client acts as (promise 7) ------------------------------------------------

    @property
    def identity(self) -> str | None:
        """The user impersonated, fixed from now on."""
        if self._identity is None:
            self._identity = (self._default,)
        return self._identity[0]

    def claim(self, impersonate_user_id: str | None) -> None:
        """Fix the identity, or raise `IdentityConflictError` where it is another one already."""
        wanted = (impersonate_user_id or self._default,)
        if self._identity is None:
            self._identity = wanted
        if self._identity != wanted:
            raise IdentityConflictError(
                "impersonate_user_id: this client already acts as "
                f"{'another user' if self._identity[0] else 'its own user'}; "
                "make a client for each user"
            )

    def start_failed(self) -> bool:
        """Release the identity that a first start claimed; say whether that was somebody else's.

        Then a connection that has seen the start may act as that user (PROTOCOL 4.5).
        """
        if self._default is not None or self._by_id or self._identity is None:
            return False
        (user,), self._identity = self._identity, None
        return user is not None

    @property
    def acts_as_told(self) -> bool:
        """Whether the identity is the settings', and not one that a start has brought."""
        return self._identity in {None, (self._default,)}

    def forget(self) -> None:
        """Know no conversation any more; whom the client acts as stays."""
        self._by_id.clear()
        self._texts.clear()

    # -- what a start gave ------------------------------------------------------------------

    def started(self, entry: Entry, received: str) -> None:
        """Keep what the server has started for an entry.

        A resume that gave another conversation raises `ConversationNotResumedError`: the new one
        is usable under its own id, and the old one stays as it is (PROTOCOL 4.3).
        """
        record = entry.record
        requested = entry.resume if entry.outcome is not None else record.id
        if requested is not None and requested != received:
            if record.on_lost == "raise":
                self._by_id[received] = Record(
                    chatbot=record.chatbot, namespace=record.namespace, id=received, started=True
                )
                raise ConversationNotResumedError(
                    "the server has lost the conversation and opened another",
                    requested=requested,
                    received=received,
                    hint="the new one is usable under its own id",
                )
            self._by_id.pop(requested, None)
        known = self._by_id.get(received)
        if known is not None and entry.outcome is not None:
            # Started again, perhaps under another chatbot; its handles follow.
            known.chatbot, known.namespace = record.chatbot, record.namespace
        else:
            self._by_id[received] = record
        record.id = received
        record.started = True

    def written(self, record: Record, answer: Answer) -> None:
        """Keep the answer that a conversation gets now, whichever of its handles asked."""
        record.answer = answer
        record.started = True
        self._by_id[answer.conversation_id] = record

    def release(self, entry: Entry) -> None:
        """Keep the text of an entry that has ended, and not its answer."""
        record, answer = entry.record, entry.answer
        if answer is None or record.answer is not answer:
            return
        record.text = answer.current_text()
        record.answer = None
        self._texts[id(record)] = record
        self._texts.move_to_end(id(record))
        if len(self._texts) > _MAX_TEXTS:
            self._texts.popitem(last=False)[1].text = ""
