"""Rooms as a reason to share presence: what a change of members begins and ends.

Source: presence.md 11; security.md Z-10, Z-11, Z-19; decision 1.
"""

from fedpresence.engine.effects import SaveRoom, TellObservers
from fedpresence.engine.lists import Lists
from fedpresence.engine.people import People
from fedpresence.engine.rooms import Room, should_count
from fedpresence.engine.subscription import ObservedMove, ObservedStage
from fedpresence.engine.world import Turn, World
from fedpresence.ids import RoomID, ServerName, UserID, server_of


class Sharing:
    """Keeps the rooms, and tells both sides when they come to share one or cease to."""

    def __init__(self, world: World, people: People, lists: Lists) -> None:
        self._world = world
        self._people = people
        self._lists = lists

    def set_members(self, turn: Turn, room_id: RoomID, members: frozenset[UserID]) -> None:
        """The room has exactly these members now."""
        old = self._world.rooms.get(room_id)
        counts = bool(members) and should_count(old, len(members), self._world.settings)
        if old.members == members and old.counts == counts:
            return
        turn.add(SaveRoom(room_id, members, counts))
        new = self._world.rooms.put(room_id, members, counts)
        self._changed(turn, old, new)

    def change_member(self, turn: Turn, room_id: RoomID, user_id: UserID, *, joined: bool) -> None:
        """One user is joined to the room now, or is not; the last of ours to leave takes the room along."""
        room = self._world.rooms.get(room_id)
        if joined == (user_id in room.members):
            return
        if not joined and room.ours == {user_id}:
            self.set_members(turn, room_id, frozenset())
            return
        self.set_members(turn, room_id, room.members | {user_id} if joined else room.members - {user_id})

    def set_join_rule(self, turn: Turn, room_id: RoomID, join_rule: str | None) -> None:
        """The room is joined by this rule now; no policy asks for it yet."""

    def judge_again(self, turn: Turn) -> None:
        """The settings about rooms changed."""
        for room_id, room in self._world.rooms.all():
            self.set_members(turn, room_id, room.members)

    def restore(self, room: SaveRoom) -> None:
        """A room as it was stored; called once, before `started` (Z-11)."""
        self._world.rooms.put(room.room_id, room.members, room.counts)

    def started(self, turn: Turn) -> None:
        """The settings may be others than in the last run: what rested on a room may be over (Z-10)."""
        self.judge_again(turn)
        for observed, theirs in list(self._world.observers.items()):
            for observer, row in list(theirs.items()):
                ended = row.stage is ObservedStage.GRANTED and row.by_room
                if ended and not self._world.rooms.users_meet(observed, observer):
                    self._lists.observed_move(turn, observed, observer, ObservedMove.CONDITION_ENDED)

    def _changed(self, turn: Turn, old: Room, new: Room) -> None:
        before = old.members if old.counts else frozenset()
        after = new.members if new.counts else frozenset()
        joined, left = after - before, before - after
        if joined:
            self._begin(turn, new, joined)
        if left:
            self._end(turn, old, left)

    def _begin(self, turn: Turn, room: Room, joined: frozenset[UserID]) -> None:
        world = self._world
        new_servers = {s for s, n in room.servers.items() if n == _count(joined, s)} - {world.our_name}
        for user_id in sorted(room.ours):
            for server in sorted(room.servers if user_id in joined else new_servers):
                if server != world.our_name:
                    self._people.introduce(turn, user_id, server)
        newcomers = tuple(sorted(room.ours & joined))
        for member in sorted(room.members):
            observers = tuple(sorted(room.ours)) if member in joined else newcomers
            observers = tuple(o for o in observers if o != member)
            if not observers:
                continue
            remote = world.remotes.get(member)
            if world.is_local(member) or (remote is not None and remote.heard_ms):
                turn.add(TellObservers(member, observers))
            else:
                self._lists.watching.meet(turn, member)

    def _end(self, turn: Turn, room: Room, left: frozenset[UserID]) -> None:
        """Rights and sights that rested on this room alone are over."""
        world = self._world
        lost_servers = {s for s, n in room.servers.items() if n == _count(left, s)} - {world.our_name}
        for user_id in sorted(room.ours):
            servers: set[ServerName] = set(room.servers) if user_id in left else lost_servers
            for server in sorted(servers - {world.our_name}):
                if not world.has_right(server, user_id):
                    world.rights_ended[server] += 1
            for observer, row in list(world.observers.get(user_id, {}).items()):
                ended = row.stage is ObservedStage.GRANTED and row.by_room
                if ended and not world.rooms.users_meet(user_id, observer):
                    self._lists.observed_move(turn, user_id, observer, ObservedMove.CONDITION_ENDED)
        for member in sorted(room.members):
            observers = room.ours if member in left else room.ours & left
            blind = tuple(sorted(o for o in observers if not world.may_see(o, member)))
            if blind:
                turn.add(TellObservers(member, blind, gone=True))
            if not world.is_local(member):
                self._lists.watching.let_go(member)


def _count(users: frozenset[UserID], server: ServerName) -> int:
    return sum(server_of(user_id) == server for user_id in users)
