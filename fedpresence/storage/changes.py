"""A turn's durable effects, folded: of each row only the last word.

Always true: applying the folded changes, table by table (rooms before their members), leaves what
applying the effects one after the other would leave.

So a store can write each table in one go, however the effects of a turn were mixed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from fedpresence.engine.effects import (
    Durable,
    ForgetAnswer,
    ForgetInbox,
    ForgetObservedRow,
    ForgetObserverRow,
    ForgetRoom,
    SaveAnswer,
    SaveHidden,
    SaveInbox,
    SaveObservedRow,
    SaveObserverRow,
    SavePresence,
    SaveRoom,
    SaveRoomMembers,
    SaveUser,
)
from fedpresence.engine.presence import PresenceRecord
from fedpresence.engine.subscription import ObservedRow, ObserverRow
from fedpresence.ids import DeviceID, RoomID, ServerName, UserID

Pair = tuple[UserID, UserID]  # observer, observed


@dataclass(slots=True)
class Changes:
    """What one commit does to each table; None means that the row goes.

    `lost_tokens` are users that were deactivated, even where a later effect took that back; `emptied` are
    rooms that lost all members, before `members` (joined or not, by room) count.
    """

    users: dict[UserID, bool] = field(default_factory=dict)  # deactivated?
    lost_tokens: set[UserID] = field(default_factory=set)
    hidden: dict[tuple[UserID, DeviceID | None], bool] = field(default_factory=dict)
    presence: dict[UserID, PresenceRecord] = field(default_factory=dict)
    observer_rows: dict[Pair, ObserverRow | None] = field(default_factory=dict)
    observed_rows: dict[Pair, ObservedRow | None] = field(default_factory=dict)
    rooms: dict[RoomID, SaveRoom | None] = field(default_factory=dict)
    emptied: set[RoomID] = field(default_factory=set)
    members: dict[RoomID, dict[UserID, bool]] = field(default_factory=dict)
    answers: dict[tuple[ServerName, str], SaveAnswer | None] = field(default_factory=dict)
    newest_origin_ts: dict[ServerName, int] = field(default_factory=dict)
    inbox: dict[int, SaveInbox | None] = field(default_factory=dict)

    @classmethod
    def of(cls, effects: Iterable[Durable]) -> "Changes":
        """What `effects`, in their order, come to."""
        changes = cls()
        for effect in effects:
            changes._take(effect)
        return changes

    def _take(self, effect: Durable) -> None:
        match effect:
            case SaveObserverRow(row):
                self.observer_rows[row.observer, row.observed] = row
            case SaveObservedRow(row):
                self.observed_rows[row.observer, row.observed] = row
            case ForgetObserverRow(observer, observed):
                self.observer_rows[observer, observed] = None
            case ForgetObservedRow(observer, observed):
                self.observed_rows[observer, observed] = None
            case SaveAnswer(origin, txn_id, _, origin_server_ts):
                self.answers[origin, txn_id] = effect
                newest = self.newest_origin_ts.get(origin)
                if newest is None or newest < origin_server_ts:
                    self.newest_origin_ts[origin] = origin_server_ts
            case ForgetAnswer(origin, txn_id):
                self.answers[origin, txn_id] = None
            case SaveInbox(entry_id):
                self.inbox[entry_id] = effect
            case ForgetInbox(entry_id):
                self.inbox[entry_id] = None
            case SaveUser(user_id, deactivated):
                self.users[user_id] = deactivated
                if deactivated:
                    self.lost_tokens.add(user_id)
                    self.presence.pop(user_id, None)
            case SaveHidden(user_id, device_id, hidden):
                self.hidden[user_id, device_id] = hidden
            case SavePresence(record):
                self.presence[record.user_id] = record
            case SaveRoom(room_id):
                self.rooms[room_id] = effect
            case ForgetRoom(room_id):
                self.rooms[room_id] = None
                self.emptied.add(room_id)
                self.members.pop(room_id, None)
            case SaveRoomMembers(room_id, joined, left):
                members = self.members.setdefault(room_id, {})
                members.update((user_id, True) for user_id in joined)
                members.update((user_id, False) for user_id in left)
            case _:
                assert_never(effect)
