"""What is known, and what follows from it: who may see whom, and which server has a right to whom.

Always true:
- a server has a right to a local user's presence only by a granted row that is not muted, or by a room
  that counts and is not in doubt (Z-11), and never while the server lists refuse it (Z-9); there is no other
  way: a grant that rests on a room gives no right that the room does not give;
- `rights_ended` of a server moves each time one of its rights ends: bytes made before are never sent again.

The world decides nothing. `people`, `watching` and `lists` do, and change it through its methods.

Source: presence.md 11; edus.md P-2; subscriptions.md 2 and 5; decision 18.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator

from fedpresence.engine.deadlines import Deadlines
from fedpresence.engine.effects import Effect
from fedpresence.engine.pairs import PairKey, Pairs
from fedpresence.engine.presence import NOTHING, OFFLINE, LocalUser, PresenceState, Published
from fedpresence.engine.remote import RemoteUser
from fedpresence.engine.rooms import Rooms
from fedpresence.engine.settings import EngineSettings
from fedpresence.engine.subscription import ObservedRow, ObservedStage, ObserverRow, ObserverStage
from fedpresence.ids import ServerName, UserID, server_of

DeadlineKey = UserID | PairKey
NO_SERVERS: dict[ServerName, int] = {}  # of all whom no other server was granted; never written to


class Turn:
    """One event being decided: its moment, and the effects gathered so far, in order."""

    __slots__ = ("effects", "now_ms")

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.effects: list[Effect] = []

    def add(self, effect: Effect) -> None:
        """One more thing to be done."""
        self.effects.append(effect)


class World:
    """All state of the engine, indexed."""

    def __init__(self, settings: EngineSettings, started_ms: int) -> None:
        self.settings = settings
        self.started_ms = started_ms
        self.our_name = settings.server_name
        self.hold_expiries_until_ms = 0  # Z-21
        self.deadlines: Deadlines[DeadlineKey] = Deadlines(self._moment_of)
        self.users: set[UserID] = set()
        self.deactivated: set[UserID] = set()
        self.locals: dict[UserID, LocalUser] = {}
        self.remotes: dict[UserID, RemoteUser] = {}
        self.rooms = Rooms(settings.server_name, settings.room_policy)
        self.pairs = Pairs()
        self.rights_ended: Counter[ServerName] = Counter()
        self.open_pairs: dict[ServerName, dict[PairKey, None]] = {}  # pending, or owing
        self.states: Counter[PresenceState] = Counter()  # of local users with a record
        self.dirty: dict[UserID, None] = {}
        self.forgotten: dict[UserID, None] = {}  # remote users whose stored presence may go
        self.missed: dict[UserID, None] = {}  # had news that servers in doubted rooms were not told
        # Servers granted a user, and by how many unmuted grants; counted when somebody first asks.
        self._grants: dict[UserID, dict[ServerName, int]] = {}
        # The same with mutes and grants that rest on a room, of whoever was polled for: anybody may poll, and
        # to look through all observers of somebody popular for each would stop everything else.
        self._polled: dict[UserID, dict[ServerName, dict[UserID, None]]] = {}

    # --- names ---

    def is_local(self, user_id: UserID) -> bool:
        """Whether the user's server name is ours."""
        return server_of(user_id) == self.our_name

    def permits(self, server: ServerName) -> bool:
        """Whether presence may be exchanged with a server."""
        return self.settings.servers.permit(server)

    # --- presence ---

    def local(self, user_id: UserID) -> LocalUser:
        """The record of a local user, made where there is none."""
        user = self.locals.get(user_id)
        if user is None:
            user = self.locals[user_id] = LocalUser(since_ms=self.started_ms)
            self.states[OFFLINE] += 1
        return user

    def _moment_of(self, key: DeadlineKey) -> int | None:
        """When time alone changes something about a user: pairs are not asked again."""
        if isinstance(key, tuple):
            return None
        user = self.locals.get(key) or self.remotes.get(key)
        return None if user is None else user.next_deadline_ms(self.settings)

    def published(self, user_id: UserID, now_ms: int) -> Published:
        """What a local user publishes at `now_ms`."""
        user = self.locals.get(user_id)
        if user is None:
            return NOTHING
        p = user.published
        if p.currently_active and (now_ms - p.last_active_ms >= self.settings.last_active_granularity_ms):
            return Published(p.state, p.last_active_ms, p.status_msg, False)  # a timer is on its way (P:A-6)
        return p

    def shown(self, user_id: UserID, now_ms: int) -> Published:
        """What somebody who may see the user is shown."""
        if self.is_local(user_id):
            return self.published(user_id, now_ms)
        remote = self.remotes.get(user_id)
        if remote is None or not self.permits(server_of(user_id)):
            return NOTHING if remote is None else Published(OFFLINE)  # S:O-37
        return remote.shown()

    # --- rights of servers to local users ---

    def has_right(self, server: ServerName, observed: UserID) -> bool:
        """Whether `server` may be told about local user `observed` now."""
        return self.permits(server) and self.is_granted(server, observed)

    def is_granted(self, server: ServerName, observed: UserID) -> bool:
        """The same, where it is known that the server lists do not refuse `server`."""
        granted = self._grants.get(observed)
        if granted is None:
            granted = self._granted(observed)
        return server in granted or self.rooms.user_meets_server(observed, server)

    def destinations_of(self, observed: UserID) -> list[ServerName]:
        """Every server with a right to `observed`, in a fixed order."""
        servers = self._granted(observed)  # in order but for the newest: that is sorted in no time
        met = self.rooms.servers_of(observed)
        met.discard(self.our_name)
        everyone = sorted(met.union(servers)) if met else sorted(servers)
        if self.settings.servers.permit_all:  # as nearly everywhere: ten thousand need no look
            return everyone
        return [server for server in everyone if self.permits(server)]

    # --- rights of local users ---

    def accepts(self, observer: UserID, observed: UserID) -> bool:
        """Whether `observed` is an accepted entry on the list of local user `observer`."""
        return self.pairs.observer_stage(observer, observed) is ObserverStage.ACCEPTED

    def may_see(self, observer: UserID, observed: UserID) -> bool:
        """Whether local user `observer` may see `observed` (P:11)."""
        return (
            observer == observed
            or self.accepts(observer, observed)
            or self.rooms.users_meet(observer, observed)
        )

    def visible_to(self, observer: UserID) -> frozenset[UserID]:
        """Everybody local user `observer` may see, itself included."""
        seen = {observer, *self.pairs.listed(observer, ObserverStage.ACCEPTED)}
        seen.update(self.rooms.mates_of(observer))
        return frozenset(seen)

    def local_observers_of(self, observed: UserID) -> tuple[UserID, ...]:
        """Every local user who may see `observed`, in a fixed order."""
        seeing = {*self.pairs.watching(observed, ObserverStage.ACCEPTED), *self.rooms.ours_near(observed)}
        if observed in self.locals or self.is_local(observed):  # most of ours have a record
            seeing.add(observed)
        return tuple(sorted(seeing))

    def is_wanted(self, remote_user: UserID) -> bool:
        """Whether any local user may see a remote user."""
        is_accepted = ObserverStage.ACCEPTED in self.pairs.stages_about(remote_user)
        return is_accepted or self.rooms.is_near(remote_user)

    def watched_in(self, observed: UserID, *stages: ObserverStage) -> list[UserID]:
        """Local observers whose row about `observed` is in one of `stages`, in a fixed order."""
        return sorted(self.pairs.watching(observed, *stages))

    # --- rows ---

    def observer_row(self, observer: UserID, observed: UserID) -> ObserverRow | None:
        """The observer's half, if any."""
        return self.pairs.observer_row(observer, observed)

    def observed_row(self, observed: UserID, observer: UserID) -> ObservedRow | None:
        """The observed user's half, if any."""
        return self.pairs.observed_row(observed, observer)

    def load_pairs(self, pairs: Pairs, now_ms: int) -> None:
        """Take over the rows of the run before; called once, before any other."""
        pairs.clamp(now_ms)
        self.pairs = pairs
        for observer, observed, observers_side in pairs.restless:
            if observers_side:
                row = pairs.observer_row(observer, observed)
                assert row is not None, "what was loaded is there"
                self._index_observer(row)
            else:
                theirs = pairs.observed_row(observed, observer)
                assert theirs is not None, "what was loaded is there"
                self._index_observed(theirs)

    def put_observer_row(self, row: ObserverRow) -> None:
        """Keep the observer's half."""
        self.pairs.put_observer_row(row)
        self._index_observer(row)

    def remove_observer_row(self, observer: UserID, observed: UserID) -> None:
        """Forget the observer's half."""
        self.pairs.remove_observer_row(observer, observed)
        self._index_open((observer, observed, True), server_of(observed), False)

    def put_observed_row(self, row: ObservedRow) -> None:
        """Keep the observed user's half; counts the end of a right."""
        old = self.pairs.observed_row(row.observed, row.observer)
        self.pairs.put_observed_row(row)
        self._index_polled(row.observed, row.observer, granted=row.stage is ObservedStage.GRANTED)
        self._index_grant(row.observed, server_of(row.observer), _gives_right(old), _gives_right(row))
        self._index_observed(row)

    def remove_observed_row(self, observed: UserID, observer: UserID) -> None:
        """Forget the observed user's half."""
        old = self.pairs.observed_row(observed, observer)
        self.pairs.remove_observed_row(observed, observer)
        self._index_polled(observed, observer, granted=False)
        self._index_grant(observed, server_of(observer), _gives_right(old), False)
        self._index_open((observer, observed, False), server_of(observer), False)

    def granted_to(self, server: ServerName, observed: UserID) -> Iterator[ObservedRow]:
        """The granted rows of one server's users to `observed`; as cheap for who has none, whoever exists."""
        by_server = self._polled.get(observed)
        if by_server is None:
            by_server = {}
            for observer in self.pairs.granted(observed):
                by_server.setdefault(server_of(observer), {})[observer] = None
            if not by_server:
                return  # nothing is kept of users who may not even exist
            self._polled[observed] = by_server
        for observer in list(by_server.get(server, ())):
            row = self.observed_row(observed, observer)
            assert row is not None, "it was granted"
            yield row

    def _granted(self, observed: UserID) -> dict[ServerName, int]:
        """The other servers with a grant of the user's own, not muted, and how many: sleepers need none."""
        by_server = self._grants.get(observed)
        if by_server is None:
            counted = Counter(sorted(map(server_of, self.pairs.entitled(observed))))
            counted.pop(self.our_name, None)
            by_server = self._grants[observed] = dict(counted) if counted else NO_SERVERS
        return by_server

    def _index_polled(self, observed: UserID, observer: UserID, *, granted: bool) -> None:
        by_server = self._polled.get(observed)
        if by_server is None:
            return
        server = server_of(observer)
        if granted:
            by_server.setdefault(server, {})[observer] = None
            return
        observers = by_server.get(server, {})
        observers.pop(observer, None)
        if not observers:
            by_server.pop(server, None)
        if not by_server:
            del self._polled[observed]

    def _index_grant(self, observed: UserID, server: ServerName, before: bool, after: bool) -> None:
        if before == after or server == self.our_name:
            return
        by_server = self._grants.get(observed)
        if by_server:
            by_server[server] = by_server.get(server, 0) + (1 if after else -1)
            if not by_server[server]:
                del by_server[server]
        elif by_server is not None:
            self._grants[observed] = {server: 1}
        if before and server not in self._granted(observed) and not self.has_right(server, observed):
            self.rights_ended[server] += 1

    def _index_observer(self, row: ObserverRow) -> None:
        is_open = row.stage is ObserverStage.PENDING or bool(row.owed)
        self._index_open((row.observer, row.observed, True), server_of(row.observed), is_open)

    def _index_observed(self, row: ObservedRow) -> None:
        self._index_open((row.observer, row.observed, False), server_of(row.observer), bool(row.owed))

    def _index_open(self, key: PairKey, server: ServerName, is_open: bool) -> None:
        if server == self.our_name:
            return
        if is_open:
            self.open_pairs.setdefault(server, {})[key] = None
        elif server in self.open_pairs:
            self.open_pairs[server].pop(key, None)
            if not self.open_pairs[server]:
                del self.open_pairs[server]


def phase(length_ms: int, *names: str) -> int:
    """A moment between 0 and `length_ms`, always the same for the same names: phases without herds."""
    digest = hashlib.blake2b("\0".join(names).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % max(1, length_ms)


def _gives_right(row: ObservedRow | None) -> bool:
    return row is not None and row.stage is ObservedStage.GRANTED and not (row.muted or row.by_room)
