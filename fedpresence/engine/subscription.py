"""PLACEHOLDER: rows; tables follow."""

from dataclasses import dataclass
from enum import Enum

from fedpresence.ids import UserID


class EduKind(Enum):
    """The EDUs that make, answer and end subscriptions."""

    INVITE = "m.presence_invite"
    ACCEPT = "m.presence_accept"
    DENY = "m.presence_deny"
    DROP = "org.fedpresence.presence_drop"


@dataclass(frozen=True, slots=True)
class OwedEdu:
    """A list EDU that a row owes the other server, until the 200 for this very generation (Z-17).

    `unpoll` asks for an unpoll of the observed user beside a drop (S:O-23); `final_push` for one last
    push that says offline before a deny (E:P-11), where no other right remains as it leaves.
    """

    kind: EduKind
    observer: UserID
    observed: UserID
    generation: int
    since_ms: int
    unpoll: bool = False
    final_push: bool = False


class ObserverStage(Enum):
    """The observer's half (S:2)."""

    NONE = "none"
    PENDING = "pending"
    ACCEPTED = "accepted"
    DENIED = "denied"


class ObservedStage(Enum):
    """The observed user's half (S:2)."""

    NONE = "none"
    REQUESTED = "requested"
    GRANTED = "granted"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class ObserverRow:
    """What the observer's server keeps of a pair. Moments are Unix ms; 0 means never.

    A row in NONE either still owes EDUs or is the note of a drop (S:5), kept for 30 days.
    """

    observer: UserID
    observed: UserID
    stage: ObserverStage
    created_ms: int  # last local invite: O-17 counts from here
    changed_ms: int  # last change of stage
    invite_ms: int = 0  # last invite given to the queue
    confirmed_ms: int = 0  # last accept
    check_ms: int = 0  # since when a check (O-25, O-26a) is unanswered
    generation: int = 0  # of the newest owed EDU
    owed: tuple[OwedEdu, ...] = ()


@dataclass(frozen=True, slots=True)
class ObservedRow:
    """What the observed user's server keeps of a pair."""

    observer: UserID
    observed: UserID
    stage: ObservedStage
    created_ms: int
    changed_ms: int
    muted: bool = False  # by an unpoll
    blocked: bool = False  # silent for good (T-32)
    by_room: bool = False  # granted by accept_shared_room: ends with the room (Z-10)
    denials: int = 0
    generation: int = 0
    owed: tuple[OwedEdu, ...] = ()
