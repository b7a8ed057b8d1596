"""One observer's subscription to one observed user: its stages and moves, on both servers.

Always true:
- a pair that is not stored is NONE on both sides;
- only the observed user's own server can move a pair to ACCEPTED (S:O-9, O-10);
- a tombstone outlives a drop (Z-13): what was denied stays denied for its time;
- the list EDUs that a row owes the other server are part of the row, each until its 200 (decision 16).

The tables say what happens; `lists.py` does it. Each step has the name of its row in subscriptions.md.

Source: subscriptions.md; Matrix client-server API r0.4.0, presence lists; RFC 6121 where Matrix is silent.
"""

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

    __hash__ = object.__hash__  # members are single; Enum's own hash is slow, and this is everywhere

    NONE = "none"
    PENDING = "pending"
    ACCEPTED = "accepted"
    DENIED = "denied"


class ObservedStage(Enum):
    """The observed user's half (S:2)."""

    __hash__ = object.__hash__  # members are single; Enum's own hash is slow, and this is everywhere

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
    confirmed_ms: int = 0  # last invite of the observer: their server repeats it weekly (O-25)


# --- the observer's table (S:3) ---------------------------------------------------------------


class ObserverMove(Enum):
    """What can happen to an observer's half."""

    INVITE = "local invite"
    INVITE_EARLY = "local invite within an hour of a deny"
    DROP = "local drop"
    ACCEPT = "received accept"
    DENY = "received deny"
    RESEND = "the invite is due again"
    EXPIRE = "180 days without an answer"
    CHECK = "the accept was not confirmed for a week, or polls go unanswered"
    UNCONFIRMED = "a check brought no answer in a day"
    FORGET = "a tombstone or note has had its 30 days"


class ObserverAct(Enum):
    """What a step of the observer's table asks for beside the new stage."""

    OWE_INVITE = "send an invite"
    OWE_DROP = "send a drop, and an unpoll where nobody else here watches"
    REINVITE = "send an invite again if the last is old"
    CONFIRM = "remember when it was confirmed"
    START_CHECK = "remember since when the check waits"
    RESTART = "the life of the request begins anew"
    ANSWER_DROP = "tell that nobody here watches, where that is known of the pair (Z-14)"
    WELCOME = "show what came early, and poll if nothing comes"
    SHOW_OFFLINE = "show the observed user offline, where no room is shared"
    LET_GO = "forget the observed user's presence, where nobody else here may see it"
    TELL_ACCEPTED = "a notice: accepted"
    TELL_DECLINED = "a notice: declined"
    TELL_REVOKED = "a notice: revoked"
    TELL_EXPIRED = "a notice: expired"
    REFUSE_EARLY = "refuse for the rest of the hour"


@dataclass(frozen=True, slots=True)
class ObserverStep:
    """One row of the table: its name in subscriptions.md, the next stage, what else to do."""

    row: str
    stage: ObserverStage
    acts: tuple[ObserverAct, ...] = ()


_N, _P, _A, _D = ObserverStage.NONE, ObserverStage.PENDING, ObserverStage.ACCEPTED, ObserverStage.DENIED
_OA = ObserverAct

# A move not listed leaves the pair where it is and does nothing.
OBSERVER_TABLE: dict[tuple[ObserverStage, ObserverMove], ObserverStep] = {
    (_N, ObserverMove.INVITE): ObserverStep("O-1", _P, (_OA.RESTART, _OA.OWE_INVITE)),
    (_N, ObserverMove.DROP): ObserverStep("O-5", _N),
    (_N, ObserverMove.ACCEPT): ObserverStep("O-6", _N, (_OA.ANSWER_DROP,)),
    (_N, ObserverMove.DENY): ObserverStep("O-7", _N),
    (_N, ObserverMove.FORGET): ObserverStep("O-34", _N),
    (_P, ObserverMove.ACCEPT): ObserverStep("O-9", _A, (_OA.CONFIRM, _OA.TELL_ACCEPTED, _OA.WELCOME)),
    (_P, ObserverMove.DENY): ObserverStep("O-11", _D, (_OA.TELL_DECLINED, _OA.LET_GO)),
    (_P, ObserverMove.INVITE): ObserverStep("O-12", _P, (_OA.REINVITE,)),
    (_P, ObserverMove.DROP): ObserverStep("O-13", _N, (_OA.OWE_DROP, _OA.LET_GO)),
    (_P, ObserverMove.RESEND): ObserverStep("O-15", _P, (_OA.OWE_INVITE,)),
    (_P, ObserverMove.EXPIRE): ObserverStep("O-17", _N, (_OA.OWE_DROP, _OA.TELL_EXPIRED, _OA.LET_GO)),
    (_A, ObserverMove.ACCEPT): ObserverStep("O-21", _A, (_OA.CONFIRM,)),
    (_A, ObserverMove.DENY): ObserverStep("O-22", _D, (_OA.TELL_REVOKED, _OA.SHOW_OFFLINE, _OA.LET_GO)),
    (_A, ObserverMove.DROP): ObserverStep("O-23", _N, (_OA.OWE_DROP, _OA.LET_GO)),
    (_A, ObserverMove.INVITE): ObserverStep("O-24", _A),
    (_A, ObserverMove.CHECK): ObserverStep("O-25", _A, (_OA.START_CHECK, _OA.OWE_INVITE)),
    (_A, ObserverMove.UNCONFIRMED): ObserverStep("O-25a", _P, (_OA.RESTART, _OA.SHOW_OFFLINE, _OA.LET_GO)),
    (_D, ObserverMove.INVITE): ObserverStep("O-29", _P, (_OA.RESTART, _OA.OWE_INVITE)),
    (_D, ObserverMove.INVITE_EARLY): ObserverStep("O-30", _D, (_OA.REFUSE_EARLY,)),
    (_D, ObserverMove.ACCEPT): ObserverStep("O-31", _D, (_OA.ANSWER_DROP,)),
    (_D, ObserverMove.DENY): ObserverStep("O-32", _D),
    (_D, ObserverMove.DROP): ObserverStep("O-33", _D),
    (_D, ObserverMove.FORGET): ObserverStep("O-34", _N),
}


# --- the observed user's table (S:4) ----------------------------------------------------------


class ObservedMove(Enum):
    """What can happen to an observed user's half."""

    INVITE = "received invite"
    INVITE_BY_POLICY = "received invite, granted by policy"
    INVITE_SILENT = "received invite, policy deny"
    INVITE_EARLY = "received invite within a day of a deny"
    INVITE_BLOCKED = "received invite of somebody blocked"
    ACCEPT = "local accept"
    DENY = "local deny"
    REVOKE = "local revoke"
    DROP = "received drop"
    POLL = "received poll"
    UNPOLL = "received unpoll"
    EXPIRE = "180 days without an answer"
    DEACTIVATE = "the observed user is deactivated"
    CONDITION_ENDED = "the condition of a grant by policy ended (Z-10)"
    FORGET = "a tombstone has had its 30 days"


class ObservedAct(Enum):
    """What a step of the observed user's table asks for beside the new stage."""

    ASK = "a request notice"
    OWE_ACCEPT = "send an accept, and the state behind it"
    OWE_DENY = "send a deny"
    OWE_DENY_AGAIN = "send a deny, at most one an hour"
    OWE_LAST_DENY = "send a deny behind one last push that says offline (E:P-11)"
    COUNT_DENIAL = "the second denial blocks (Z-13)"
    BLOCK = "silent for good"
    UNBLOCK = "forgive"
    MUTE = "no pushes on this ground"
    UNMUTE = "pushes again"
    PUSH = "send the state"
    TELL_DROPPED = "a notice: withdrawn"


@dataclass(frozen=True, slots=True)
class ObservedStep:
    """One row of the table: its name in subscriptions.md, the next stage, what else to do."""

    row: str
    stage: ObservedStage
    acts: tuple[ObservedAct, ...] = ()


_n, _r, _g, _d = (
    ObservedStage.NONE,
    ObservedStage.REQUESTED,
    ObservedStage.GRANTED,
    ObservedStage.DENIED,
)
_TA = ObservedAct

# A move not listed leaves the pair where it is and does nothing.
OBSERVED_TABLE: dict[tuple[ObservedStage, ObservedMove], ObservedStep] = {
    (_n, ObservedMove.INVITE): ObservedStep("T-1", _r, (_TA.ASK,)),
    (_n, ObservedMove.INVITE_BY_POLICY): ObservedStep("T-2", _g, (_TA.OWE_ACCEPT,)),
    (_n, ObservedMove.INVITE_SILENT): ObservedStep("T-3", _n),
    (_n, ObservedMove.DENY): ObservedStep("T-7a", _d, (_TA.BLOCK,)),
    (_n, ObservedMove.DROP): ObservedStep("T-8", _n),
    (_n, ObservedMove.POLL): ObservedStep("T-8a", _n),
    (_n, ObservedMove.UNPOLL): ObservedStep("T-8b", _n),
    (_n, ObservedMove.REVOKE): ObservedStep("T-8c", _n),
    (_n, ObservedMove.FORGET): ObservedStep("T-37", _n),
    (_r, ObservedMove.ACCEPT): ObservedStep("T-10", _g, (_TA.OWE_ACCEPT,)),
    (_r, ObservedMove.DENY): ObservedStep("T-11", _d, (_TA.COUNT_DENIAL, _TA.OWE_DENY)),
    (_r, ObservedMove.INVITE): ObservedStep("T-13", _r),
    (_r, ObservedMove.INVITE_BY_POLICY): ObservedStep("T-13", _r),
    (_r, ObservedMove.DROP): ObservedStep("T-14", _n, (_TA.TELL_DROPPED,)),
    (_r, ObservedMove.POLL): ObservedStep("T-15", _r),
    (_r, ObservedMove.UNPOLL): ObservedStep("T-16", _r),
    (_r, ObservedMove.REVOKE): ObservedStep("T-8c", _r),
    (_r, ObservedMove.EXPIRE): ObservedStep("T-18", _n),
    (_r, ObservedMove.DEACTIVATE): ObservedStep("T-19", _n),
    (_g, ObservedMove.INVITE): ObservedStep("T-9", _g, (_TA.UNMUTE, _TA.OWE_ACCEPT)),
    (_g, ObservedMove.INVITE_BY_POLICY): ObservedStep("T-9", _g, (_TA.UNMUTE, _TA.OWE_ACCEPT)),
    (_g, ObservedMove.INVITE_SILENT): ObservedStep("T-9", _g, (_TA.UNMUTE, _TA.OWE_ACCEPT)),
    (_g, ObservedMove.DENY): ObservedStep("T-7", _d, (_TA.OWE_LAST_DENY,)),
    (_g, ObservedMove.REVOKE): ObservedStep("T-7", _d, (_TA.OWE_LAST_DENY,)),
    (_g, ObservedMove.ACCEPT): ObservedStep("T-22", _g),
    (_g, ObservedMove.DROP): ObservedStep("T-12", _n, (_TA.TELL_DROPPED,)),
    (_g, ObservedMove.POLL): ObservedStep("T-23", _g, (_TA.UNMUTE, _TA.PUSH)),
    (_g, ObservedMove.UNPOLL): ObservedStep("T-24", _g, (_TA.MUTE,)),
    (_g, ObservedMove.DEACTIVATE): ObservedStep("T-27", _n, (_TA.OWE_LAST_DENY,)),
    (_g, ObservedMove.CONDITION_ENDED): ObservedStep("T-27a", _n, (_TA.OWE_LAST_DENY,)),
    (_d, ObservedMove.INVITE): ObservedStep("T-30", _r, (_TA.ASK,)),
    (_d, ObservedMove.INVITE_BY_POLICY): ObservedStep("T-30", _r, (_TA.ASK,)),
    (_d, ObservedMove.INVITE_SILENT): ObservedStep("T-30", _d),
    (_d, ObservedMove.INVITE_EARLY): ObservedStep("T-31", _d, (_TA.OWE_DENY_AGAIN,)),
    (_d, ObservedMove.INVITE_BLOCKED): ObservedStep("T-32", _d),
    (_d, ObservedMove.ACCEPT): ObservedStep("T-33", _g, (_TA.UNBLOCK, _TA.OWE_ACCEPT)),
    (_d, ObservedMove.DENY): ObservedStep("T-34", _d, (_TA.BLOCK,)),
    (_d, ObservedMove.REVOKE): ObservedStep("T-8c", _d),
    (_d, ObservedMove.DROP): ObservedStep("T-35", _d),
    (_d, ObservedMove.POLL): ObservedStep("T-36", _d),
    (_d, ObservedMove.UNPOLL): ObservedStep("T-36", _d),
    (_d, ObservedMove.FORGET): ObservedStep("T-37", _n),
    (_d, ObservedMove.DEACTIVATE): ObservedStep("T-38", _n),
}
