"""What leaves for another server, as values: made when its bytes are made, never before.

`Wanted` is what a queue asks for; `Composed` is what may really go, by the rights of this moment.
"""

from dataclasses import dataclass
from typing import NamedTuple

from fedpresence.engine.presence import PresenceState, Published
from fedpresence.engine.subscription import EduKind, OwedEdu
from fedpresence.ids import UserID


@dataclass(frozen=True, slots=True)
class Push:
    """One push item: `last_active_ago` in ms, always there and never negative (E:P-3)."""

    user_id: UserID
    state: PresenceState
    last_active_ago: int
    status_msg: str | None = None
    currently_active: bool = False


@dataclass(frozen=True, slots=True)
class PresenceEdu:
    """`m.presence`."""

    push: tuple[Push, ...] = ()
    poll: tuple[UserID, ...] = ()
    unpoll: tuple[UserID, ...] = ()


@dataclass(frozen=True, slots=True)
class ListEdu:
    """`m.presence_invite`, `_accept`, `_deny` or `org.fedpresence.presence_drop`."""

    kind: EduKind
    observer: UserID
    observed: UserID


Edu = PresenceEdu | ListEdu


class Wanted(NamedTuple):
    """What a destination's queue would send now, in order. A tuple, for one is made for each transaction."""

    users: tuple[UserID, ...] = ()
    owed: tuple[OwedEdu, ...] = ()
    drops: tuple[ListEdu, ...] = ()  # tried once
    polls: tuple[UserID, ...] = ()
    unpolls: tuple[UserID, ...] = ()


class Composed(NamedTuple):
    """What may go now: a tuple like `Wanted`.

    `before` are final pushes and list EDUs in their order; `pushes` follow them, to be packed into
    `m.presence` EDUs by size; `published` is what each push says, for the queue to remember. Users of
    the `Wanted` that are not in `published` have no right any more and leave the queue. `stale_owed`
    are EDUs of the `Wanted` that their row does not owe any more. `rights` is the destination's rights
    counter: bytes made under another value are never sent again.
    """

    before: tuple[Edu, ...]
    pushes: tuple[Push, ...]
    published: dict[UserID, Published]
    polls: tuple[UserID, ...]
    unpolls: tuple[UserID, ...]
    owed: tuple[OwedEdu, ...]
    stale_owed: tuple[OwedEdu, ...]
    rights: int
