"""Hypothesis strategies for what an engine is told: events of one server, and stories of two.

Always true: an event is one that the shells could tell, so its EDUs are within their origin's rights.

Source: engine/events.py; edus.md 8; F:R-1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from fedpresence.engine.events import (
    Activity,
    DestinationAlive,
    DeviceRemoved,
    Event,
    InboxDue,
    ListChanged,
    ListEduReceived,
    PollReceived,
    PresenceSet,
    PushesReceived,
    PushReceived,
    ReceivedEdu,
    RoomJoinRuleChanged,
    RoomMemberChanged,
    RoomMembersSet,
    StatusWanted,
    StreamClosed,
    StreamOpened,
    TimePassed,
    TransactionReceived,
    UnpollReceived,
    UserAdded,
)
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS
from fedpresence.engine.subscription import EduKind
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID, server_of
from fedpresence.testing.builders import ALICE, BOB, CAROL, DAVE, LAPTOP, NOW_MS, PHONE
from fedpresence.testing.strategies.wire import MAX_AGO_MS, status_messages

_BY_OBSERVER, _BY_OBSERVED = (EduKind.INVITE, EduKind.DROP), (EduKind.ACCEPT, EduKind.DENY)


@dataclass(frozen=True, slots=True)
class Happening:
    """At `server_name`, `after_ms` after the happening before it, `event` happens."""

    server_name: ServerName
    after_ms: int
    event: Event


DEVICES: tuple[DeviceID | None, ...] = (None, PHONE, LAPTOP)


def local_events(users: Sequence[UserID], others: Sequence[UserID]) -> st.SearchStrategy[Event]:
    """What the engine of `users`' server can be told about them; `others` are other servers' users.

    ListChanged may be refused (BadRequest); how sending went is not among these, for an engine must have
    asked for it first.

    >>> from fedpresence.testing.strategies import check
    >>> def names_somebody(event):
    ...     return getattr(event, "user_id", ALICE) in (ALICE, BOB)
    >>> check(local_events([ALICE], [BOB]), names_somebody)
    """
    ours, all_users = st.sampled_from(list(users)), [*users, *others]
    anybody = st.sampled_from(all_users)
    states = st.sampled_from(PresenceState)
    devices = st.sampled_from(DEVICES)
    statuses = st.none() | st.just("") | st.sampled_from(("Fika", "☕"))
    kinds = st.sampled_from(("invite", "accept", "deny", "revoke", "drop"))
    rooms = st.sampled_from((RoomID("!one:here.test"), RoomID("!two:there.test")))
    shown = st.none() | st.sampled_from((PresenceState.ONLINE, PresenceState.UNAVAILABLE))
    made: list[st.SearchStrategy[Event]] = [
        st.builds(PresenceSet, ours, devices, states, statuses),
        st.builds(StreamOpened, ours, devices, shown),
        st.builds(StreamClosed, ours, devices),
        st.builds(Activity, ours, devices, st.none() | st.integers(NOW_MS - HOUR_MS, NOW_MS)),
        st.builds(lambda user, kind, other: ListChanged(user, **{kind: (other,)}), ours, kinds, anybody),
        st.builds(StatusWanted, ours, anybody),
        st.builds(RoomMembersSet, rooms, st.frozensets(anybody)),
        st.builds(RoomMemberChanged, rooms, anybody, st.booleans()),
        st.builds(RoomJoinRuleChanged, rooms, st.none() | st.sampled_from(("invite", "public"))),
        st.builds(DeviceRemoved, ours, devices),
        st.builds(UserAdded, ours),
        st.just(TimePassed()),
        st.just(InboxDue()),
    ]
    if others:
        servers = st.sampled_from(sorted({server_of(user_id) for user_id in others}))
        made.append(st.builds(DestinationAlive, servers))
    return st.one_of(made)


def received_edus(
    origin: ServerName, theirs: Sequence[UserID], ours: Sequence[UserID]
) -> st.SearchStrategy[ReceivedEdu]:
    """What `origin` may say about its users and to ours: decoded, and within its rights (E:8).

    >>> from fedpresence.testing.builders import THERE
    >>> from fedpresence.testing.strategies import check
    >>> check(received_edus(THERE, [BOB], [ALICE]), lambda edu: edu.origin == THERE)
    """
    from_there, from_here = st.sampled_from(list(theirs)), st.sampled_from(list(ours))
    asked = st.lists(from_here, min_size=1, max_size=3, unique=True).map(tuple)
    states = st.sampled_from(PresenceState)
    ago = st.none() | st.integers(0, MAX_AGO_MS)
    push = st.builds(PushReceived, from_there, states, ago, st.none() | status_messages(), st.booleans())
    pushes = st.lists(push, min_size=1, max_size=3, unique_by=lambda each: each.user_id).map(tuple)
    return st.one_of(
        st.builds(PushesReceived, st.just(origin), pushes),
        st.builds(PollReceived, st.just(origin), asked),
        st.builds(UnpollReceived, st.just(origin), asked),
        _list_edus_received(origin, _BY_OBSERVER, from_there, from_here),
        _list_edus_received(origin, _BY_OBSERVED, from_here, from_there),
    )


def happenings(
    users: Sequence[UserID] = (ALICE, CAROL, BOB, DAVE), *, max_size: int = 20
) -> st.SearchStrategy[list[Happening]]:
    """Lists of events for the engines of two servers, those of `users`, which are users of both.

    Each server is told what its own users do, and what the other one sent: the latter is within its
    rights, but need not fit to what the other server was told, as if transactions had been lost, repeated
    or made by an older state. Time mostly passes in seconds, at times in days.

    >>> from fedpresence.testing.strategies import check
    >>> check(happenings(), lambda story: all(happening.after_ms >= 0 for happening in story))
    """
    names = sorted({server_of(user_id) for user_id in users})
    if len(names) != 2:
        raise ValueError(f"the users must be of two servers, not of {len(names)}")
    waits = st.one_of(
        st.just(0),
        st.integers(1, MINUTE_MS),
        st.sampled_from((5 * MINUTE_MS + 1, 25 * MINUTE_MS, 30 * MINUTE_MS + 1, HOUR_MS)),
        st.sampled_from((DAY_MS, 8 * DAY_MS)),
    )
    made: list[st.SearchStrategy[Happening]] = []
    for name, other in (names, reversed(names)):
        ours = [user_id for user_id in users if server_of(user_id) == name]
        theirs = [user_id for user_id in users if server_of(user_id) == other]
        told = local_events(ours, theirs) | _transactions_received(other, theirs, ours)
        made.append(st.builds(Happening, st.just(name), waits, told))
    return st.lists(st.one_of(made), max_size=max_size)


def _list_edus_received(
    origin: ServerName,
    kinds: tuple[EduKind, ...],
    observers: st.SearchStrategy[UserID],
    observed: st.SearchStrategy[UserID],
) -> st.SearchStrategy[ListEduReceived]:
    return st.builds(ListEduReceived, st.sampled_from(kinds), st.just(origin), observers, observed)


def _transactions_received(
    origin: ServerName, theirs: Sequence[UserID], ours: Sequence[UserID]
) -> st.SearchStrategy[TransactionReceived]:
    """Few transaction IDs, so that some come again: the engine must not do them twice (F:R-1)."""
    return st.builds(
        TransactionReceived,
        st.just(origin),
        st.integers(0, 50).map(lambda number: f"t{number}"),
        st.just(NOW_MS) | st.integers(NOW_MS - 2 * DAY_MS, NOW_MS + 2 * DAY_MS),
        st.lists(received_edus(origin, theirs, ours), max_size=4).map(tuple),
    )
