"""The conversations that a client has started, and whom it acts as. Needs the session's lock."""

from __future__ import annotations

from collections import OrderedDict

import attrs

from ._answer import Answer
from ._entry import Entry, Place, Record
from .errors import ConversationNotResumedError, IdentityConflictError

__all__ = ["Conversations"]

# Conversations whose last text is kept (promise 9); the conversations themselves stay known.
_MAX_TEXTS = 1000
# Times of the server are compared to a second or two; what was sent longer before is no doubt.
_RECENT_SECONDS = 5.0


@attrs.define(eq=False)
class _Count:
    """The messages of one conversation."""

    new: bool = False
    sent: int = 0
    kept: int = 0
    recent: dict[int, float] = attrs.field(factory=dict)
    """When which text was sent, by its hash, for some seconds."""


class Conversations:
    """What must be known to go on over another connection."""

    def __init__(self, impersonate_user_id: str | None) -> None:
        self._by_id: dict[str, Record] = {}
        self._texts: OrderedDict[int, Record] = OrderedDict()
        self._counts: dict[str, _Count] = {}
        self._default = impersonate_user_id
        # A tuple, because None stands for "nobody is impersonated", which is an identity too.
        self._identity: tuple[str | None] | None = None
        if impersonate_user_id is not None:
            self._identity = (impersonate_user_id,)

    def get(self, conversation_id: str) -> Record | None:
        """Return a conversation that was started."""
        known = isinstance(conversation_id, str)  # what cannot be hashed is no id either
        return self._by_id.get(conversation_id) if known else None

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
        self._counts.clear()

    # -- what a start gave ------------------------------------------------------------------

    def started(self, entry: Entry, received: str) -> None:
        """Keep what the server has started for an entry.

        A resume that gave another conversation raises `ConversationNotResumedError`: the new one
        is usable under its own id, and the old one stays as it is (PROTOCOL 4.3).
        """
        record = entry.record
        requested = entry.resume if entry.outcome is not None else record.id
        if requested != received:
            self._counts.setdefault(received, _Count(new=True))
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

    # -- what was sent in them (see _recover) -----------------------------------------------

    def wrote(self, entry: Entry) -> None:
        """Note that an entry's message is on the wire, and what can stand before it."""
        assert entry.record.id is not None  # noqa: S101 - it was started
        assert entry.answer is not None  # noqa: S101 - a message has one
        count = self._counts.setdefault(entry.record.id, _Count())
        now, text = entry.answer.sent_at or 0.0, hash(entry.content)
        recent = {key: at for key, at in count.recent.items() if now - at <= _RECENT_SECONDS}
        entry.place = Place(
            new=count.new, sent=count.sent, kept=count.kept, previous_at=recent.get(text)
        )
        count.sent += 1
        count.recent = {**recent, text: now}

    def unwrote(self, entry: Entry) -> None:
        """Note that an entry's message was not written after all."""
        place = entry.place
        if place is None or entry.answer is None:
            return
        count, text = self._counts[entry.answer.conversation_id], hash(entry.content)
        count.sent -= 1
        count.recent.pop(text, None)
        if place.previous_at is not None:
            count.recent[text] = place.previous_at
        entry.place = None

    def answered(self, entry: Entry) -> None:
        """Note that an entry's answer is whole. Without prose at its end it is not kept."""
        assert entry.answer is not None  # noqa: S101 - a message has one
        if entry.answer.text.ends_in_prose:
            self._counts[entry.answer.conversation_id].kept += 1

    def is_latest(self, entry: Entry) -> bool:
        """Whether this client has sent nothing in the conversation behind an entry's message."""
        assert entry.answer is not None  # noqa: S101 - a message has one
        place, count = entry.place, self._counts.get(entry.answer.conversation_id)
        return place is None or count is None or count.sent == place.sent + 1

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
