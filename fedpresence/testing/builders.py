"""Engines and events for tests, in one line each.

`@alice:here.test` is ours, `@bob:there.test` is not; the world begins at `NOW_MS`. Nothing here needs a
test runner, so whoever tests against this package may use it too.

Always true: what a builder leaves out is the most ordinary thing it could be.
"""

import itertools
from collections.abc import Iterable
from typing import Any

from fedpresence.engine.effects import Effect, SendEdu
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import (
    Activity,
    EdusDelivered,
    InboxDue,
    ListChanged,
    ListEduReceived,
    PollReceived,
    PresenceSet,
    PushesReceived,
    PushReceived,
    ReceivedEdu,
    Started,
    StreamClosed,
    StreamOpened,
    TimePassed,
    TransactionReceived,
    UnpollReceived,
    UserAdded,
)
from fedpresence.engine.outgoing import Wanted
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import EngineSettings
from fedpresence.engine.subscription import EduKind
from fedpresence.ids import DeviceID, ServerName, UserID, server_of
from fedpresence.storage.store import Stored

HERE = ServerName("here.test")
THERE = ServerName("there.test")
ALICE = UserID("@alice:here.test")
CAROL = UserID("@carol:here.test")
BOB = UserID("@bob:there.test")
DAVE = UserID("@dave:there.test")
PHONE = DeviceID("PHONE")
LAPTOP = DeviceID("LAPTOP")
NOW_MS = 1_700_000_000_000

_txn_ids = itertools.count()


# --- engines ---------------------------------------------------------------------------------


def settings_of(server_name: ServerName = HERE, **settings: Any) -> EngineSettings:
    """Settings with their defaults, but for those given by name."""
    return EngineSettings(server_name, **settings)


def an_engine(
    server_name: ServerName = HERE,
    users: Iterable[UserID] = (ALICE,),
    *,
    now_ms: int = NOW_MS,
    **settings: Any,
) -> Engine:
    """An engine that has started, with these local users; `settings` are those of `EngineSettings`."""
    engine = Engine(settings_of(server_name, **settings), now_ms)
    engine.receive(Started(), now_ms)
    for user_id in users:
        engine.receive(UserAdded(user_id), now_ms)
    return engine


def restarted(
    stored: Stored, now_ms: int = NOW_MS, server_name: ServerName = HERE, **settings: Any
) -> Engine:
    """An engine that begins with what was stored, and has started."""
    engine = Engine(settings_of(server_name, **settings), now_ms)
    engine.load(stored, now_ms)
    engine.receive(Started(), now_ms)
    return engine


def pass_time(engine: Engine, until_ms: int) -> list[tuple[int, tuple[Effect, ...]]]:
    """Wakes the engine at each of its deadlines up to `until_ms`: those moments, with their effects.

    AssertionError where a deadline has come and nothing moves it on.
    """
    moments: list[tuple[int, tuple[Effect, ...]]] = []
    last_ms, repeats = 0, 0
    while (due_ms := engine.next_deadline_ms()) is not None and due_ms <= until_ms:
        now_ms = max(due_ms, last_ms)
        repeats = repeats + 1 if now_ms == last_ms else 0
        assert repeats < 100, f"woken again and again at {now_ms}"
        moments.append((now_ms, engine.receive(TimePassed(), now_ms)))
        last_ms = now_ms
    return moments


# --- what our users do -----------------------------------------------------------------------


def a_put(
    state: PresenceState = PresenceState.ONLINE,
    status_msg: str | None = None,
    *,
    user_id: UserID = ALICE,
    device_id: DeviceID | None = PHONE,
) -> PresenceSet:
    """A `PUT .../status`."""
    return PresenceSet(user_id, device_id, state, status_msg)


def a_stream(
    set_presence: PresenceState | None = None,
    *,
    user_id: UserID = ALICE,
    device_id: DeviceID | None = PHONE,
) -> StreamOpened:
    """The beginning of a `/sync`."""
    return StreamOpened(user_id, device_id, set_presence)


def an_end(*, user_id: UserID = ALICE, device_id: DeviceID | None = PHONE) -> StreamClosed:
    """The end of a `/sync`."""
    return StreamClosed(user_id, device_id)


def an_activity(
    at_ms: int | None = None, *, user_id: UserID = ALICE, device_id: DeviceID | None = PHONE
) -> Activity:
    """A pro-active event, now where `at_ms` is left out."""
    return Activity(user_id, device_id, at_ms)


# --- what other servers say ------------------------------------------------------------------


def a_push(
    state: PresenceState = PresenceState.ONLINE,
    last_active_ago: int | None = 0,
    status_msg: str | None = None,
    currently_active: bool = False,
    *,
    user_id: UserID = BOB,
    origin: ServerName = THERE,
) -> PushesReceived:
    """One push item, alone."""
    push = PushReceived(user_id, state, last_active_ago, status_msg, currently_active)
    return PushesReceived(origin, (push,))


def a_poll(*user_ids: UserID, origin: ServerName = THERE) -> PollReceived:
    """A poll; of Alice where nobody is named."""
    return PollReceived(origin, user_ids or (ALICE,))


def an_unpoll(*user_ids: UserID, origin: ServerName = THERE) -> UnpollReceived:
    """An unpoll; of Alice where nobody is named."""
    return UnpollReceived(origin, user_ids or (ALICE,))


def an_invite(
    origin: ServerName = THERE, observer: UserID = BOB, observed: UserID = ALICE
) -> ListEduReceived:
    """`m.presence_invite`: Bob asks to observe Alice."""
    return ListEduReceived(EduKind.INVITE, origin, observer, observed)


def an_accept(
    origin: ServerName = THERE, observer: UserID = ALICE, observed: UserID = BOB
) -> ListEduReceived:
    """`m.presence_accept`: Bob lets Alice observe him."""
    return ListEduReceived(EduKind.ACCEPT, origin, observer, observed)


def a_deny(origin: ServerName = THERE, observer: UserID = ALICE, observed: UserID = BOB) -> ListEduReceived:
    """`m.presence_deny`: Bob does not let Alice observe him, or no more."""
    return ListEduReceived(EduKind.DENY, origin, observer, observed)


def a_drop(origin: ServerName = THERE, observer: UserID = BOB, observed: UserID = ALICE) -> ListEduReceived:
    """`org.fedpresence.presence_drop`: Bob observes Alice no more."""
    return ListEduReceived(EduKind.DROP, origin, observer, observed)


def a_transaction(
    *edus: ReceivedEdu, origin: ServerName = THERE, txn_id: str | None = None, origin_server_ts: int = NOW_MS
) -> TransactionReceived:
    """A verified transaction, with an id never used before where none is given."""
    return TransactionReceived(origin, txn_id or f"t{next(_txn_ids)}", origin_server_ts, edus)


# The list EDUs, as transactions of their own.


def invite(
    origin: ServerName = THERE, observer: UserID = BOB, observed: UserID = ALICE, now_ms: int = NOW_MS
) -> TransactionReceived:
    """A transaction with an invite alone, stamped with `now_ms`."""
    return a_transaction(an_invite(origin, observer, observed), origin=origin, origin_server_ts=now_ms)


def accept(
    origin: ServerName = THERE, observer: UserID = ALICE, observed: UserID = BOB, now_ms: int = NOW_MS
) -> TransactionReceived:
    """A transaction with an accept alone, stamped with `now_ms`."""
    return a_transaction(an_accept(origin, observer, observed), origin=origin, origin_server_ts=now_ms)


def deny(
    origin: ServerName = THERE, observer: UserID = ALICE, observed: UserID = BOB, now_ms: int = NOW_MS
) -> TransactionReceived:
    """A transaction with a deny alone, stamped with `now_ms`."""
    return a_transaction(a_deny(origin, observer, observed), origin=origin, origin_server_ts=now_ms)


def drop(
    origin: ServerName = THERE, observer: UserID = BOB, observed: UserID = ALICE, now_ms: int = NOW_MS
) -> TransactionReceived:
    """A transaction with a drop alone, stamped with `now_ms`."""
    return a_transaction(a_drop(origin, observer, observed), origin=origin, origin_server_ts=now_ms)


def deliver(
    engine: Engine,
    edus: TransactionReceived | ReceivedEdu | Iterable[ReceivedEdu],
    now_ms: int = NOW_MS,
    origin: ServerName = THERE,
) -> tuple[Effect, ...]:
    """What a transaction leads to, taken and resolved: all effects of both steps.

    Bare EDUs travel in one transaction of `origin`, stamped with `now_ms`.
    """
    if not isinstance(edus, TransactionReceived):
        items = tuple(edus) if isinstance(edus, Iterable) else (edus,)
        edus = a_transaction(*items, origin=origin, origin_server_ts=now_ms)
    return (*engine.receive(edus, now_ms), *engine.receive(InboxDue(), now_ms))


# --- pairs in a stage ------------------------------------------------------------------------


def grant(
    engine: Engine, observed: UserID = ALICE, observer: UserID = BOB, now_ms: int = NOW_MS
) -> tuple[Effect, ...]:
    """Another server's `observer` asks for local `observed` and is let in."""
    origin = server_of(observer)
    effects = deliver(engine, an_invite(origin, observer, observed), now_ms, origin)
    return (*effects, *engine.receive(ListChanged(observed, accept=(observer,)), now_ms))


def subscribe(
    engine: Engine, observer: UserID = ALICE, observed: UserID = BOB, now_ms: int = NOW_MS
) -> tuple[Effect, ...]:
    """Local `observer` asks for another server's `observed`, its invite leaves, and it is let in."""
    origin = server_of(observed)
    effects = engine.receive(ListChanged(observer, invite=(observed,)), now_ms)
    owed = tuple(effect.edu for effect in effects if isinstance(effect, SendEdu))
    engine.compose(origin, Wanted(owed=owed), now_ms)
    engine.receive(EdusDelivered(origin, owed), now_ms)
    return (*effects, *deliver(engine, an_accept(origin, observer, observed), now_ms, origin))
