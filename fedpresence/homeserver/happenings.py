"""One transaction of the homeserver to events of ours (pure).

Always true:
- what happened long ago is no activity, so a backlog after an outage shows nobody online; a repeated
  transaction changes nothing that the first did not;
- a malformed item is skipped and counted, and spoils no other;
- our own bot acts and is joined nowhere;
- what is remembered is bounded: who types in which room, and when we were last up to date;
- what may have happened before we started is called old (`is_old`): the stream is in order, so it is until
  one of our own users did something since the start, by our own homeserver's clock.

A typing list has no moment. It counts only while something with a moment, of a local user, came in time
shortly before: else it may be part of a backlog.

Source: H:2.3 to H:2.5; P:3.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpresence.engine.events import Activity, RoomJoinRuleChanged, RoomMemberChanged
from fedpresence.errors import BadRequest
from fedpresence.ids import RoomID, ServerName, UserID, parse_room_id, parse_user_id, server_of

BACKLOG_MS = 300_000  # H:2.4: older events are history, not activity
IN_TIME_MS = 60_000  # who hears of an event so soon after it has no backlog
UP_TO_DATE_FOR_MS = 300_000  # how long that is believed
MAX_TYPING_ROOMS = 10_000  # rooms in which somebody of ours types; a second of a large server has hundreds
EPHEMERAL_KEYS = ("ephemeral", "de.sorunome.msc2409.ephemeral")  # the stable one alone where both are there
MEMBERSHIPS = {"join": True, "leave": False, "ban": False, "invite": False, "knock": False}

RoomChange = RoomMemberChanged | RoomJoinRuleChanged


@dataclass(slots=True)
class Happened:
    """What a transaction comes to.

    `changes` are the rooms' in their order. `active` is each user's newest moment. `people` are local users
    of whom the transaction proves that they exist, `rooms` those in which somebody of ours must be, for the
    homeserver tells us of no others. `joined` are rooms that somebody of ours joined. `counted` is how many
    items were read as what, `skipped` those that made no sense. `is_old`: it may be from before the start.
    """

    changes: list[RoomChange] = field(default_factory=list)
    active: dict[UserID, int] = field(default_factory=dict)
    people: dict[UserID, None] = field(default_factory=dict)
    rooms: dict[RoomID, None] = field(default_factory=dict)
    joined: dict[RoomID, None] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    is_old: bool = False

    def activities(self) -> Iterator[Activity]:
        """As the engine is told: no device, because the homeserver names none (P:D-7)."""
        for user_id, at_ms in self.active.items():
            yield Activity(user_id, None, at_ms)


class Happenings:
    """Reads transactions in their order; `started_ms` is when this run began."""

    def __init__(self, server_name: ServerName, bot: UserID, started_ms: int = 0) -> None:
        self._server_name = server_name
        self._bot = bot
        self._typing: OrderedDict[RoomID, frozenset[UserID]] = OrderedDict()
        self._in_time_ms = -UP_TO_DATE_FOR_MS  # when something last came in time
        self._started_ms = started_ms
        self._is_old = True  # whether what comes next may be from before that

    def read(self, body: Mapping[str, Any], now_ms: int) -> Happened:
        """What happened, by the body of one transaction."""
        happened = Happened(is_old=self._is_old)
        for event in _items(body.get("events"), happened):
            try:
                self._event(event, happened, now_ms)
            except (BadRequest, _Malformed):
                happened.skipped += 1
        key = next((key for key in EPHEMERAL_KEYS if key in body), None)
        for item in _items(body.get(key), happened) if key is not None else ():
            try:
                self._ephemeral(item, happened, now_ms)
            except (BadRequest, _Malformed):
                happened.skipped += 1
        return happened

    def _event(self, event: dict[str, Any], happened: Happened, now_ms: int) -> None:
        sender = parse_user_id(event.get("sender"))
        room_id = parse_room_id(event.get("room_id"))
        kind, content = event.get("type"), event.get("content")
        if not isinstance(kind, str) or not isinstance(content, dict):
            raise _Malformed
        happened.counted["event"] += 1
        if kind == "m.room.member" and "state_key" in event:
            self._member(room_id, parse_user_id(event["state_key"]), content, happened)
        else:
            happened.rooms[room_id] = None
        if kind == "m.room.join_rules" and event.get("state_key") == "":
            rule = content.get("join_rule")
            happened.changes.append(RoomJoinRuleChanged(room_id, rule if isinstance(rule, str) else None))
        if self._is_ours(sender):
            happened.people[sender] = None
            at_ms = event.get("origin_server_ts")
            self._is_old = self._is_old and not (type(at_ms) is int and at_ms >= self._started_ms)
            self._acted(sender, at_ms, happened, now_ms)

    def _member(self, room_id: RoomID, user_id: UserID, content: dict[str, Any], happened: Happened) -> None:
        membership = content.get("membership")
        joined = MEMBERSHIPS.get(membership) if isinstance(membership, str) else None
        if joined is None:
            raise _Malformed
        if user_id == self._bot:
            return
        happened.changes.append(RoomMemberChanged(room_id, user_id, joined))
        if joined:
            happened.rooms[room_id] = None
            if self._is_ours(user_id):
                happened.people[user_id] = None
                happened.joined[room_id] = None

    def _ephemeral(self, item: dict[str, Any], happened: Happened, now_ms: int) -> None:
        kind = item.get("type")
        if kind not in ("m.typing", "m.receipt"):
            return  # presence is the homeserver's own, and to-device messages are nobody's business
        room_id = parse_room_id(item.get("room_id"))
        content = item.get("content")
        if not isinstance(content, dict):
            raise _Malformed
        if kind == "m.typing":
            happened.counted["typing"] += 1
            self._types(room_id, content, happened, now_ms)
        else:
            happened.counted["receipt"] += 1
            self._read_up_to(content, happened, now_ms)

    def _types(self, room_id: RoomID, content: dict[str, Any], happened: Happened, now_ms: int) -> None:
        """The whole list of who types now: who newly does is active."""
        found = content.get("user_ids")
        if not isinstance(found, list):
            raise _Malformed
        now = frozenset(user_id for user_id in _users(found, happened) if self._is_ours(user_id))
        before = self._typing.pop(room_id, frozenset())
        if now:
            self._typing[room_id] = now
            if len(self._typing) > MAX_TYPING_ROOMS:
                self._typing.popitem(last=False)
        is_up_to_date = now_ms - self._in_time_ms <= UP_TO_DATE_FOR_MS
        for user_id in sorted(now - before):
            happened.people[user_id] = None
            if is_up_to_date:
                happened.active[user_id] = now_ms

    def _read_up_to(self, content: dict[str, Any], happened: Happened, now_ms: int) -> None:
        for receipts in content.values():
            for readers in receipts.values() if isinstance(receipts, dict) else ():
                for name, receipt in readers.items() if isinstance(readers, dict) else ():
                    for user_id in _users((name,), happened):
                        if self._is_ours(user_id):
                            happened.people[user_id] = None
                            at_ms = receipt.get("ts") if isinstance(receipt, dict) else None
                            self._acted(user_id, at_ms, happened, now_ms)

    def _acted(self, user_id: UserID, at_ms: object, happened: Happened, now_ms: int) -> None:
        """A user of ours did something at that moment, if it is a moment."""
        if type(at_ms) is not int:
            happened.skipped += 1
            return
        if abs(now_ms - at_ms) <= IN_TIME_MS:
            self._in_time_ms = now_ms
        if now_ms - at_ms <= BACKLOG_MS:
            happened.active[user_id] = max(happened.active.get(user_id, 0), min(now_ms, at_ms))

    def _is_ours(self, user_id: UserID) -> bool:
        return user_id != self._bot and server_of(user_id) == self._server_name


class _Malformed(Exception):
    """An item that makes no sense."""


def _items(found: object, happened: Happened) -> Iterator[dict[str, Any]]:
    for item in found if isinstance(found, list) else ():
        if isinstance(item, dict):
            yield item
        else:
            happened.skipped += 1


def _users(names: Any, happened: Happened) -> Iterator[UserID]:
    for name in names:
        try:
            yield parse_user_id(name)
        except BadRequest:
            happened.skipped += 1
