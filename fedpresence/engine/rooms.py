"""Who shares a room with whom, in rooms that count, with servers that count.

A room counts while sharing it is an interest: rooms are switched on at all, the policy admits it, and it is
not too large (Z-19: first seen it must have fewer than `max_members`; later it stops counting above 1.1 times
that and counts again below it).

A room that a homeserver told of in an earlier run is in doubt until its members were read again (Z-11):
whoever was banned meanwhile still stands there. Among our own users, and for what other servers send, it
goes on as before; no other server has a right by it.

Always true:
- who meets whom is answered here and nowhere else, so a policy about rooms is obeyed everywhere;
- one join or leave costs the same in a room of two and of fifty thousand;
- the index by user knows rooms that count alone: a room far too large costs its set of names and no more.

Source: presence.md 11; edus.md P-2; security.md Z-11, Z-19.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from sys import intern

from fedpresence.engine.settings import EngineSettings, RoomPolicy, ServerLists
from fedpresence.ids import RoomID, ServerName, UserID, server_of

NO_SERVERS: dict[ServerName, int] = {}  # of all rooms in doubt; never written to


@dataclass(frozen=True, slots=True)
class StoredRoom:
    """A room as it was stored; `members` are read once."""

    room_id: RoomID
    join_rule: str | None
    counts: bool
    members: Sequence[UserID]
    from_homeserver: bool = False


class Room:
    """A room's joined members; `servers` counts members by server, `ours` are the local ones.

    `entitled` are the servers with a right by this room: all of them, or none while the room is in doubt.
    Dicts without values are the sets here: a set of twenty takes four times as much memory.
    """

    __slots__ = ("counts", "entitled", "from_homeserver", "join_rule", "members", "ours", "servers")

    def __init__(self) -> None:
        self.members: dict[UserID, None] = {}
        self.ours: dict[UserID, None] = {}
        self.servers: dict[ServerName, int] = {}
        self.entitled = self.servers
        self.join_rule: str | None = None
        self.counts = False
        self.from_homeserver = False

    @property
    def is_doubted(self) -> bool:
        """Whether its members are those of an earlier run, and not read again since (Z-11)."""
        return self.entitled is not self.servers


class Rooms:
    """Every room we were told of, and an index by user. `policy` may be replaced at any time."""

    def __init__(self, our_name: ServerName, policy: RoomPolicy) -> None:
        self.policy = policy
        self.doubted = 0  # how many rooms are in doubt
        self._our_name = our_name
        self._rooms: dict[RoomID, Room] = {}
        self._of_user: dict[UserID, dict[RoomID, None]] = {}  # of rooms that count

    # --- which rooms there are ---

    def __len__(self) -> int:
        return len(self._rooms)

    def get(self, room_id: RoomID) -> Room | None:
        """The room; None where it is unknown."""
        return self._rooms.get(room_id)

    def all(self) -> Iterator[tuple[RoomID, Room]]:
        """Every room with its ID; rooms may come and go meanwhile."""
        return iter(list(self._rooms.items()))

    def make(self, room_id: RoomID) -> Room:
        """The room, with nobody in it where it was unknown."""
        return self._rooms.setdefault(room_id, Room())

    def restore(self, stored: StoredRoom) -> None:
        """A room as it was stored; called once for each."""
        room = self.make(stored.room_id)
        room.join_rule = stored.join_rule
        if stored.from_homeserver:
            room.from_homeserver = True
            room.entitled = NO_SERVERS
            self.doubted += 1
        self.change(stored.room_id, stored.members, ())
        self.set_counts(stored.room_id, stored.counts)

    def change(self, room_id: RoomID, joined: Iterable[UserID], left: Iterable[UserID]) -> None:
        """Users who were not in the room join it, and users who were leave it."""
        room = self._rooms[room_id]
        for user_id in left:
            del room.members[user_id]
            room.ours.pop(user_id, None)
            server = server_of(user_id)
            room.servers[server] -= 1
            if not room.servers[server]:
                del room.servers[server]
            if room.counts:
                self._unindex(user_id, room_id)
        for user_id in joined:
            user_id = UserID(intern(user_id))  # one object, however many rooms the user is in
            server = ServerName(intern(server_of(user_id)))
            room.members[user_id] = None
            room.servers[server] = room.servers.get(server, 0) + 1
            if server == self._our_name:
                room.ours[user_id] = None
            if room.counts:
                self._of_user.setdefault(user_id, {})[room_id] = None

    def set_counts(self, room_id: RoomID, counts: bool) -> None:
        """Whether sharing the room is an interest now."""
        room = self._rooms[room_id]
        if room.counts != counts:
            room.counts = counts
            for user_id in room.members:
                if counts:
                    self._of_user.setdefault(user_id, {})[room_id] = None
                else:
                    self._unindex(user_id, room_id)

    def trust(self, room_id: RoomID) -> None:
        """The room's members are those of now."""
        room = self._rooms[room_id]
        if room.is_doubted:
            room.entitled = room.servers
            self.doubted -= 1

    def forget(self, room_id: RoomID) -> None:
        """The room is unknown from now on."""
        self.trust(room_id)
        self.set_counts(room_id, False)
        del self._rooms[room_id]

    def _unindex(self, user_id: UserID, room_id: RoomID) -> None:
        rooms = self._of_user[user_id]
        del rooms[room_id]
        if not rooms:
            del self._of_user[user_id]

    # --- who meets whom ---

    def permits(self, server: ServerName) -> bool:
        """Whether a room shared with users of `server` is an interest; with our own always."""
        return server == self._our_name or self.policy.servers.permit(server)

    def permitted(self, users: Iterable[UserID], by: ServerLists | None = None) -> Iterable[UserID]:
        """Those of `users` with whom a shared room is an interest, by the policy or by other lists."""
        lists = self.policy.servers if by is None else by
        if lists.permit_all:
            return users
        return (u for u in users if (server := server_of(u)) == self._our_name or lists.permit(server))

    def user_meets_server(self, user_id: UserID, server: ServerName) -> bool:
        """Whether the local user shares a room that counts, and is not in doubt, with a user of `server`."""
        return any(server in room.entitled for room in self._of(user_id)) and self.permits(server)

    def users_meet(self, one: UserID, other: UserID) -> bool:
        """Whether both share a room that counts; one of them at least is ours."""
        return (
            any(other in room.members for room in self._of(one))
            and self.permits(server_of(one))
            and self.permits(server_of(other))
        )

    def meet_in_doubt(self, one: UserID, other: UserID) -> bool:
        """Whether all the rooms in which the two meet are in doubt."""
        return all(room.is_doubted for room in self._of(one) if other in room.members)

    def is_near(self, remote_user: UserID) -> bool:
        """Whether any local user shares a room that counts with `remote_user`."""
        for room_id in self._of_user.get(remote_user, ()):
            if self._rooms[room_id].ours:
                return self.permits(server_of(remote_user))
        return False

    def servers_of(self, user_id: UserID) -> set[ServerName]:
        """The servers with a right to a local user by a room; ours may be among them."""
        servers: set[ServerName] = set()
        if user_id not in self._of_user:
            return servers
        for room in self._of(user_id):
            servers.update(room.entitled)
        if self.policy.servers.permit_all:
            return servers
        return {server for server in servers if self.permits(server)}

    def mates_of(self, user_id: UserID) -> set[UserID]:
        """Everybody a local user shares a room that counts with, itself included."""
        mates: set[UserID] = set()
        for room in self._of(user_id):
            mates.update(self.permitted(room.members))
        return mates

    def ours_near(self, user_id: UserID) -> set[UserID]:
        """Every local user who shares a room that counts with the user."""
        ours: set[UserID] = set()
        if user_id in self._of_user and self.permits(server_of(user_id)):
            for room in self._of(user_id):
                ours.update(room.ours)
        return ours

    def ours(self) -> Iterator[UserID]:
        """Every local user in a room that counts."""
        return (user_id for user_id in self._of_user if server_of(user_id) == self._our_name)

    def _of(self, user_id: UserID) -> Iterator[Room]:
        return map(self._rooms.__getitem__, self._of_user.get(user_id, ()))


def should_count(
    room_id: RoomID, join_rule: str | None, counts: bool, members: int, settings: EngineSettings
) -> bool:
    """Whether a room of that many members counts, by whether it does now (Z-19).

    One that does not, for whatever reason, must be small to begin.
    """
    if not members or not settings.share_presence_in_rooms:
        return False
    if not settings.room_policy.admits(room_id, join_rule):
        return False
    if counts:
        return members * 10 <= settings.max_room_members * 11
    return members < settings.max_room_members
