"""What a dev server is about: its chatbots, what they answer, and whom it lets in. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from ._chatbots import CHATBOTS, Chatbot
from ._model import answer
from ._script import Model

__all__ = ["World"]


class World:
    """The shop of the recordings, and its chatbots. With `trusting`, any token is `ann`'s."""

    def __init__(self, *, trusting: bool = False) -> None:
        self.trusting = trusting

    @property
    def chatbots(self) -> Sequence[Chatbot]:
        """All chatbots, in the order of a listing."""
        return tuple(CHATBOTS.values())

    def chatbot(self, namespace: str, name: str) -> Chatbot | None:
        """Return a chatbot, or `None` where there is no such one."""
        return CHATBOTS.get((namespace, name))

    def answer(self, chatbot: Chatbot, content: str, earlier: Sequence[str]) -> Model:  # noqa: ARG002 - for other worlds
        """Return a chatbot's answer to a message that came after the `earlier` ones."""
        return answer(content, earlier)
