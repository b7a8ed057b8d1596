"""Rooms as a reason to share presence: what a change of members, join rule or policy begins and ends.

Always true:
- a change costs what it changes: nobody is looked at whom it does not bring together or part;
- on single changes a room that became too large stops counting at once, and one that became small again
  counts within the hour (Z-19); whole sets, join rules and settings are judged at once both ways;
- what ends, ends in the same turn; of what begins a turn does so much, and the next turns do the rest;
- a room in doubt (Z-11) begins and ends like any other among our users; to other servers it is as if it were
  not there, and nothing of theirs ends for it. When its members are told again, each server that is still
  there and has its right back hears, once, what it has missed.

Source: presence.md 11; security.md Z-10, Z-11, Z-19; decision 1.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence, Set

from fedpresence.engine.effects import (
    ForgetRoom,
    SaveRoom,
    SaveRoomMembers,
    SendPush,
    TellObservers,
    Urgency,
)
from fedpresence.engine.lists import Lists
from fedpresence.engine.people import People
from fedpresence.engine.rooms import Room, should_count
from fedpresence.engine.settings import HOUR_MS, ServerLists
from fedpresence.engine.subscription import ObservedMove
from fedpresence.engine.world import Turn, World
from fedpresence.ids import RoomID, ServerName, UserID, server_of

SMALL_AGAIN = UserID("\0small again")  # deadlines of our own: no user can have these IDs
UNFINISHED = UserID("\0unfinished rooms")
MAX_BEGINNINGS = 10_000  # introductions, or members met, in a turn: some 20 ms
NOBODY: frozenset[UserID] = frozenset()


class Sharing:
    """Keeps the rooms, and tells both sides when they come to share one or cease to."""

    def __init__(self, world: World, people: People, lists: Lists) -> None:
        self._world = world
        self._people = people
        self._lists = lists
        self._small_again: dict[RoomID, None] = {}  # to be judged at the next full hour
        self._beginning: deque[RoomID] = deque()  # to be judged as soon as there is time
        # Whom to introduce to whom; with an urgency, whom to tell of again.
        self._introductions: deque[tuple[UserID, Sequence[ServerName], Urgency | None]] = deque()
        self._met_in_doubt: dict[RoomID, set[UserID]] = {}  # who is to be introduced once a room is trusted

    # --- what is told ---------------------------------------------------------------------------

    def set_members(
        self, turn: Turn, room_id: RoomID, members: frozenset[UserID], *, from_homeserver: bool = False
    ) -> None:
        """The room has exactly these members now, and is in doubt no more; none forgets it."""
        room = self._world.rooms.get(room_id)
        here: Set[UserID] = NOBODY if room is None else room.members.keys()
        if not members:
            self._forget(turn, room_id)
        else:
            self._change(turn, room_id, members - here, here - members, source=from_homeserver)

    def change_member(self, turn: Turn, room_id: RoomID, user_id: UserID, *, joined: bool) -> None:
        """One user is joined to the room now, or is not; the last of ours to leave takes the room along."""
        room = self._world.rooms.get(room_id)
        if joined == (room is not None and user_id in room.members):
            return
        user = frozenset((user_id,))
        if joined:
            self._change(turn, room_id, user, NOBODY, may_begin=room is None or not room.members)
        elif room is not None and (room.ours.keys() == user or room.members.keys() == user):
            self._forget(turn, room_id)
        else:
            self._change(turn, room_id, NOBODY, user, may_begin=False)

    def set_join_rule(self, turn: Turn, room_id: RoomID, join_rule: str | None) -> None:
        """The room is joined by this rule now."""
        rooms = self._world.rooms
        room = rooms.get(room_id)
        if join_rule == (None if room is None else room.join_rule):
            return
        room = rooms.make(room_id)
        room.join_rule = join_rule
        room.from_homeserver |= not room.members
        if join_rule is None and not room.members:
            self._forget(turn, room_id)
            return
        if not self._change(turn, room_id, NOBODY, NOBODY):
            turn.add(SaveRoom(room_id, join_rule, room.counts, room.from_homeserver))

    # --- what is judged again -------------------------------------------------------------------

    def settings_changed(self, turn: Turn) -> None:
        """A reload."""
        rooms = self._world.rooms
        old, rooms.policy = rooms.policy, self._world.settings.room_policy
        self._judge_all(turn, old.servers)

    def started(self, turn: Turn) -> None:
        """The settings may be others than in the last run: what rested on a room may be over (Z-10)."""
        self._judge_all(turn, self._world.rooms.policy.servers)
        for observed, observer in self._world.pairs.granted_by_room():
            self._end_grant(turn, observed, observer)

    def go_on(self, turn: Turn) -> None:
        """The next part of what the turns before had no time for."""
        left = MAX_BEGINNINGS
        while self._introductions and left > 0:
            user_id, servers, urgency = self._introductions.popleft()
            self._tell(turn, user_id, servers, urgency)
            left -= len(servers)
        while self._beginning and left > 0:
            room = self._world.rooms.get(room_id := self._beginning.popleft())
            if room is not None:
                left -= len(room.members)
                self._change(turn, room_id, NOBODY, NOBODY)
        self._go_on_later(turn)

    def _go_on_later(self, turn: Turn) -> None:
        if self._introductions or self._beginning:
            self._world.deadlines.set(UNFINISHED, turn.now_ms + 1)

    def judge_small(self, turn: Turn) -> None:
        """The hour is over after which a room that became small may count again (Z-19)."""
        rooms, self._small_again = self._small_again, {}
        for room_id in rooms:
            if self._world.rooms.get(room_id) is not None:
                self._change(turn, room_id, NOBODY, NOBODY)

    def _judge_all(self, turn: Turn, before: ServerLists) -> None:
        """Every room by the settings of now; `before` says with which servers rooms were an interest.

        What stops does so first, then others begin, and only then it is asked what is over: so nobody is
        told that something ended which goes on for another reason.
        """
        rooms = self._world.rooms
        ended: list[tuple[Room, Set[UserID]]] = []
        for room_id, room in rooms.all():
            counts = self._should_count(room_id, room, len(room.members))
            if counts and not room.counts:
                self._beginning.append(room_id)
            elif room.counts and not counts:
                turn.add(SaveRoom(room_id, room.join_rule, False, room.from_homeserver))
                rooms.set_counts(room_id, False)
                ended.append((room, frozenset(rooms.permitted(room.members, before))))
        if before != rooms.policy.servers:
            ended.extend(self._servers_changed(turn, before))
        self.go_on(turn)
        for room, left in ended:
            self._end(turn, room, left, NOBODY)

    def _servers_changed(self, turn: Turn, before: ServerLists) -> list[tuple[Room, Set[UserID]]]:
        """With some servers a shared room is an interest from now on; answers with whose users it was."""
        rooms = self._world.rooms
        ended: list[tuple[Room, Set[UserID]]] = []
        for room_id, room in rooms.all():
            if room.counts:
                was = frozenset(rooms.permitted(room.members, before))
                now = frozenset(rooms.permitted(room.members))
                if now - was:
                    self._begin(turn, room_id, room, now - was)
                if was - now:
                    ended.append((room, was - now))
        return ended

    def _should_count(self, room_id: RoomID, room: Room, size: int) -> bool:
        return should_count(room_id, room.join_rule, room.counts, size, self._world.settings)

    # --- what follows ---------------------------------------------------------------------------

    def _change(
        self,
        turn: Turn,
        room_id: RoomID,
        joined: Set[UserID],
        left: Set[UserID],
        *,
        may_begin: bool = True,
        source: bool | None = None,
    ) -> bool:
        """Some who were not in the room join and some who were leave; whether the room itself was saved.

        With a `source` (True: the homeserver) the whole set was told, and the room is in doubt no more. A
        homeserver alone tells of single changes.
        """
        rooms = self._world.rooms
        is_new = rooms.get(room_id) is None
        room = rooms.make(room_id)
        counted = room.counts
        counts = self._should_count(room_id, room, len(room.members) + len(joined) - len(left))
        if counts and not counted and not may_begin:
            self._judge_in_an_hour(turn, room_id)
            counts = False
        from_homeserver = (room.from_homeserver or is_new) if source is None else source
        is_saved = is_new or counts != counted or from_homeserver != room.from_homeserver
        room.from_homeserver = from_homeserver
        if is_saved:
            turn.add(SaveRoom(room_id, room.join_rule, counts, from_homeserver))
        if joined or left:
            turn.add(SaveRoomMembers(room_id, tuple(sorted(joined)), tuple(sorted(left))))
        parted: Set[UserID] = frozenset(room.members) if counted and not counts else left
        rooms.change(room_id, joined, left)
        rooms.set_counts(room_id, counts)
        met: Set[UserID] = frozenset(room.members) if counts and not counted else joined
        if source is not None and room.is_doubted:
            self._trust(turn, room_id, room, met)
        if counts and (met or room_id in self._met_in_doubt):
            self._begin(turn, room_id, room, frozenset(rooms.permitted(met)))
        if counted and parted:
            self._end(turn, room, frozenset(rooms.permitted(parted)), joined)
        return is_saved

    def _forget(self, turn: Turn, room_id: RoomID) -> None:
        rooms = self._world.rooms
        room = rooms.get(room_id)
        if room is None:
            return
        turn.add(ForgetRoom(room_id))
        counted = room.counts
        rooms.forget(room_id)
        self._met_in_doubt.pop(room_id, None)
        self._end_missing()
        if counted:
            self._end(turn, room, frozenset(rooms.permitted(room.members)), NOBODY)

    def _judge_in_an_hour(self, turn: Turn, room_id: RoomID) -> None:
        if not self._small_again:
            self._world.deadlines.set(SMALL_AGAIN, turn.now_ms + HOUR_MS)
        self._small_again[room_id] = None

    def _trust(self, turn: Turn, room_id: RoomID, room: Room, met: Set[UserID]) -> None:
        """The members are those of now: with those who are not `met` only now it goes on as before (Z-11)."""
        world = self._world
        met = met | self._met_in_doubt.get(room_id, NOBODY)
        due: list[tuple[UserID, Sequence[ServerName], Urgency | None]] = []
        if room.counts:
            numbers = Counter(map(server_of, room.members.keys() & met))
            servers = self._told({s for s in self._permitted(room) if room.servers[s] > numbers[s]})
            for user_id in sorted(room.ours.keys() - met) if servers else ():
                urgency = self._people.owed_after_doubt(user_id, turn.now_ms)
                if urgency is not None:
                    others = set(world.destinations_of(user_id))
                    if theirs := [s for s in servers if s not in others]:
                        due.append((user_id, theirs, urgency))
        else:
            self._met_in_doubt.pop(room_id, None)  # all meet should it count later
        world.rooms.trust(room_id)
        self._end_missing()
        self._tell_some(turn, due)

    def _end_missing(self) -> None:
        """Nobody misses anything where no room is in doubt; so it is written down, too."""
        if not self._world.rooms.doubted:
            self._world.dirty.update(self._world.missed)
            self._world.missed.clear()

    def _introduce(self, turn: Turn, room: Room, joined: frozenset[UserID]) -> None:
        """The servers in the room hear of those of ours whom they have not shared it with before."""
        newcomers = sorted(joined & room.ours.keys())
        numbers = Counter(map(server_of, joined))
        new_servers = self._told({s for s, number in numbers.items() if room.servers[s] == number})
        servers = self._told(self._permitted(room)) if newcomers else []
        introduced = sorted(room.ours) if new_servers else newcomers
        theirs = ((user_id, servers if user_id in joined else new_servers) for user_id in introduced)
        self._tell_some(turn, ((user_id, told, None) for user_id, told in theirs))

    def _tell_some(
        self, turn: Turn, due: Iterable[tuple[UserID, Sequence[ServerName], Urgency | None]]
    ) -> None:
        """So many in this turn; the rest wait for the next."""
        at_once = MAX_BEGINNINGS
        for each in due:
            if at_once > 0:
                self._tell(turn, *each)
            else:
                self._introductions.append(each)
            at_once -= len(each[1])
        self._go_on_later(turn)

    def _tell(
        self, turn: Turn, user_id: UserID, servers: Sequence[ServerName], urgency: Urgency | None
    ) -> None:
        if urgency is None:
            self._people.introduce(turn, user_id, servers)
        else:
            turn.add(SendPush(tuple(servers), user_id, urgency))

    def _begin(self, turn: Turn, room_id: RoomID, room: Room, joined: frozenset[UserID]) -> None:
        """All in the room meet those who joined; whose servers are not permitted is not among these."""
        world = self._world
        ours = tuple(sorted(room.ours))
        if room.is_doubted:
            self._met_in_doubt.setdefault(room_id, set()).update(joined)
        else:
            met = world.rooms.permitted(self._met_in_doubt.pop(room_id, NOBODY) & room.members.keys())
            self._introduce(turn, room, joined.union(met))
        if not ours:
            return
        newcomers = tuple(sorted(joined & room.ours.keys()))
        for member in sorted(world.rooms.permitted(room.members) if newcomers else joined):
            observers = ours if member in joined else newcomers
            remote = world.remotes.get(member)
            if world.is_local(member):
                if others := _without(observers, member):
                    turn.add(TellObservers(member, others))
            elif remote is not None and remote.heard_ms:
                turn.add(TellObservers(member, observers))
            else:
                self._lists.watching.meet(turn, member)

    def _end(self, turn: Turn, room: Room, left: Set[UserID], joined: Collection[UserID]) -> None:
        """Rights and sights that rested on this room alone are over.

        `left` are those who were permitted; a room that does not count now has been left by all. `joined`
        came meanwhile.
        """
        world = self._world
        gone = sorted(user_id for user_id in left if world.is_local(user_id))
        stayed = sorted(room.ours.keys() - left - set(joined)) if room.counts else []
        servers = self._permitted(room) if room.counts else set()
        everyone = {*left, *world.rooms.permitted(room.members)} if room.counts and gone else left
        lost = {server_of(user_id) for user_id in left} - servers - {world.our_name}
        for server in sorted(lost | (servers - {world.our_name} if gone else set())):
            affected = (*gone, *stayed) if server in lost else gone
            if any(not world.has_right(server, user_id) for user_id in affected):
                world.rights_ended[server] += 1
        for user_id in (*gone, *stayed):
            self._end_grants(turn, user_id, everyone if user_id in left else left)
        ours = sorted((*gone, *stayed))
        for member in sorted(everyone - set(joined)):
            if member in left:
                seeing = set(world.local_observers_of(member))
                blind = tuple(o for o in ours if o not in seeing)
            else:
                blind = tuple(o for o in gone if not world.may_see(o, member))
            if blind:
                turn.add(TellObservers(member, blind, gone=True))
            if not world.is_local(member):
                self._lists.watching.let_go(member)

    def _end_grants(self, turn: Turn, observed: UserID, parted: Set[UserID]) -> None:
        """Grants of `observed` to some of these, where they rested on meeting in a room."""
        for observer in sorted(parted & set(self._world.pairs.granted_by_room_of(observed))):
            self._end_grant(turn, observed, observer)

    def _end_grant(self, turn: Turn, observed: UserID, observer: UserID) -> None:
        """A grant that rested on meeting in a room is over where the two meet in none (Z-10)."""
        if not self._world.rooms.users_meet(observed, observer):
            self._lists.observed_move(turn, observed, observer, ObservedMove.CONDITION_ENDED)

    def _permitted(self, room: Room) -> set[ServerName]:
        """Those servers in the room with whom a room is an interest."""
        return {server for server in room.servers if self._world.rooms.permits(server)}

    def _told(self, servers: Set[ServerName]) -> list[ServerName]:
        """Those of the servers that are told about our users, in a fixed order."""
        our_name = self._world.our_name
        return sorted(s for s in servers if s != our_name and self._world.permits(s))


def _without(users: tuple[UserID, ...], user_id: UserID) -> tuple[UserID, ...]:
    """Sorted users but one."""
    at = bisect_left(users, user_id)
    return users[:at] + users[at + 1 :] if users[at : at + 1] == (user_id,) else users
