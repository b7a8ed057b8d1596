"""Which users and rooms are known here: what those ask who learn of more from a homeserver.

Always true: nothing here changes anything.
"""

from collections.abc import Iterable
from typing import TypeGuard

from fedpresence.engine.events import ListEduReceived, ReceivedEdu
from fedpresence.engine.presence import OFFLINE
from fedpresence.engine.rooms import Room
from fedpresence.engine.subscription import EduKind
from fedpresence.engine.world import World
from fedpresence.ids import RoomID, UserID


class Known:
    """A view of the world, and of the EDUs that wait to be resolved."""

    def __init__(self, world: World, inbox: Iterable[tuple[int | None, tuple[ReceivedEdu, ...]]]) -> None:
        self._world = world
        self._inbox = inbox

    def knows_user(self, user_id: UserID) -> bool:
        """Whether a local user exists, or did and is deactivated."""
        return user_id in self._world.users or user_id in self._world.deactivated

    def users(self) -> tuple[UserID, ...]:
        """Every local user."""
        return tuple(self._world.users)

    def has_our_people(self, room_id: RoomID) -> bool:
        """Whether somebody of ours is known to be in the room: then we are told what happens in it."""
        room = self._world.rooms.get(room_id)
        return room is not None and bool(room.ours)

    def has_member(self, room_id: RoomID, user_id: UserID) -> bool:
        """Whether somebody is known to be in a room."""
        room = self._world.rooms.get(room_id)
        return room is not None and user_id in room.members

    def rooms(self) -> tuple[RoomID, ...]:
        """Every room we were told of."""
        return tuple(room_id for room_id, _ in self._world.rooms.all())

    @property
    def rooms_doubted(self) -> int:
        """How many rooms are to be read again before other servers have a right by them (Z-11)."""
        return self._world.rooms.doubted

    def doubted(self) -> list[RoomID]:
        """Those rooms: first the ones in which other servers wait for somebody of ours who is there."""
        if not self.rooms_doubted:
            return []
        world = self._world
        online = {user_id for user_id, user in world.locals.items() if user.published.state is not OFFLINE}

        def rank(item: tuple[RoomID, Room]) -> int:
            room = item[1]
            if not room.counts or len(room.ours) == len(room.members):
                return 2  # nothing of other servers rests on it now
            return int(online.isdisjoint(room.ours))

        doubted = [item for item in world.rooms.all() if item[1].is_doubted]
        return [room_id for room_id, _ in sorted(doubted, key=rank)]

    def invited_strangers(self, limit: int) -> tuple[UserID, ...]:
        """Local users who do not exist, as far as we know, and whom waiting EDUs invite; at most so many."""
        found: dict[UserID, None] = {}
        for _, edus in self._inbox:
            for edu in edus:
                if len(found) < limit and self._is_strange(edu):
                    found[edu.observed] = None
        return tuple(found)

    def _is_strange(self, edu: ReceivedEdu) -> TypeGuard[ListEduReceived]:
        if not isinstance(edu, ListEduReceived) or edu.kind is not EduKind.INVITE:
            return False
        return self._world.is_local(edu.observed) and not self.knows_user(edu.observed)
