"""Who shares a room with whom, for rooms that count.

A room counts while sharing it is an interest: rooms are switched on at all, and it is not too large
(Z-19: first seen it must have fewer than `max_members`; later it stops counting above 1.1 times that and
counts again below it).

Source: presence.md 11; edus.md P-2; security.md Z-19.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedpresence.engine.settings import EngineSettings
from fedpresence.ids import RoomID, ServerName, UserID, server_of


@dataclass(frozen=True, slots=True)
class Room:
    """A room's joined members; `servers` counts members by server, `ours` are the local ones."""

    members: frozenset[UserID]
    counts: bool
    servers: dict[ServerName, int]
    ours: frozenset[UserID]


EMPTY_ROOM = Room(frozenset(), False, {}, frozenset())


class Rooms:
    """Every room we were told of, and an index by user."""

    def __init__(self, our_name: ServerName) -> None:
        self._our_name = our_name
        self._rooms: dict[RoomID, Room] = {}
        self._of_user: dict[UserID, set[RoomID]] = {}

    def __len__(self) -> int:
        return len(self._rooms)

    def get(self, room_id: RoomID) -> Room:
        """The room; an empty one that does not count where it is unknown."""
        return self._rooms.get(room_id, EMPTY_ROOM)

    def all(self) -> Iterator[tuple[RoomID, Room]]:
        """Every room with its ID."""
        return iter(list(self._rooms.items()))

    def put(self, room_id: RoomID, members: frozenset[UserID], counts: bool) -> Room:
        """The room has exactly these members now; none forgets it."""
        old = self.get(room_id)
        for user_id in old.members - members:
            rooms = self._of_user[user_id]
            rooms.discard(room_id)
            if not rooms:
                del self._of_user[user_id]
        for user_id in members - old.members:
            self._of_user.setdefault(user_id, set()).add(room_id)
        if not members:
            self._rooms.pop(room_id, None)
            return EMPTY_ROOM
        servers: dict[ServerName, int] = {}
        for user_id in members:
            server = server_of(user_id)
            servers[server] = servers.get(server, 0) + 1
        ours = frozenset(u for u in members if server_of(u) == self._our_name)
        room = Room(members, counts, servers, ours)
        self._rooms[room_id] = room
        return room

    def of(self, user_id: UserID) -> Iterator[Room]:
        """The rooms of a user that count."""
        for room_id in self._of_user.get(user_id, ()):
            room = self._rooms[room_id]
            if room.counts:
                yield room

    def user_meets_server(self, user_id: UserID, server: ServerName) -> bool:
        """Whether the user shares a room that counts with a user of `server`."""
        return any(server in room.servers for room in self.of(user_id))

    def users_meet(self, one: UserID, other: UserID) -> bool:
        """Whether both share a room that counts."""
        return any(other in room.members for room in self.of(one))

    def is_near(self, remote_user: UserID) -> bool:
        """Whether any local user shares a room that counts with `remote_user`."""
        return any(room.ours for room in self.of(remote_user))


def should_count(old: Room, members: int, settings: EngineSettings) -> bool:
    """Whether a room of that many members counts, by what it did before (Z-19)."""
    if not settings.share_presence_in_rooms:
        return False
    if old.counts:
        return members * 10 <= settings.max_room_members * 11
    return members < settings.max_room_members
