"""Who asks a question: exactly one, whatever Redis delivers twice.

A worker that dies in the moment in which it takes a task off the queue, or that is suspended for
an hour, leaves the task to be delivered again. A claim is a key in Redis that only the first can
set. A Redis that loses its data loses the claims too: keep it on a disk (`appendonly yes`) where
an answer that is paid for twice is worth that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .app import KEPT, app

__all__ = ["Claim", "find_claim", "give_back", "take"]

# Longer than a question can wait: a second delivery still finds it.
_SECONDS: Final = 2 * KEPT


@dataclass(frozen=True)
class Claim:
    """A question that somebody has begun with."""

    holder: str
    seconds: int
    """For how long already, by the clock of Redis."""


def take(task_id: str, holder: str) -> bool:
    """Claim a task; say whether nobody had."""
    return bool(app.backend.client.set(_key(task_id), holder, nx=True, ex=_SECONDS))


def give_back(task_id: str) -> None:
    """Let somebody else begin it; only for what was not sent."""
    app.backend.client.delete(_key(task_id))


def find_claim(task_id: str) -> Claim | None:
    """Return the claim of a task, `None` if nobody has begun it."""
    with app.backend.client.pipeline() as both:
        holder, left = both.get(_key(task_id)).ttl(_key(task_id)).execute()
    return None if holder is None else Claim(holder.decode(), _SECONDS - left)


def _key(task_id: str) -> str:
    return f"celery_batch-claim-{task_id}"
